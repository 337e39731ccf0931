"""Encoders beside decoders against transformers: the encoder's states, the loss of teacher forcing, a text written
token by token over memory that beams reorder, and checkpoints of old."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import qkv
from qkv.errors import ConfigError, InputError, WeightError
from qkv.families.family import find, names
from qkv.spec import Classify, LMHead
from tests.families.reference import FIRST, SEQUENCES, TARGETS, Case, case, close, filled, our_outputs

quick = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
FAMILIES = [name for name in names() if len(find(name).spec(find(name).tiny).stacks) == 2]
WRITING = [
    (name, variant)
    for name in FAMILIES
    for variant in ("tiny", *find(name).variants)
    if isinstance(find(name).spec({**find(name).tiny, **find(name).variants.get(variant, {})}).head, LMHead)
]
each_family = pytest.mark.parametrize("name", FAMILIES)
each_writing = pytest.mark.parametrize(("name", "variant"), WRITING, ids=[f"{n}: {v}" for n, v in WRITING])


# --- against transformers -------------------------------------------------------------------------------------------


@each_writing
def test_the_encoders_states_are_those_of_transformers(name: str, variant: str) -> None:
    made = case(name, variant)
    with torch.no_grad():
        memory = made.ours.encode(SEQUENCES)
        theirs = [made.theirs.get_encoder()(torch.tensor([ids])).last_hidden_state[0] for ids in SEQUENCES]
    close(list(memory.batch.split(memory.states)), theirs, within=1e-4)


def shifted(made: Case, labels: list[int]) -> list[int]:
    """What transformers lets the decoder read to write these labels: mBART begins with their last, a language."""
    start = labels[-1] if made.family.name == "mbart" else made.ours.spec.start
    assert start is not None
    return [start, *labels[:-1]]


@each_writing
def test_the_loss_is_that_of_transformers(name: str, variant: str) -> None:
    made = case(name, variant)
    for ids, labels in zip(SEQUENCES, TARGETS, strict=True):
        with_ignored = torch.tensor([*labels, -100])  # the last label doesn't count
        with torch.no_grad():
            ours = made.ours([ids], [[shifted(made, labels)[0], *labels]])[0]
            theirs = made.theirs(input_ids=torch.tensor([ids]), labels=with_ignored[None]).loss
            torch.testing.assert_close(made.ours.head.loss(ours, with_ignored), theirs, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "mbart"])
def test_without_a_target_the_decoder_reads_the_ids_behind_the_start(name: str) -> None:
    """So do transformers' classifiers and answerers."""
    made = case(name, "tiny")
    with torch.no_grad():
        ours = made.ours(SEQUENCES)
        theirs = made.ours(SEQUENCES, [shifted(made, ids) for ids in SEQUENCES])
    close(list(ours), list(theirs), within=0)


@pytest.mark.parametrize("architecture", ["BartForQuestionAnswering", "T5ForQuestionAnswering"])
def test_an_answer_is_looked_for_in_the_source(architecture: str) -> None:
    made = case("bart" if architecture.startswith("Bart") else "t5", architecture)
    with torch.no_grad():
        for ids, ours in zip(SEQUENCES, made.ours(SEQUENCES), strict=True):
            theirs = made.theirs(input_ids=torch.tensor([ids]))
            close([ours], [torch.stack((theirs.start_logits[0], theirs.end_logits[0]), -1)], within=1e-4)


# --- token by token -------------------------------------------------------------------------------------------------


def some(data: st.DataObject, count: int, name: str) -> list[list[int]]:
    ids = st.lists(st.integers(FIRST, 96), min_size=1, max_size=30)
    return data.draw(st.lists(ids, min_size=count, max_size=count), label=name)


@given(data=st.data(), chosen=st.sampled_from(WRITING))
@settings(quick, max_examples=40)
def test_a_token_at_a_time_over_memory_that_is_reordered(data: st.DataObject, chosen: tuple[str, str]) -> None:
    """As in a beam search: after some steps rows are dropped, repeated and put into another order."""
    model = case(*chosen).ours
    sources = some(data, data.draw(st.integers(1, 4), label="count"), "sources")
    row = st.integers(0, len(sources) - 1)
    rows = data.draw(st.lists(row, min_size=1, max_size=5), label="rows")
    begun, rest = some(data, len(sources), "begun"), some(data, len(rows), "rest")
    steps = min(map(len, rest))
    with torch.no_grad():
        cache = model.new_cache(data.draw(st.sampled_from([None, 64]), label="room"), memory=model.encode(sources))
        model(begun, cache=cache)
        cache.select(rows)
        wrote = [model([text[i : i + 1] for text in rest], cache=cache) for i in range(steps)]
        texts = [begun[r] + text[:steps] for r, text in zip(rows, rest, strict=True)]
        at_once = model([sources[r] for r in rows], texts)
        alone = [model([sources[r]], [text])[0] for r, text in zip(rows, texts, strict=True)]
    for i, whole in enumerate(at_once):
        stepped = torch.cat([step[i] for step in wrote])
        torch.testing.assert_close(stepped, whole[-steps:], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(whole, alone[i], atol=2e-5, rtol=1e-5)


# --- checkpoints of old ---------------------------------------------------------------------------------------------

SINES = torch.zeros(64, 32)
OLD = [
    *[(name, {f"{p}decoder.version": torch.ones(1)}) for name in ("bart",) for p in ("", "model.")],
    *[(name, {f"model.{side}.embed_positions.weight": SINES}) for name in ("marian", "pegasus") for side in
      ("encoder", "decoder")],
    *[(name, {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.ones(8, 4)})
      for name in ("t5", "mt5")],
]  # fmt: skip


@pytest.mark.parametrize(("name", "more"), OLD, ids=[f"{n} {[*t]}" for n, t in OLD])
def test_what_old_files_hold_beside_the_weights(name: str, more: dict[str, Tensor]) -> None:
    made = case(name, "tiny")
    ours, notes = filled(made.family, made.config, {**made.tensors, **more})
    close(our_outputs(ours), our_outputs(made.ours), within=0)
    assert notes == []


@each_family
def test_all_copies_of_the_table_at_once(name: str) -> None:
    """A pickled checkpoint holds the table under each of its names."""
    made = case(name, "tiny")
    bare = not any(key.startswith(made.family.prefix) for key in made.tensors)
    copies = {a.removeprefix(made.family.prefix * bare): b for a, b in made.family.copies.items()}
    original = next(iter(copies.values())).removeprefix(made.family.prefix * bare)
    ours, notes = filled(made.family, made.config, {**made.tensors, **dict.fromkeys(copies, made.tensors[original])})
    close(our_outputs(ours), our_outputs(made.ours), within=0)
    assert len(notes) == len(copies) == 3
    assert all("same values" in note for note in notes)


def test_a_head_of_its_own_is_an_error_where_the_config_ties_it() -> None:
    """As transformers 5 writes of T5 v1.1."""
    made = case("t5", "v1.1")
    with pytest.raises(WeightError, match=r"lm_head.weight holds other values\.\n? ?Set tie_word_embeddings to false"):
        filled(made.family, {**made.config, "tie_word_embeddings": True}, made.tensors)


# --- from folders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "variant"), [("t5", "tiny"), ("bart", "BartModel"), ("t5", "T5EncoderModel")])
def test_a_folder_of_transformers_loads_and_takes_a_new_head(name: str, variant: str, tmp_path: Path) -> None:
    """T5's classifier has a prefix before its names, which the language model's checkpoint lacks, as a bare BART."""
    made = case(name, variant)
    made.theirs.save_pretrained(tmp_path)
    loaded = qkv.load(tmp_path)
    close(our_outputs(loaded), our_outputs(made.ours), within=1e-6)
    if made.ours.decoder is None:
        return
    fresh = qkv.load(tmp_path, new_head="classify", labels=["good", "bad"])
    assert isinstance(fresh.spec.head, Classify)
    assert [tuple(x.shape) for x in fresh(SEQUENCES)] == [(2,)] * len(SEQUENCES)
    assert torch.equal(fresh.encoder.embed.tokens.weight, made.ours.encoder.embed.tokens.weight)


# --- what must not pass ---------------------------------------------------------------------------------------------


def test_mbart_names_no_first_token() -> None:
    with pytest.raises(ConfigError, match="names no start token: give the decoder's ids as `target`"):
        case("mbart", "tiny").ours(SEQUENCES)


LONG = [5] * 65
WRONG: list[tuple[Any, Any, str]] = [
    ([LONG], [[5]], "65 tokens is longer than this model's 64 learned positions"),
    ([[5]], [LONG], "65 tokens is longer than this model's 64 learned positions"),
    ([[5], [6]], [[5]], "1 targets for 2 sequences"),
    ([[5]], [[97]], "97"),
    ([[5]], [[]], "empty"),
    ([[]], [[5]], "empty"),
]


@pytest.mark.parametrize(("ids", "target", "said"), WRONG, ids=[said for *_, said in WRONG])
def test_ids_and_targets_that_do_not_fit(ids: list[list[int]], target: list[list[int]], said: str) -> None:
    with pytest.raises(InputError, match=said):
        case("bart", "tiny").ours(ids, target)
