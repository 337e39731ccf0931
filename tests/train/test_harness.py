"""The same small tasks in this process and, by lm-eval's own client, over a socket; and log-probabilities by hand."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.tasks import TaskManager

import qkv
from qkv.errors import InputError
from qkv.train.harness import CHUNK, Harness, settings_of
from tests.serve.conftest import CONTEXT, Running, llama
from tests.tiny import text_to_text

DATA = Path(__file__).parents[1] / "data" / "lm-eval"
TASKS = {"qkv_choice": ("acc,none", "acc_norm,none"), "qkv_write": ("exact_match,none",)}


@pytest.fixture(scope="module")
def model() -> qkv.Model:
    return llama()


@pytest.fixture(scope="module")
def harness(model: qkv.Model) -> Harness:
    return Harness(model)


@pytest.fixture(scope="module")
def running(model: qkv.Model) -> Iterator[Running]:
    server = Running({"tiny": model})
    yield server
    server.close()


def asked(kind: str, *args: Any) -> list[Instance]:
    return [Instance(kind, {}, each, i) for i, each in enumerate(args)]


def logs(model: qkv.Model, ids: list[int]) -> torch.Tensor:
    """log p of each token after the first, by the plain model."""
    with torch.no_grad():
        found = model(torch.tensor([ids]))[0].log_softmax(-1)
    return found[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def evaluated(lm: Any) -> dict[str, Any]:
    """The tasks' results, and each document's answers in order."""
    files = {"data_files": {"test": str(DATA / "questions.jsonl")}}
    tasks = [{**yaml.safe_load(path.read_text()), "dataset_kwargs": files} for path in sorted(DATA.glob("*.yaml"))]
    manager = TaskManager(include_defaults=False)
    found = simple_evaluate(lm, tasks=tasks, task_manager=manager, bootstrap_iters=0)
    assert found is not None
    answers = {name: [sample["resps"] for sample in found["samples"][name]] for name in TASKS}
    return {"results": found["results"], "answers": answers}


@pytest.mark.slow
def test_the_same_score_in_process_and_over_the_api(
    model: qkv.Model, harness: Harness, running: Running, tmp_path: Path
) -> None:
    folder = str(qkv.save(model, tmp_path / "tiny"))
    client = LocalCompletionsAPI(
        model="tiny",
        base_url=f"{running.url}/v1/completions",
        tokenizer=folder,
        tokenizer_backend="huggingface",
        num_concurrent=4,
        max_length=CONTEXT,
    )
    here, there = evaluated(harness), evaluated(client)
    for task, metrics in TASKS.items():
        for metric in metrics:
            assert here["results"][task][metric] == there["results"][task][metric]
    assert 0 < here["results"]["qkv_choice"]["acc,none"] < 1, "a score that is always the same tells nothing"
    assert here["answers"]["qkv_write"] == there["answers"]["qkv_write"]
    assert any(text for ((text,),) in here["answers"]["qkv_write"])
    for own, other in zip(here["answers"]["qkv_choice"], there["answers"]["qkv_choice"], strict=True):
        for [(score, greedy)], [(theirs, their_greedy)] in zip(own, other, strict=True):
            assert score == pytest.approx(theirs, abs=1e-4)
            assert greedy == their_greedy
    running.healthy()


def test_loglikelihood_is_the_sum_over_the_continuation(model: qkv.Model, harness: Harness) -> None:
    pairs = [("one two", " three"), ("", "four"), ("the cat sat on", " the mat and slept"), ("a b ", "c")]
    found = harness.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True)
    assert model.tokenizer is not None
    for (context, continuation), (score, _) in zip(pairs, found, strict=True):
        before = model.tokenizer.encode(context.rstrip()) or [harness.prefix_token_id]
        whole = model.tokenizer.encode(context + continuation)
        ids = whole if context else before + whole
        assert score == pytest.approx(logs(model, ids)[len(before) - 1 :].sum().item(), abs=1e-3)


def test_what_greedy_decoding_gives_is_greedy(model: qkv.Model, harness: Harness) -> None:
    assert model.tokenizer is not None
    context = model.tokenizer.encode("the cat sat")
    answer = model.generate(context, max_tokens=5, ignore_eos=True).tokens
    other = [*answer[:-1], (answer[-1] + 1) % model.spec.vocab]
    found = harness._loglikelihood_tokens([(None, context, answer), (None, context, other)], disable_tqdm=True)
    assert [greedy for _, greedy in found] == [True, False]


def test_a_continuation_of_no_token_is_certain(harness: Harness) -> None:
    end = harness.prefix_token_id
    assert harness._loglikelihood_tokens([(None, [end], []), (None, [end], [5])], disable_tqdm=True)[0] == (0.0, True)


def test_longer_than_a_step_is_the_same(monkeypatch: pytest.MonkeyPatch, harness: Harness) -> None:
    requests = [(None, [5 + i % 90 for i in range(n)], [7, 9, 11]) for n in (1, 40, 60, 200, 3)]
    whole = harness._loglikelihood_tokens(requests, disable_tqdm=True)
    assert CHUNK >= 64
    monkeypatch.setattr("qkv.train.harness.CHUNK", 64)
    parts = harness._loglikelihood_tokens(requests, disable_tqdm=True)
    for (a, same), (b, also) in zip(whole, parts, strict=True):
        assert a == pytest.approx(b, abs=1e-3)
        assert same == also


def test_rolling_counts_every_token_once(model: qkv.Model) -> None:
    assert model.tokenizer is not None
    text = "the cat sat on the mat and the dog slept near the door " * 3
    ids = [Harness(model).prefix_token_id, *model.tokenizer.encode(text)]
    [whole] = Harness(model).loglikelihood_rolling(asked("loglikelihood_rolling", (text,)), disable_tqdm=True)
    assert whole == pytest.approx(logs(model, ids).sum().item(), abs=1e-2)
    small = Harness(model, max_length=12)
    [cut] = small.loglikelihood_rolling(asked("loglikelihood_rolling", (text,)), disable_tqdm=True)
    windows = [ids[i : i + 12] for i in range(0, len(ids) - 1, 11)]
    assert cut != whole
    assert sum(len(window) - 1 for window in windows) == len(ids) - 1
    assert small.loglikelihood_rolling(asked("loglikelihood_rolling", ("",)), disable_tqdm=True) == [0]


def test_generating_stops_at_its_texts(model: qkv.Model, harness: Harness) -> None:
    long = {"until": [], "max_gen_toks": 10}
    [whole, empty] = harness.generate_until(asked("generate_until", ("the cat", long), ("", long)), disable_tqdm=True)
    assert whole == model.generate("the cat", max_tokens=10).text
    assert empty == model.generate([harness.prefix_token_id], max_tokens=10).text
    stop = whole[len(whole) // 2]
    [cut] = harness.generate_until(asked("generate_until", ("the cat", {**long, "until": stop})), disable_tqdm=True)
    assert cut == whole.split(stop)[0]


def test_what_is_too_long_is_refused_or_cut(model: qkv.Model) -> None:
    strict, cut = Harness(model, max_length=8), Harness(model, max_length=8, truncate=True)
    ids = list(range(10, 30))
    with pytest.raises(InputError, match=r"22 tokens don't fit into 8: .*truncate=true"):
        strict._loglikelihood_tokens([(None, ids, [5, 6])], disable_tqdm=True)
    [(score, _)] = cut._loglikelihood_tokens([(None, ids, [5, 6])], disable_tqdm=True)
    assert score == pytest.approx(logs(model, [*ids[-7:], 5, 6])[-2:].sum().item(), abs=1e-3)
    request = asked("generate_until", ("the cat sat on the mat", {"max_gen_toks": 7}))
    with pytest.raises(InputError, match="an answer of 7 don't fit into 8"):
        strict.generate_until(request, disable_tqdm=True)
    assert len(cut.generate_until(request, disable_tqdm=True)) == 1


def test_settings_are_the_tasks() -> None:
    assert settings_of({}) == {"max_tokens": 256, "temperature": 0.0, "stop": []}
    said = {"until": ["\n", ""], "do_sample": False, "temperature": 0.7, "max_new_tokens": 3, "top_p": 0.9}
    assert settings_of(said) == {"max_tokens": 3, "temperature": 0.0, "stop": ["\n"], "top_p": 0.9}
    assert settings_of({"do_sample": True})["temperature"] == 1.0
    with pytest.raises(InputError, match="generation_kwargs: num_beams"):
        settings_of({"num_beams": 4})


def test_models_that_dont_continue_texts_are_refused(model: qkv.Model) -> None:
    with pytest.raises(InputError, match="how a decoder continues"):
        Harness(text_to_text())
    bare = qkv.Model(model.spec)
    with pytest.raises(InputError, match="no tokenizer"):
        Harness(bare)
