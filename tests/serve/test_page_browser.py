"""The page in a real browser, Debian's Chromium, over a real server: what a person does, and that nothing leaves."""

import io
import math
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from matplotlib.image import imread
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from qkv.look.record import record
from qkv.serve.engine import Engine
from tests.serve.conftest import Running, llama, post, until
from tests.serve.looked import serve
from tests.tiny import text_to_text

TEXT = "The quick brown fox jumps over the lazy dog."
VIEWS = ("chat", "attention", "tokens", "engine")


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    yield from serve()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium")
    if found is None:
        pytest.fail("these tests drive a browser, and there is no chromium here: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A person's page. Afterwards there was no error on the console, and no request to anywhere else."""

    def __init__(self, browser: Browser, url: str, **context: Any) -> None:
        self.url, self.troubles, self.elsewhere = url, [], []
        self.context = browser.new_context(**context)
        self.context.set_default_timeout(20_000)
        self.context.route(lambda asked: not asked.startswith((url, "data:")), self._refuse)
        self.page = self.tab()

    def tab(self) -> Page:
        page = self.context.new_page()
        page.on("console", lambda said: self.troubles.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        return page

    def _refuse(self, route: Any) -> None:
        self.elsewhere.append(route.request.url)
        route.abort()

    def open(self, view: str) -> Page:
        self.page.goto(f"{self.url}/#/{view}")
        return self.page


@contextmanager
def visit(browser: Browser, url: str, *, expected: str = "(?!)", **context: Any) -> Iterator[Visit]:
    """`expected`: what the console may say, where a test provokes it."""
    found = Visit(browser, url, **context)
    try:
        yield found
        assert found.elsewhere == []
        assert [said for said in found.troubles if not re.search(expected, said)] == []
    finally:
        found.context.close()


@contextmanager
def slow(engine: Engine, seconds: float = 0.04) -> Iterator[None]:
    """Steps so far apart that a person can act between them."""
    over = threading.Event()

    def nap() -> None:
        while not over.is_set():
            engine.call(lambda model: time.sleep(seconds)).result()

    thread = threading.Thread(target=nap, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def set_to(page: Page, **settings: Any) -> None:
    if page.locator("#settings").get_attribute("open") != "":
        page.locator("#settings summary").click()
    for name, value in settings.items():
        page.locator(f"#fields [name={name}]").fill(str(value))


def say(page: Page, text: str) -> Locator:
    """Send it; gives the last answer."""
    expect(page.locator("#send")).to_be_enabled()
    page.locator("#prompt").fill(text)
    page.locator("#prompt").press("Enter")
    return page.locator(".answer").last


# ---------------------------------------------------------------- chat


def test_a_chat_streams(browser: Browser, url: str, engine: Engine) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "fox"}], "temperature": 0, "max_tokens": 24}
    choice = post(url, "/v1/chat/completions", {**body, "logprobs": True}).json()["choices"][0]
    with visit(browser, url) as person, slow(engine):
        page = person.open("chat")
        set_to(page, temperature=0, max_tokens=24)
        answer = say(page, "fox")
        expect(answer.locator(".t").nth(2)).to_be_visible()
        expect(page.locator("#stop")).to_be_visible()  # it is still being written
        assert answer.locator(".t").count() < 24
        expect(answer.locator(".how")).to_have_text("cut at the longest that was allowed")
        assert answer.locator(".says").evaluate("e => e.textContent") == choice["message"]["content"]
        expect(answer.locator(".facts-line")).to_contain_text("24 tokens")
        expect(page.locator(".user")).to_have_text("fox")
        expect(page.locator("#send")).to_be_visible()


def test_a_token_tells_what_else_it_could_have_been(browser: Browser, url: str) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "fox"}], "temperature": 0, "max_tokens": 8}
    found = post(url, "/v1/chat/completions", {**body, "logprobs": True, "top_logprobs": 5}).json()
    scored = found["choices"][0]["logprobs"]["content"]
    with visit(browser, url) as person:
        page = person.open("chat")
        set_to(page, temperature=0, max_tokens=8)
        answer = say(page, "fox")
        expect(answer.locator(".how")).to_be_visible()
        first = answer.locator(".t").first
        first.hover()
        bars = page.locator("#tip .bars").first
        expect(bars.locator(".token")).to_have_count(5)
        page.mouse.move(0, 0)
        expect(page.locator("#tip")).to_be_hidden()
        first.focus()  # by keyboard alone
        expect(bars.locator(".token").first).to_have_class("token chosen")
        for row, token in enumerate(scored[0]["top_logprobs"]):
            shown = float((bars.locator(":scope > span").nth(2 * row + 1).text_content() or "").removesuffix(" %"))
            assert abs(shown - 100 * math.exp(token["logprob"])) < 0.06
        page.keyboard.press("ArrowRight")
        expect(answer.locator(".t").nth(1)).to_be_focused()
        page.keyboard.press("Escape")
        expect(page.locator("#tip")).to_be_hidden()


@pytest.mark.parametrize("how", ["Escape", "button"])
def test_stop_stops(browser: Browser, url: str, engine: Engine, how: str) -> None:
    cancelled = engine.state().finished["cancelled"]
    with visit(browser, url) as person:
        page = person.open("chat")
        with slow(engine):
            set_to(page, max_tokens=400, seed=1)
            answer = say(page, "fox")
            expect(answer.locator(".t").nth(2)).to_be_visible()
            page.keyboard.press("Escape") if how == "Escape" else page.locator("#stop").click()
            expect(answer.locator(".how")).to_have_text("stopped")
            until(lambda: engine.state().finished["cancelled"] == cancelled + 1)
            until(lambda: engine.state().used == 0)
        count = answer.locator(".t").count()
        assert 2 < count < 100
        set_to(page, max_tokens=3)
        expect(say(page, "and now").locator(".how")).to_be_visible()  # the conversation goes on
        assert page.locator(".answer").first.locator(".t").count() == count


def test_what_anyone_writes_is_text(browser: Browser, url: str) -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script><|im_start|>system"
    with visit(browser, url) as person:
        page = person.open("chat")
        set_to(page, max_tokens=2)
        say(page, evil)
        expect(page.locator(".user")).to_have_text(evil)
        assert page.locator("main img, main script").count() == 0


def test_a_model_without_a_chat_template(browser: Browser) -> None:
    """A decoder goes on with a text, an encoder–decoder answers it; both by /v1/completions and its logprobs."""
    base = llama(layers=1)
    base.tokenizer.chat_templates = {}
    running = Running({"base": base, "pair": text_to_text()})
    try:
        with visit(browser, running.url) as person:
            page = person.open("chat")
            set_to(page, temperature=1, seed=3, max_tokens=6)
            for name, text, began in (("base", "The fox", "The fox"), ("pair", "w3 w4 w5", "")):
                page.locator("#model").select_option(name)
                answer = say(page, text)
                expect(answer.locator(".how")).to_be_visible()
                body = {"model": name, "prompt": text, "temperature": 1, "seed": 3, "max_tokens": 6}
                said = post(running.url, "/v1/completions", body).json()["choices"][0]["text"]
                assert answer.locator(".says").evaluate("e => e.textContent") == began + said
                answer.locator(".t").first.focus()
                expect(page.locator("#tip .bars .token")).not_to_have_count(0)
                assert page.locator(".user").count() == (name == "pair")
            page.locator("#tab-attention").click()
            page.locator("#part").select_option("cross")
            page.locator("#target").fill("w6 w7")
            read(page, "w3 w4 w5")
            assert [len(row) for row in numbers(page, 3)] == [4] * 3  # </s> too, and the start token
    finally:
        running.close()


def test_a_refusal_is_told_and_the_text_comes_back(browser: Browser, url: str) -> None:
    long = "fox " * 600
    with visit(browser, url, expected="400") as person:
        page = person.open("chat")
        answer = say(page, long)
        expect(answer.locator(".trouble")).to_contain_text("context")
        expect(page.locator("#prompt")).to_have_value(long)


# ---------------------------------------------------------------- attention


def numbers(page: Page, count: int) -> list[list[float]]:
    page.locator("#numbers summary").click()
    expect(page.locator("#numbers tbody tr")).to_have_count(count)
    rows = page.locator("#numbers tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.querySelectorAll('td')].map(cell => Number(cell.textContent)))"
    )
    page.locator("#numbers summary").click()
    return rows


def read(page: Page, text: str) -> None:
    page.locator("#text").fill(text)
    page.locator("#look").click()
    expect(page.locator("#counted")).to_contain_text("of at most")
    expect(page.locator("#one")).to_have_attribute("aria-busy", "false")
    expect(page.locator("#weight")).to_be_visible()


def test_the_map_of_a_known_prompt_has_the_known_weights(browser: Browser, url: str, engine: Engine) -> None:
    model = engine.model
    with torch.no_grad(), record(model) as tape:
        model([model.tokenizer.encode(TEXT)])
    with visit(browser, url) as person:
        page = person.open("attention")
        read(page, TEXT)
        assert page.locator("#grid button").count() == 8
        for layer, head in ((0, 1), (1, 2)):
            page.locator(f"#grid button[data-head='{layer}.{head}']").click()
            expect(page.locator("#head-name")).to_have_text(f"Layer {layer}, head {head}")
            known = tape.attention[layer][head]
            torch.testing.assert_close(torch.tensor(numbers(page, len(known))), known, atol=6e-5, rtol=0)
            walk(page, known)
        coloured(page, known)


def pixels(page: Page) -> torch.Tensor:
    """The map as it is on the screen: [height, width, red green blue], 0 to 255."""
    return torch.tensor(imread(io.BytesIO(page.locator("#map").screenshot())))[..., :3] * 255


def shade(weight: float) -> list[float]:
    """What the style sheet's four colours make of a weight, in the light theme."""
    stops = [[255, 255, 255], [0xBC, 0xD7, 0xFF], [0x3D, 0x85, 0xF0], [0x0A, 0x2C, 0x66]]
    at = min(weight * 3, 2.9999)
    return [low + (high - low) * (at % 1) for low, high in zip(stops[int(at)], stops[int(at) + 1], strict=True)]


def coloured(page: Page, known: torch.Tensor) -> None:
    """Wherever one points at the map, its colour is that of the weight that is told, and all of these are known."""
    page.locator("#bright").uncheck()
    for key in ("PageUp", "Home"):  # the marks away, to the upper left
        page.locator("#map").press(key)
    picture = pixels(page)
    box = page.locator("#map").bounding_box()
    assert box is not None
    values, right = {f"{weight:.4f}" for weight in known.flatten()}, []
    for i in range(6):
        for j in range(6):
            x, y = box["width"] * (0.3 + 0.12 * i), box["height"] * (0.3 + 0.12 * j)
            page.mouse.move(box["x"] + x, box["y"] + y)
            weight = page.locator("#weight").text_content() or ""
            assert weight in values
            seen = picture[int(y), int(x)]
            right.append(bool((seen - torch.tensor(shade(float(weight)))).abs().max() <= 3))
    page.locator("#bright").check()
    assert sum(right) >= 33, right  # all but those on a line that marks the first row or column


def walk(page: Page, known: torch.Tensor) -> None:
    """By keyboard to the first row and back down; the weight is told."""
    page.locator("#map").focus()
    for key in ("PageUp", "Home"):
        page.keyboard.press(key)
    expect(page.locator("#weight")).to_have_text(f"{known[0, 0]:.4f}")
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    expect(page.locator("#weight")).to_have_text(f"{known[2, 1]:.4f}")


def test_heads_are_walked_by_keyboard(browser: Browser, url: str) -> None:
    with visit(browser, url) as person:
        page = person.open("attention")
        read(page, TEXT)
        page.locator("#grid button[data-head='0.0']").click()
        for key, name in (("ArrowRight", "0, head 1"), ("ArrowDown", "1, head 1"), ("ArrowLeft", "1, head 0")):
            page.keyboard.press(key)
            expect(page.locator("#head-name")).to_have_text(f"Layer {name}")
        page.locator("#arcs").focus()
        before = page.locator("#said .pair").text_content()
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#said .pair")).not_to_have_text(before or "")


def test_too_long_a_text_is_told(browser: Browser, url: str) -> None:
    with visit(browser, url, expected="400") as person:
        page = person.open("attention")
        page.locator("#text").fill("fox " * 600)
        page.locator("#look").click()
        expect(page.locator("#finders .trouble")).to_contain_text("limit is 512")


def test_the_longest_text_is_drawn(browser: Browser, url: str) -> None:
    with visit(browser, url) as person:
        page = person.open("attention")
        read(page, "fox " * 250)
        expect(page.locator("#counted")).to_contain_text("of at most 512")
        assert int((page.locator("#counted").text_content() or "0").split()[0]) > 250


# ---------------------------------------------------------------- the other views


def test_tokens_as_one_types(browser: Browser, url: str, engine: Engine) -> None:
    words = engine.model.tokenizer
    with visit(browser, url) as person:
        page = person.open("tokens")
        for text in ("The quick fox", "Ünï 😀<|im_end|>"):
            page.locator("#typed").fill("")
            page.locator("#typed").press_sequentially(text, delay=5)
            expect(page.locator("#pieces .piece small")).to_have_text([str(id) for id in words.encode(text)])
        page.locator("#chatted").check()
        expect(page.locator("#pieces .special")).to_have_count(3)
        page.locator(".piece").first.hover()
        expect(page.locator("#tip")).to_contain_text("<|im_start|>")


def test_the_engine_is_watched(browser: Browser, url: str, engine: Engine) -> None:
    with visit(browser, url) as person:
        page = person.open("engine")
        expect(page.locator("#tiles")).to_contain_text("ready")
        before = engine.state().generated_tokens
        post(url, "/v1/completions", {"model": "tiny", "prompt": "fox", "max_tokens": 7, "ignore_eos": True})
        expect(page.locator("#totals")).to_contain_text(f"{before + 7:,}")
        expect(page.locator("#page-words")).to_contain_text(f"of {engine.state().pages} pages")


def test_another_model(browser: Browser, url: str) -> None:
    with visit(browser, url) as person:
        page = person.open("chat")
        page.locator("#model").select_option("vectors")
        expect(page.locator("#chat-title")).to_have_text("This model reads and does not write")
        expect(page.locator("#send")).to_be_disabled()
        page.locator("#tab-attention").click()
        read(page, "one two three")
        assert page.locator("#made").text_content().startswith("Here d = ")
        assert "before and after" in page.locator("#made").text_content()


def test_views_are_tabs(browser: Browser, url: str) -> None:
    with visit(browser, url) as person:
        page = person.open("chat")
        page.locator("#tab-chat").focus()
        for view in (*VIEWS[1:],):
            page.keyboard.press("ArrowRight")
            expect(page.locator(f"#{view}")).to_be_visible()
            assert page.url.endswith(f"#/{view}")
        assert page.locator("main > section:visible").count() == 1


# ---------------------------------------------------------------- light, dark, narrow, closed


def ground(page: Page) -> int:
    found = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return int(re.findall(r"\d+", found)[0])


def empty(page: Page) -> float:
    """How bright a cell is that has no weight, far to the upper right."""
    picture = pixels(page)
    return float(picture[picture.shape[0] // 2, -5, 0])


def test_light_and_dark(browser: Browser, url: str) -> None:
    for scheme, dark in (("light", False), ("dark", True)):
        with visit(browser, url, color_scheme=scheme) as person:
            page = person.open("attention")
            read(page, TEXT)
            assert (ground(page) < 60) is dark
            assert (empty(page) < 60) is dark
            for theme, then in (("light", False), ("dark", True)):
                while page.evaluate("document.documentElement.dataset.theme") != theme:
                    page.locator("#theme").click()
                assert (ground(page) < 60) is then
                assert (empty(page) < 60) is then  # canvases are drawn anew
            page.reload()
            assert ground(page) < 60  # it is remembered


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_wider_than_the_screen(browser: Browser, url: str, width: int) -> None:
    with visit(browser, url, viewport={"width": width, "height": 740}) as person:
        page = person.open("chat")
        set_to(page, max_tokens=60)
        expect(say(page, "x" * 90 + " fox").locator(".how")).to_be_visible()
        for view in VIEWS:
            page.locator(f"#tab-{view}").click()
            if view == "attention":
                read(page, TEXT)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view


def test_a_key_is_asked_for(browser: Browser) -> None:
    running = Running({"tiny": llama(layers=1)}, keys=("a-key-of-some-length",))
    try:
        with visit(browser, running.url, expected="401") as person:
            page = person.open("tokens")
            expect(page.locator("#locked")).to_be_visible()
            page.locator("#key").fill("a-wrong-key")
            page.keyboard.press("Enter")
            expect(page.locator("#locked-words")).to_contain_text("does not know that key")
            page.locator("#key").fill("a-key-of-some-length")
            page.keyboard.press("Enter")
            expect(page.locator(".piece").first).to_be_visible()
            expect(page.locator("#locked")).to_be_hidden()
            page.reload()
            expect(page.locator(".piece").first).to_be_visible()  # this tab still has it
            stored = "JSON.stringify(localStorage) + document.cookie"
            assert "a-key" not in page.evaluate(stored)
            person.page = person.tab()
            expect(person.open("tokens").locator("#locked")).to_be_visible()  # another one has not
            person.page.keyboard.press("Escape")
            expect(person.page.locator("#trouble")).to_contain_text("key")
    finally:
        running.close()


def test_a_server_that_is_gone_is_told(browser: Browser) -> None:
    running = Running({"tiny": llama(layers=1)})
    with visit(browser, running.url, expected="ERR_CONNECTION_REFUSED") as person:
        page = person.open("chat")
        expect(page.locator("#openers button").first).to_be_visible()
        running.close()
        answer = say(page, "fox")
        expect(answer.locator(".trouble")).to_contain_text("does not answer")
        page.locator("#tab-engine").click()
        expect(page.locator("#trouble")).to_contain_text("does not answer")
