"""The tokenizer of a run: the model's, another model's, or one that the run trains on its texts."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from qkv.errors import InputError
from qkv.inputs.backend import check_text
from qkv.inputs.text import Tokenizer
from qkv.inputs.train import train_tokenizer
from qkv.load.describe import describe
from qkv.strict_json import read_json
from qkv.train import records
from qkv.train.checkpoint import begun
from qkv.train.fingerprint import fingerprint
from qkv.train.objective import OBJECTIVES
from qkv.train.recipe import Recipe
from qkv.write import write_json

TOKENIZER = "tokenizer"  # the folder of one that a run has trained, in the run's own
_TRAINED_ON = "trained_on.json"  # in it: what that was
_ENDS = {"eos": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}  # of the kinds that have no usual ones


def tokenizer_of(recipe: Recipe, trained: Path) -> Tokenizer | None:
    """The recipe's tokenizer; None: the model's own. `trained`: where one that the run trains is. InputError: the model
    that it names has none."""
    said = recipe.tokenizer
    if said.train is not None:
        return Tokenizer.from_folder(trained)
    origin = said.origin if said.origin is not None else recipe.model.origin
    if origin is None:
        raise InputError("the recipe names no tokenizer: say tokenizer.from (a model's) or tokenizer.train (a kind)")
    if (Path(origin) / "tokenizer.json").is_file():
        return Tokenizer.from_folder(origin)
    described = describe(origin, config_only=False)
    if described.gguf is not None:
        return Tokenizer.from_gguf(described.gguf.metadata)
    if described.folder is None or "tokenizer.json" not in described.folder.tokenizer:
        raise InputError(f"{origin} has no tokenizer.json: say tokenizer.from, a model that has one")
    return Tokenizer.from_folder(described.folder.root)


def train_once(recipe: Recipe, out: Path, texts: Iterable[str]) -> None:
    """Train the recipe's, if it asks for one, once a run: some kinds' training is not the same twice. Until there is a
    checkpoint, other data or settings make another one."""
    trained = out / TOKENIZER
    if recipe.tokenizer.train is None or ((trained / "tokenizer.json").exists() and begun(out)):
        return
    said = {"trained": recipe.tokenizer.model_dump(mode="json")}
    made = fingerprint(recipe.data, "train", Path(recipe.data.root), "", recipe.objective, None, said)
    if (trained / _TRAINED_ON).is_file() and read_json(trained / _TRAINED_ON) == made:
        return
    aside = out / f".{TOKENIZER}"  # it has several files, and a run that is killed between two begins anew
    shutil.rmtree(aside, ignore_errors=True)
    trained_tokenizer(recipe, texts).save(aside)
    write_json(aside / _TRAINED_ON, made)
    shutil.rmtree(trained, ignore_errors=True)
    aside.rename(trained)


def trained_tokenizer(recipe: Recipe, texts: Iterable[str]) -> Tokenizer:
    """A new one of the recipe's kind. Raises as `train_tokenizer`."""
    said = recipe.tokenizer
    assert said.train is not None
    ends = None if said.train in ("wordpiece", "char", "word") else _ENDS
    return train_tokenizer(texts, said.train, said.vocab, special_tokens=ends, lowercase=said.lowercase)


def texts_of(recipe: Recipe, found: Iterable[records.Placed], bad: records.Bad) -> Iterator[str]:
    """All texts of records, lists' too, that the recipe's objective reads. `bad` hears of one that UTF-8 can't hold."""
    kind = OBJECTIVES[type(recipe.objective)]
    read = {*kind.fields, *kind.optional}.difference(kind.not_read)
    for placed in found:
        values = [value for field, value in placed.record.items() if field in read]
        texts = [one for value in values for one in (value if isinstance(value, list) else [value])]
        texts = [one for one in texts if isinstance(one, str)]
        try:
            for text in texts:
                check_text(text)
        except InputError as error:
            bad.report(placed.where, str(error))
            continue
        yield from texts
