"""Templates render as in transformers; hostile ones end soon, as an error, and this process goes on (L17, L18, L19)."""

import re
import time
from pathlib import Path
from typing import Any

import pytest

import qkv
from qkv.errors import TemplateError
from qkv.inputs.template import render
from tests.inputs.samples import CHATML

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi <b>é😀</b>\n"}]
FEATURES = {
    "chatml": CHATML,
    "whitespace": "{% if true %}\n  a\n {% endif %}\n{%- for m in messages %}\n  {{ m.role | trim }}\n{% endfor %}\n",
    "tojson": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ messages[1] | tojson(ensure_ascii=true) }}",
    "generation": "{% generation %}{% set x = 1 %}a{{ x }}{% endgeneration %}{{ x is defined }}",
    "loop controls": "{% for i in [0, 1, 2, 4] %}{% if i == 1 %}{% continue %}{% elif i > 3 %}{% break %}{% endif %}"
    "{{ i }}{% endfor %}",
    "namespace": "{% set n = namespace(a=1, self=2) %}{% set n.a = n.a + n.self %}{{ n.a }}",
    "undefined": "{{ tools is defined }}{% if nothing %}a{% endif %}{{ nothing is defined }}{% for x in nothing %}"
    "{% endfor %}",
    "missing key": "[{{ messages[0].nothing }}]{{ messages[0].nothing is none }}",
    "no bos": "[{{ bos_token }}]",
    "dict": "{{ dict(a=1)['a'] }}{% for k, v in messages[0] | dictsort %}{{ k }}={{ v }};{% endfor %}",
    "macro": "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(messages[0].role) }}",
    "python methods": "{{ messages[1].content.strip().split('<b>')[0].upper() }}{{ messages[0].items() | list }}",
}


@pytest.mark.parametrize("name", FEATURES)
def test_renders_what_transformers_renders(name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    theirs, _ = render_jinja_template([MESSAGES], chat_template=FEATURES[name], add_generation_prompt=True)
    variables = {"messages": MESSAGES, "tools": None, "documents": None, "add_generation_prompt": True}
    assert render(FEATURES[name], variables) == theirs[0]


def test_strftime_now() -> None:
    assert render("{{ strftime_now('%Y') }}", {}) == time.strftime("%Y")


REACHES = {
    "globals": "{{ lipsum.__globals__ }}",
    "class": "{{ ''.__class__.__mro__ }}",
    "false class": "{% if ''.__class__ %}{% endif %}",
    "attr": "{{ ''|attr('__class__') }}",
    "init": "{{ cycler.__init__.__globals__.os }}",
    "format": "{{ '{0.__class__}'.format(1) }}",
    "format_map": "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "namespace": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "namespace at birth": "{% set n = namespace(__call__=1) %}",
    "changes messages": "{{ messages.append(1) }}",
    "map": "{{ [1] | map(attribute='__class__') | list }}",
    "generation": "{% generation %}{{ joiner.__init__ }}{% endgeneration %}",
}


@pytest.mark.parametrize("name", REACHES)
def test_l17_a_template_that_reaches_out_is_a_security_error(name: str) -> None:
    with pytest.raises(TemplateError, match=r"line 1.*SecurityError"):
        render(REACHES[name], {"messages": []})


def test_l17_there_is_one_jinja_environment() -> None:
    package = Path(qkv.__file__).parent
    sources = {str(file.relative_to(package)): file.read_text() for file in package.rglob("*.py")}
    users = [name for name, source in sources.items() if re.search(r"(import|from)\s+jinja2", source)]
    assert users == ["inputs/sandbox.py"]
    made = re.findall(r"(?:Environment|Template|NativeTemplate)\(.*", sources["inputs/sandbox.py"])
    assert made == ["Environment(ImmutableSandboxedEnvironment):", "Environment("]  # the class, and its one instance


ENDLESS = {
    "loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "times": "{{ 'a' * 10**9 }}",
    "list times": "{% set x = [0] * 10**9 %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "10 MB": "a" * 10_000_000,
    "doubling": "{% set n = namespace(x='a' * 99) %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "joining": "{% set n = namespace(x=['a' * 99]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "long output": "{% set x = 'a' * 10000 %}{% for i in range(100000) %}{{ x }}{% endfor %}",
    "padding": "{{ '%1000000000d' % 1 }}",
    "power": "{{ 9 ** (9 ** (9 ** 9)) }}",
    "range": "{{ range(10**9) }}",
    "brackets": "{{" + "(" * 200_000 + "}}",
    "nested blocks": "{% for a in [1] %}" * 3000 + "{% endfor %}" * 3000,
    "long program": "{{ a }}" * 140_000,
    "center": "{{ 'a' | center(10**9) }}",
    "indent": "{{ ('a\n' * 10**6) | indent(10**4) }}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_l18_an_endless_template_is_stopped(name: str) -> None:
    begin = time.monotonic()
    with pytest.raises(TemplateError):
        render(ENDLESS[name], {"messages": []}, seconds=1)
    assert time.monotonic() - begin < 10  # bounded; the second's budget and a restart are far below
    assert render("{{ 1 + 1 }}", {}) == "2"


ERRORS = {
    "raise_exception": (
        "a\n\n{{ raise_exception('roles must alternate') }}",
        r"line 3: it refuses.*roles must alternate",
    ),
    "in a macro": ("{% macro f() %}\n\n{{ raise_exception('no') }}{% endmacro %}\n\n{{ f() }}", "line 3.*no"),
    "undefined attribute": ("a\n{{ messages[0].x.y }}", r"line 2.*has no attribute 'x'"),
    "undefined printed": ("a\n{{ date_string }}", r"line 2.*'date_string' is undefined"),
    "undefined joined": ("a\n{{ 'a' ~ date_string }}", r"line 2.*'date_string' is undefined"),
    "undefined called": ("\n{{ nothing() }}", r"line 2.*'nothing' is undefined"),
    "wrong type": ("\n\n{{ 'a' + messages }}", r"line 3: TypeError"),
    "syntax": ("a\n{% if %}", r"line 2: syntax error"),
    "not closed": ("\n{% for x in y %}", r"line 2: syntax error"),
    "not json": ("\n{{ nothing | tojson }}", "line 2.*JSON"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_l19_an_error_names_the_templates_line(name: str) -> None:
    template, message = ERRORS[name]
    with pytest.raises(TemplateError, match=message):
        render(template, {"messages": [{"role": "user"}]})


def test_l19_wrong_role_order_is_an_error_with_the_line() -> None:
    template = (
        "{% for m in messages %}\n"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}\n"
        "{{ raise_exception('roles must alternate user/assistant') }}\n"
        "{% endif %}{{ m.content }}{% endfor %}"
    )
    wrong: list[dict[str, Any]] = [{"role": "user", "content": "a"}] * 2
    with pytest.raises(TemplateError, match="line 3: it refuses these messages: roles must alternate"):
        render(template, {"messages": wrong})
