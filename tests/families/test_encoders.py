"""BERT and the encoders after it: pairs of sentences, files as they were published, names of old, labels."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from qkv.errors import ConfigError, InputError
from qkv.families.encoders import NEXT_SENTENCE, SENTENCE_ORDER
from qkv.families.family import find
from qkv.spec import Classify, Full, Heads, LayerNorm, Learned, MaskedLM, Model, RelativeBias, Tag
from tests.families.reference import SEQUENCES, case, close, our_outputs, their_head

ENCODERS = ["albert", "bert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta"]
each_encoder = pytest.mark.parametrize("name", ENCODERS)


# --- segments -------------------------------------------------------------------------------------------------------

SEGMENTS = [[int(i >= len(ids) // 2) for i in range(len(ids))] for ids in SEQUENCES]


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("bert", "tiny"),
        ("bert", "three segments"),
        ("bert", "BertForNextSentencePrediction"),
        ("bert", "BertForPreTraining"),
        ("bert", "BertForQuestionAnswering"),
        ("albert", "tiny"),
        ("electra", "tiny"),
        ("roberta", "two segments"),
    ],
)
def test_pairs_of_sentences_alone_and_together(name: str, variant: str) -> None:
    made = case(name, variant)
    theirs = []
    with torch.no_grad():
        for ids, kinds in zip(SEQUENCES, SEGMENTS, strict=True):
            out = made.theirs(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([kinds]))
            theirs.append(their_head(out, made.ours.spec.head))
        out = made.ours(SEQUENCES, segments=SEGMENTS)
    heads = out if isinstance(out, tuple) else (out,)
    several = isinstance(made.ours.spec.head, Heads)
    ours = [torch.cat([x.flatten() for x in one]) if several else one[0] for one in zip(*heads, strict=True)]
    close(ours, theirs, within=1e-4)
    assert not torch.allclose(ours[1], our_outputs(made.ours)[1], atol=1e-3), "segments change the answer"


def test_segments_that_are_not_there() -> None:
    with pytest.raises(InputError, match="segments"):
        case("bert", "tiny").ours([[3, 4]], segments=[[0, 2]])
    with pytest.raises(InputError, match="segments"):
        case("distilbert", "tiny").ours([[3, 4]], segments=[[0, 1]])


# --- what the specs are ---------------------------------------------------------------------------------------------


@each_encoder
def test_each_sees_both_ways_and_norms_after_each_sum(name: str) -> None:
    model = find(name).spec(find(name).tiny)
    assert model.decoder is None
    assert model.encoder is not None
    (block,) = model.encoder.blocks
    assert (block.place, block.mixer.mask, model.encoder.norm) == ("post", Full(), None)  # type: ignore[attr-defined]


def encoder(name: str, **changes: Any) -> Any:
    return find(name).spec({**find(name).tiny, **changes}).encoder


def test_what_sets_each_apart() -> None:
    assert encoder("bert").embed.position == Learned(64)
    assert encoder("roberta").embed.position == Learned(62, offset=2)
    assert encoder("roberta", pad_token_id=5).embed.position == Learned(58, offset=6)
    assert encoder("distilbert").embed.segments == encoder("mpnet").embed.segments == 0
    assert encoder("mpnet").position == RelativeBias(32, 128, both_ways=True)
    assert (encoder("albert").shared, encoder("albert").embed.width, encoder("albert").built) == (True, 16, 1)
    assert (encoder("electra").embed.width, encoder("electra", embedding_size=32).embed.width) == (16, None)
    assert encoder("distilbert").blocks[0].norm == LayerNorm(1e-12)


def head(name: str, architecture: str, **changes: Any) -> Any:
    return find(name).spec({**find(name).tiny, "architectures": [architecture], **changes}).head


@pytest.mark.parametrize(
    ("name", "architecture", "changes", "dropout"),
    [
        ("bert", "BertForSequenceClassification", {}, 0.1),
        ("bert", "BertForSequenceClassification", {"hidden_dropout_prob": 0.2}, 0.2),
        ("bert", "BertForSequenceClassification", {"classifier_dropout": 0.3}, 0.3),
        ("bert", "BertForSequenceClassification", {"classifier_dropout": None, "hidden_dropout_prob": 0.2}, 0.2),
        ("bert", "BertForNextSentencePrediction", {"classifier_dropout": 0.3}, 0.0),
        ("roberta", "RobertaForTokenClassification", {"classifier_dropout": 0.0}, 0.0),
        ("distilbert", "DistilBertForSequenceClassification", {"dropout": 0.3}, 0.2),
        ("distilbert", "DistilBertForTokenClassification", {"dropout": 0.3}, 0.3),
        ("distilbert", "DistilBertForQuestionAnswering", {"dropout": 0.3}, 0.1),
        ("albert", "AlbertForTokenClassification", {"hidden_dropout_prob": 0.2}, 0.1),
        ("albert", "AlbertForTokenClassification", {"hidden_dropout_prob": 0.2, "classifier_dropout_prob": None}, 0.2),
        ("mpnet", "MPNetForSequenceClassification", {"hidden_dropout_prob": 0.3}, 0.3),
    ],
)
def test_where_a_head_s_dropout_is_said(name: str, architecture: str, changes: dict[str, Any], dropout: float) -> None:
    assert head(name, architecture, **changes).dropout == dropout


def test_what_each_classifier_has_inside() -> None:
    inside = {name: case(name, f"{stem}ForSequenceClassification").ours.spec.head.hidden for name, stem in STEMS}  # type: ignore[attr-defined]
    tanh = {"bert", "albert", "roberta", "xlm-roberta", "mpnet"}
    assert inside == {**dict.fromkeys(tanh, "tanh"), "distilbert": "relu", "electra": "gelu"}


STEMS = [
    ("albert", "Albert"),
    ("bert", "Bert"),
    ("distilbert", "DistilBert"),
    ("electra", "Electra"),
    ("mpnet", "MPNet"),
    ("roberta", "Roberta"),
    ("xlm-roberta", "XLMRoberta"),
]


def test_masked_lms_take_the_activation_that_transformers_gives_them() -> None:
    for name, own in (("bert", True), ("albert", True), ("roberta", False), ("mpnet", False)):
        masked = find(name).spec({**find(name).tiny, "hidden_act": "relu"}).head
        assert isinstance(masked, MaskedLM)
        assert masked.activation == ("relu" if own else "gelu")
    assert head("electra", "ElectraForMaskedLM", hidden_act="relu").activation == "gelu"


def test_next_sentence_is_told_from_a_classifier_of_two() -> None:
    family = find("bert")
    next_sentence = case("bert", "BertForNextSentencePrediction").ours.spec
    assert next_sentence.head == Classify(NEXT_SENTENCE, hidden="tanh")
    assert family.config(next_sentence)["architectures"] == ["BertForNextSentencePrediction"]
    named = replace(next_sentence, head=Classify(("ham", "spam"), hidden="tanh"))
    assert family.config(named)["architectures"] == ["BertForSequenceClassification"]
    asked = family.with_head(dict(family.tiny), Classify, ["ham", "spam"])
    assert asked["architectures"] == ["BertForSequenceClassification"]
    albert = case("albert", "AlbertForPreTraining").ours.spec.head
    assert isinstance(albert, Heads)
    assert albert.heads[1] == Classify(SENTENCE_ORDER, hidden="tanh", dropout=0.1)


def test_tags_have_no_dropout_of_their_own_in_mpnet_and_distilbert() -> None:
    for name, stem in (("mpnet", "MPNet"), ("distilbert", "DistilBert")):
        model = case(name, f"{stem}ForTokenClassification").ours.spec
        with pytest.raises(ConfigError, match="dropout"):
            find(name).config(replace(model, head=Tag(("LABEL_0", "LABEL_1"), dropout=0.4)))


def untied(model: Model) -> Model:
    assert isinstance(model.head, MaskedLM)
    return replace(model, head=replace(model.head, tied=False))


def test_an_untied_masked_lm_where_transformers_would_keep_two_biases() -> None:
    with pytest.raises(ConfigError, match="'tie_word_embeddings' is False, but only True"):
        find("bert").config(untied(case("bert", "tiny").ours.spec))
    assert find("bert").spec({**find("bert").tiny, "architectures": ["BertModel"], "tie_word_embeddings": False})
    said = find("distilbert").config(untied(case("distilbert", "tiny").ours.spec))
    assert said["tie_word_embeddings"] is False
