"""What the page asks for: tokens, attention and state over the socket, with limits, and no more passes than needed."""

import asyncio
import concurrent.futures
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch

import qkv
from qkv.errors import InputError
from qkv.look.record import record
from qkv.serve import look, maps
from qkv.serve.engine import Engine
from qkv.serve.options import Options
from qkv.serve.scheduler import Full
from qkv.serve.served import Models
from tests.serve.conftest import CONTEXT, Running, error, llama, post
from tests.serve.looked import serve
from tests.tiny import text_to_text

TEXT = "The quick brown fox jumps over the lazy dog."


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    yield from serve()


def ask(url: str, path: str, **body: Any) -> Any:
    found = post(url, f"/look/{path}", {"model": "tiny", **body})
    assert found.status_code == 200, found.text
    return found.json()


# ---------------------------------------------------------------- tokens


def test_tokens_are_the_tokenizers_and_know_their_bytes(url: str, engine: Engine) -> None:
    text = "Ünïcödé 😀 fox<|im_start|>\n"
    found = ask(url, "tokens", text=text)
    words, data = engine.model.tokenizer, text.encode()
    assert [token["id"] for token in found["tokens"]] == words.encode(text)
    assert [token["token"] for token in found["tokens"]] == [words.token(id) for id in words.encode(text)]
    assert (found["characters"], found["bytes"], found["vocab"]) == (len(text), len(data), words.vocab_size)
    end = 0
    for token in found["tokens"]:
        assert data[token["start"] : token["end"]].decode() == token["text"]
        assert token["start"] <= end <= token["end"]  # a character of several tokens is each one's
        end = token["end"]
        assert not token["special"]  # what one types is text
    assert end == len(data)


def test_what_a_tokenizer_puts_around_a_text_is_special(url: str) -> None:
    first, *inner, last = ask(url, "tokens", model="vectors", text="hello world")["tokens"]
    assert (first["token"], last["token"]) == ("[CLS]", "[SEP]")
    assert first["special"]
    assert last["special"]
    assert first["start"] is None
    assert not any(token["special"] for token in inner)


def test_a_message_is_cut_in_its_template(url: str, engine: Engine) -> None:
    found = ask(url, "tokens", text="fox", chat=True)["tokens"]
    assert [token["id"] for token in found] == engine.model.tokenizer.chat([{"role": "user", "content": "fox"}])
    assert "".join(token["text"] for token in found) == "<|im_start|>user\nfox<|im_end|>\n<|im_start|>assistant\n"
    assert [token["text"] for token in found if token["special"]] == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]


def test_an_empty_text_has_no_tokens(url: str) -> None:
    assert ask(url, "tokens", text="")["tokens"] == []


# ---------------------------------------------------------------- attention


def test_a_heads_weights_are_the_recorders(url: str, engine: Engine) -> None:
    model = engine.model
    with torch.no_grad(), record(model) as tape:
        model([model.tokenizer.encode(TEXT)])
    for layer, head in ((0, 0), (1, 3)):
        found = ask(url, "attention", text=TEXT, layer=layer, head=head)
        expected = tape.attention[layer][head]
        rows = [row + [0] * (expected.shape[1] - len(row)) for row in found["weights"]]
        torch.testing.assert_close(torch.tensor(rows) * found["unit"], expected, atol=6e-5, rtol=0)
        assert (found["heads"], found["kv_heads"], found["width"], found["mask"]) == (4, 2, 8, "Causal")


def test_the_summary_has_every_head(url: str, engine: Engine) -> None:
    ids = engine.model.tokenizer.encode(TEXT)
    found = ask(url, "attention", text=TEXT)
    assert [token["id"] for token in found["keys"]] == ids
    assert found["queries"] == found["keys"]
    assert "".join(token["text"] for token in found["keys"]) == TEXT
    recorded = maps.recorded(engine.model, ids, [])["decoder"]
    assert found["layers"] == [maps.summary(layer, ids) for layer in recorded]
    assert ask(url, "attention", ids=ids)["layers"] == found["layers"]


def test_an_encoders_attention_looks_ahead(url: str) -> None:
    found = ask(url, "attention", model="vectors", text="one two three")
    assert (found["part"], found["parts"]) == ("encoder", ["encoder"])
    assert found["layers"][0][0]["next"] > 0
    assert ask(url, "attention", model="vectors", text="one two", layer=0, head=0)["mask"] == "Full"


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "text"),
        ({"text": ""}, "empty"),
        ({"ids": []}, "empty"),
        ({"text": "a", "ids": [1]}, "either"),
        ({"ids": [10**6]}, "vocabulary"),
        ({"ids": [-1]}, "ids"),
        ({"ids": [2**70]}, "ids"),
        ({"ids": [1.5]}, "ids"),
        ({"ids": [1] * 513}, "ids"),
        ({"text": "a " * 600}, "limit is 512"),
        ({"text": "a", "layer": 0}, "layer and head"),
        ({"text": "a", "layer": 2, "head": 0}, "below 2"),
        ({"text": "a", "layer": 0, "head": 4}, "below 4"),
        ({"text": "a", "layer": -1, "head": 0}, "layer"),
        ({"text": "a", "layer": True, "head": 0}, "layer"),
        ({"text": "a", "part": "cross"}, "has no 'cross'"),
        ({"text": "a", "part": "all"}, "part"),
        ({"text": "a" * 50_001}, "text"),
        ({"text": "a", "more": 1}, "more"),
    ],
)
def test_what_is_refused(url: str, body: dict[str, Any], word: str) -> None:
    assert word in error(post(url, "/look/attention", {"model": "tiny", **body}), 400)["message"]


@pytest.mark.parametrize("path", ["tokens", "attention"])
def test_a_lone_surrogate_is_refused(url: str, path: str) -> None:
    body = b'{"model": "tiny", "text": "\\ud800"}'
    error(httpx.post(f"{url}/look/{path}", content=body, headers={"content-type": "application/json"}), 400)


def test_an_unknown_model_is_not_there(url: str) -> None:
    for path, body in (("tokens", {"text": "a"}), ("attention", {"text": "a"})):
        assert error(post(url, f"/look/{path}", {**body, "model": "x"}), 404)["code"] == "model_not_found"
        error(post(url, f"/look/{path}", body), 404)  # there are two


# ---------------------------------------------------------------- models and state


def test_models_say_what_can_be_looked_into(url: str) -> None:
    tiny, vectors = httpx.get(url + "/look/models").json()
    assert tiny.pop("vocab") > 100
    assert tiny == {
        "name": "tiny",
        "family": "llama",
        "generates": True,
        "chat": True,
        "tokenizer": True,
        "dim": 32,
        "context": CONTEXT,
        "parts": {"decoder": {"layers": 2, "heads": 4}},
        "most_tokens": 512,
    }
    assert (vectors["generates"], vectors["chat"], list(vectors["parts"])) == (False, False, ["encoder"])


def test_state_is_the_engines(url: str, engine: Engine) -> None:
    states = httpx.get(url + "/look/state").json()
    assert [state["name"] for state in states] == ["tiny", "vectors"]
    now = engine.state()
    assert (states[0]["pages"], states[0]["page"], states[0]["step"]) == (now.pages, now.page, now.step)
    assert states[0]["used"] + states[0]["free"] == states[0]["pages"]
    assert set(states[0]["finished"]) == set(now.finished)


def test_keys_close_all_but_the_page() -> None:
    running = Running({"tiny": llama(layers=1)}, keys=("a-key-of-some-length",))
    try:
        assert httpx.get(running.url + "/").status_code == 200
        for path in ("models", "state"):
            error(httpx.get(f"{running.url}/look/{path}"), 401)
            assert httpx.get(f"{running.url}/look/{path}", headers=running.headers).status_code == 200
        for path in ("tokens", "attention"):
            error(post(running.url, f"/look/{path}", {"text": "a"}), 401)
            assert post(running.url, f"/look/{path}", {"text": "a"}, headers=running.headers).status_code == 200
    finally:
        running.close()


# ---------------------------------------------------------------- passes


class OneModel:
    """Of an engine what a pass needs; calls run at once, or when they are let."""

    def __init__(self, model: qkv.Model, *, wait: bool = False) -> None:
        self.model, self.name, self.generates, self.ready = model, "one", True, True
        self.passes = 0
        self.waiting: list[concurrent.futures.Future[Any]] | None = [] if wait else None

    def call(self, work: Any) -> concurrent.futures.Future[Any]:
        self.passes += 1
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        if self.waiting is None:
            try:
                future.set_result(work(self.model))
            except InputError as error:
                future.set_exception(error)
        else:
            self.waiting.append(future)
        return future


def test_the_next_head_of_a_text_needs_no_pass() -> None:
    async def looks() -> int:
        engine, recordings = OneModel(llama()), look.Recordings()
        first = await recordings.of(engine, [1, 2, 3], [])
        assert await recordings.of(engine, [1, 2, 3], []) is first
        await recordings.of(engine, [1, 2], [])
        assert await recordings.of(engine, [1, 2, 3], []) is first
        return engine.passes

    assert asyncio.run(looks()) == 2


def test_what_is_remembered_is_bounded() -> None:
    async def looks() -> int:
        engine, recordings = OneModel(llama()), look.Recordings(most_bytes=2 * 8 * 4 * 4 * 2)
        for last in (1, 2, 3, 3, 1):  # two texts of four tokens fit: 2 layers, 4 heads, 2 bytes a weight
            await recordings.of(engine, [5, 6, 7, last], [])
        return engine.passes

    assert asyncio.run(looks()) == 4


def test_one_pass_at_a_time_and_a_bounded_queue() -> None:
    async def looks() -> None:
        engine, recordings = OneModel(llama(), wait=True), look.Recordings()
        asked = [asyncio.create_task(recordings.of(engine, [1, i], [])) for i in range(look.MOST_WAITING + 1)]
        await asyncio.sleep(0.02)
        assert engine.passes == 1
        with pytest.raises(Full):
            await recordings.of(engine, [1, 99], [])
        for done in range(len(asked)):
            while engine.passes == done:  # the next one waits as long as this one took
                await asyncio.sleep(0.005)
            engine.waiting[done].set_result({"decoder": [torch.zeros(1, 2, 2, dtype=torch.int16)]})
        await asyncio.gather(*asked)

    asyncio.run(asyncio.wait_for(looks(), 20))


def test_a_pass_that_fails_opens_the_way() -> None:
    async def looks() -> None:
        engine, recordings = OneModel(llama()), look.Recordings()
        with pytest.raises(InputError, match="vocabulary"):
            await recordings.of(engine, [10**6], [])
        assert list(await recordings.of(engine, [1], [])) == ["decoder"]

    asyncio.run(asyncio.wait_for(looks(), 20))


def test_of_an_encoder_decoder_all_three_parts() -> None:
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    app = FastAPI()
    engines: Any = {"one": OneModel(text_to_text())}
    app.include_router(look.router(Models(engines, Options())))
    client = TestClient(app)
    shapes = {}
    for part in ("encoder", "decoder", "cross"):
        body = {"text": "w3 w4 w5", "target": "w6", "part": part}
        found = client.post("/look/attention", json=body).json()
        shapes[part] = ([token["text"] for token in found["queries"]], [token["text"] for token in found["keys"]])
        one = client.post("/look/attention", json={**body, "layer": 0, "head": 1}).json()
        assert len(one["weights"]) == len(found["queries"])
    source, answer = ["w3", " w4", " w5", " </s>"], ["<pad>", " w6"]
    assert {part: tuple([text.strip() for text in side] for side in both) for part, both in shapes.items()} == {
        part: tuple([text.strip() for text in side] for side in both)
        for part, both in {"encoder": (source, source), "decoder": (answer, answer), "cross": (answer, source)}.items()
    }
