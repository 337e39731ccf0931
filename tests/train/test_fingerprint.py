"""The same data, the same fingerprint; whatever shapes a sample changes it, and the difference is said in words."""

import json

import pytest
import tokenizers

from qkv.errors import NotFound
from qkv.inputs.text import Tokenizer
from qkv.inputs.train import train_tokenizer
from qkv.train import recipe
from qkv.train.fingerprint import described, differences, digest, fingerprint
from qkv.train.recipe import Data, File, HoldOut


@pytest.fixture
def root(tmp_path):
    for name in ("a.txt", "b.txt", "v.txt"):
        (tmp_path / name).write_text(f"{name}\n")
    return tmp_path


def of(root, which="train", tokenizer="{}", length=8, objective=None, extra=None, **data):
    said = Data(**{"train": ("a.txt", "b.txt"), "valid": "v.txt", **data})
    return fingerprint(said, which, root, tokenizer, objective or recipe.Causal(kind="causal"), length, extra)


def test_the_same(root, tmp_path_factory) -> None:
    one = of(root)
    assert one == of(root, skip_bad=3, workers=2, valid=())
    assert one == of(root, train="[ab].txt")
    assert one == of(root, objective=recipe.Causal(kind="causal", smoothing=0.1))
    assert one == json.loads(json.dumps(one))
    assert digest(one) == digest(dict(reversed(one.items())))
    assert differences(one, of(root)) == []
    moved = tmp_path_factory.mktemp("moved")
    for name in ("a.txt", "b.txt"):
        (moved / name).write_text(f"{name}\n")
    assert of(moved) == one


CHANGES = [
    ({"tokenizer": "{} "}, ["tokenizer has other content"]),
    ({"length": 9}, ["length was 8 and is 9"]),
    ({"document": "file"}, ['data.document was "line" and is "file"']),
    ({"fields": {"text": "x"}}, ["data.fields.text is new"]),
    ({"limit": 5}, ["data.limit was null and is 5"]),
    ({"train": "a.txt"}, ["the file b.txt is gone"]),
    ({"train": ("b.txt", "a.txt")}, ["the files stand in another order"]),
    ({"extra": {"labels": ("a", "b")}}, ["labels is new"]),
    ({"objective": recipe.Prefix(kind="prefix")}, ['objective.kind was "causal" and is "prefix"']),
    ({"objective": recipe.Causal(kind="causal", on_long="drop")}, ['objective.on_long was "error" and is "drop"']),
    ({"which": "valid"}, ['part was "train" and is "valid"', "the file a.txt is gone", "the file b.txt is gone"]),
]


@pytest.mark.parametrize(("change", "words"), CHANGES, ids=lambda x: str(x)[:30])
def test_what_changed(root, change, words) -> None:
    one, other = of(root), of(root, **change)
    assert one != other
    assert digest(one) != digest(other)
    assert differences(one, other)[: len(words)] == words


@pytest.mark.filterwarnings("ignore:the texts gave")
@pytest.mark.parametrize("role", ["eos", "bos", "pad", "unk", "sep", "cls", "mask"])
def test_roles_of_special_tokens(role) -> None:
    """Which stand in tokenizer_config.json."""
    source = train_tokenizer(["a cat"], "wordpiece", 60).to_json()
    one, other, same = (
        Tokenizer(tokenizers.Tokenizer.from_str(source), **{role: token}) for token in ("[SEP]", "[CLS]", "[SEP]")
    )
    assert one.to_json() == other.to_json()
    assert described(one) == described(same) != described(other)


def test_content(root) -> None:
    one = of(root)
    (root / "a.txt").write_text("other\n")
    assert differences(one, of(root)) == ["the file a.txt has other content"]
    fixed = of(root, train=(File(path="a.txt", set={"label": 1}), "b.txt"))
    assert differences(of(root), fixed) == ["the file a.txt is gone", 'the file a.txt set {"label": 1} is new']


def test_hold_out_reads_the_training_files(root) -> None:
    held = of(root, "valid", valid=(), hold_out=HoldOut(valid=0.1))
    assert [name for name, _ in held["files"]] == ["a.txt", "b.txt"]
    assert differences(held, of(root, "valid", valid=(), hold_out=HoldOut(valid=0.2))) == [
        "data.hold_out.valid was 0.1 and is 0.2"
    ]
    assert "limit" not in of(root, "valid", limit=3)["data"]


def test_hub(root, monkeypatch) -> None:
    local = of(root, train=f"{root}:train", format="hub")
    (root / "a.txt").write_text("other\n")
    assert differences(local, of(root, train=f"{root}:train", format="hub")) == [
        f"the file {root}:train has other content"
    ]
    commit = "0123456789" * 4
    assert of(root, train=f"org/name@{commit}:train", format="hub")["files"] == [[f"org/name@{commit}:train", commit]]
    with pytest.raises(NotFound, match=r"the hub doesn't answer .* org/name@<40 hexadecimal digits>"):
        of(root, train="org/name:train", format="hub")


def test_not_there(root) -> None:
    with pytest.raises(NotFound, match=r"c.txt is not there"):
        of(root, train="c.txt")
