"""The page is whole, needs nothing else, lets nothing else in, and can be read and used by everybody."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from qkv.serve import page

HTML = page.page().html.decode()
SCRIPTS = {path.name: path.read_text(encoding="utf-8") for path in page.FOLDER.glob("page_*.js")}
SCRIPT = "\n".join(SCRIPTS.values())
STYLE = (page.FOLDER / "page.css").read_text(encoding="utf-8")
VOID = {"meta", "link", "input", "br"}


class Reader(HTMLParser):
    """Tags in balance, and the attributes of each."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, str] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("style", "script"):
            self.inside[self.open[-1]] = self.inside.get(self.open[-1], "") + data


READ = Reader(HTML)
IDS = [attributes["id"] for _, attributes in READ.tags if "id" in attributes]


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    app.include_router(page.router())
    return TestClient(app)


def test_one_response_holds_all_of_it(client: TestClient) -> None:
    found = client.get("/")
    assert found.status_code == 200
    assert found.headers["content-type"] == "text/html; charset=utf-8"
    assert found.text == HTML
    assert STYLE in HTML
    assert {f"page_{name}.js" for name in page.SCRIPTS} == set(SCRIPTS)
    for name, text in SCRIPTS.items():
        assert text in HTML, name
    assert len(HTML) < 120_000


def test_it_is_fetched_once(client: TestClient) -> None:
    tag = client.get("/").headers["etag"]
    again = client.get("/", headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    assert client.head("/").headers["content-length"] == str(len(HTML.encode()))


def test_it_needs_nothing_else() -> None:
    loading = [
        (tag, name, value)
        for tag, attributes in READ.tags
        for name, value in attributes.items()
        if name in ("src", "href", "action", "srcset", "data", "poster")
    ]
    assert [(tag, name) for tag, name, _ in loading] == [("link", "href")]
    assert loading[0][2].startswith("data:image/svg+xml,")
    assert not re.findall(r"@import|url\(|\bimport\b", STYLE)
    assert not re.findall(r"""\bimport\s|\bimport\(|https?:|["'`]//""", SCRIPT)


def test_its_policy_lets_nothing_else_in(client: TestClient) -> None:
    headers = client.get("/").headers
    rules = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == rules["frame-ancestors"] == "'none'"
    assert rules["connect-src"] == "'self'"
    assert rules["require-trusted-types-for"] == "'script'"
    assert rules["img-src"] == "data:"
    for kind, rule in (("script", "script-src"), ("style", "style-src")):
        digest = hashlib.sha256(READ.inside[kind].encode()).digest()
        assert rules[rule] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_no_text_becomes_markup() -> None:
    """What a model or a person writes is put in as text, and no attribute holds code or style."""
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", SCRIPT)
    assert not [name for _, attributes in READ.tags for name in attributes if name.startswith("on") or name == "style"]
    assert not re.findall(r"</(script|style)", SCRIPT + STYLE)


def test_a_key_is_kept_for_the_tab_alone() -> None:
    assert re.findall(r'keep\("(\w+)", "key"', SCRIPT) == ["sessionStorage"]
    assert "document.cookie" not in SCRIPT


def test_ids_are_unique_and_those_that_scripts_name_are_there() -> None:
    assert len(IDS) == len(set(IDS))
    made = set(re.findall(r'\bid: "(\w+)"', SCRIPT))
    assert set(re.findall(r'\$\("([\w-]+)"\)', SCRIPT)) <= set(IDS) | made
    assert set(re.findall(r"#([a-z][\w-]*)(?=[^;{}]*\{)", STYLE)) <= set(IDS)
    for _, attributes in READ.tags:
        for name in ("for", "aria-controls", "aria-labelledby", "aria-describedby"):
            assert attributes.get(name, IDS[0]) in IDS


def test_everything_to_type_in_has_a_name() -> None:
    labels = {attributes.get("for") for tag, attributes in READ.tags if tag == "label"}
    wrapped = set(re.findall(r'<label[^>]*>(?:(?!</label>).)*?<(?:input|select)[^>]* id="([\w-]+)"', HTML, re.DOTALL))
    fields = [attributes for tag, attributes in READ.tags if tag in ("input", "select", "textarea")]
    assert len(fields) > 8
    for attributes in fields:
        assert attributes["id"] in labels | wrapped or attributes.get("aria-label"), attributes
    for tag, attributes in READ.tags:
        if tag == "canvas" and "id" in attributes:
            assert attributes["aria-label"]


def test_scripts_are_short() -> None:
    for name, text in SCRIPTS.items():
        assert text.count("\n") <= 300, name
        assert text.startswith("// "), name


def light(colour: str) -> float:
    """WCAG 2's relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read(theme: int) -> None:
    """At least 4.5 : 1 (WCAG 2, AA)."""
    found = re.findall(r"--(\w[\w-]*): light-dark\((#\w{6}), (#\w{6})\)", STYLE)
    colours = {name: both[theme] for name, *both in found}
    for text in ("ink", "dim", "q", "k", "v", "accent"):
        for ground in ("paper", "card"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for text, ground in (
        ("on-accent", "accent"),
        ("bad", "bad-well"),
        ("ink", "hot"),
        ("ink", "well"),
        ("dim", "well"),
    ):
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
