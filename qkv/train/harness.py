"""A model in this process for lm-eval, EleutherAI's harness of evaluation tasks (extra: `eval`).

    python -m qkv.train.harness --model qkv --model_args pretrained=smollm2 --tasks lambada_openai,hellaswag

is lm-eval's own command with `qkv` among its models. Over a server the same tasks run with lm-eval's own
`local-completions`; the tokens are read by the same steps, so the scores are the same.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from qkv import spec
from qkv.errors import InputError
from qkv.generate.step import Reader, new_cache
from qkv.inputs.text import Tokenizer
from qkv.model import Model, load

CHUNK = 512  # tokens that a step reads
BATCH = 16  # texts that are generated at once
LONGEST = 2048  # tokens, for a model whose positions set no limit
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first that is there counts
_SAME = ("top_k", "top_p", "min_p", "seed", "repetition_penalty")


class Pair(NamedTuple):
    """What is read, and how many of its last tokens are scored. At least one stands before these."""

    ids: list[int]
    scored: int


@register_model("qkv")
class Harness(TemplateLM):  # type: ignore[misc]
    """`--model_args pretrained=…,dtype=…,device=…,max_length=…,truncate=true`; `pretrained` may also be a Model.

    A text longer than the context is an InputError, or with `truncate` loses its beginning, as the harness's other
    models do. An empty context is BOS, or where there is none EOS. InputError: a model that doesn't continue texts, or
    has no tokenizer."""

    def __init__(
        self,
        pretrained: str | Model,
        dtype: str | None = None,
        device: str | None = None,
        batch_size: int | str = BATCH,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        truncate: bool = False,
    ) -> None:
        super().__init__()
        self.model = pretrained if isinstance(pretrained, Model) else load(pretrained, dtype, device)
        if not isinstance(self.model.spec.head, spec.LMHead) or self.model.encoder is not None:
            raise InputError("lm-eval asks how a decoder continues texts, which this model isn't")
        if self.model.tokenizer is None:
            raise InputError("lm-eval sends texts, and this model has no tokenizer")
        self._words: Tokenizer = self.model.tokenizer
        self._batch = BATCH if str(batch_size).startswith("auto") else int(batch_size)
        self._most = int(max_length or self.model.spec.context or LONGEST)
        self._truncate = truncate
        self._read = Reader(self.model)

    # ---------------------------------------------------------------- what TemplateLM asks

    @property
    def eot_token_id(self) -> int:
        """EOS. InputError: there is none."""
        ends = self.model.settings().stop_tokens
        if not ends:
            raise InputError("an empty context is read as BOS or EOS, and this model has neither")
        return ends[0]

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is read as."""
        return self.eot_token_id if self._words.bos is None else self._words.bos

    @property
    def max_length(self) -> int:
        """Tokens of context and continuation together."""
        return self._most

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids, with what this tokenizer puts around a text unless told not to. Special tokens written in the text are
        text."""
        return self._words.encode(string, special=add_special_tokens is not False)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """[(texts, context's ids, continuation's ids)] → the continuations' log-probabilities, and whether each is what
        greedy decoding gives."""
        pairs = [self._fitting(Pair([*context, *scored], len(scored))) for _, context, scored in requests]
        found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        with tqdm(total=len(pairs), desc="Reading", disable=disable_tqdm) as bar:
            for group in _groups(pairs):
                bar.update(len(group))
                for place, score in zip(group, self._score([pairs[place] for place in group]), strict=True):
                    found[place] = score
                    if requests[place][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[place][0], score)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text, in windows of the context: every token counts once."""
        found = []
        for (text,) in tqdm([request.args for request in requests], disable=disable_tqdm):
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self._most - 1, 1)
            parts = [(None, *make_disjoint_window(window)) for window in windows]
            found.append(sum(score for score, _ in self._loglikelihood_tokens(parts, disable_tqdm=True)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), found[-1])
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Each context's continuation up to one of its stop texts."""
        alike: dict[str, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            alike[repr(sorted(request.args[1].items()))].append(place)
        found = [""] * len(requests)
        with tqdm(total=len(requests), desc="Generating", disable=disable_tqdm) as bar:
            for places in alike.values():
                settings = settings_of(requests[places[0]].args[1])
                for start in range(0, len(places), self._batch):
                    group = places[start : start + self._batch]
                    prompts = [self._prompt(requests[place].args[0], settings["max_tokens"]) for place in group]
                    for place, answer in zip(group, self.model.generate(prompts, **settings), strict=True):
                        found[place] = answer.text
                        self.cache_hook.add_partial("generate_until", requests[place].args, answer.text)
                    bar.update(len(group))
        return found

    # ---------------------------------------------------------------- how

    def _prompt(self, context: str, more: int) -> list[int]:
        """The ids of a context that an answer of `more` tokens has room behind."""
        ids = self.tok_encode(context) or [self.prefix_token_id]
        return self._cut(ids, self._most - more, f"a context of {len(ids)} tokens and an answer of {more}")

    def _fitting(self, pair: Pair) -> Pair:
        """A pair that the model can read: its last token is predicted and not read."""
        ids = self._cut(pair.ids, self._most + 1, f"context and continuation of {len(pair.ids)} tokens")
        return Pair(ids, min(pair.scored, len(ids) - 1))

    def _cut(self, ids: list[int], room: int, what: str) -> list[int]:
        if len(ids) <= room:
            return ids
        if not self._truncate or room < 1:
            raise InputError(
                f"{what} don't fit into {self._most}: give a larger max_length, or truncate=true, which drops what a "
                "context begins with"
            )
        return ids[-room:]

    def _score(self, group: Sequence[Pair]) -> list[tuple[float, bool]]:
        """Several pairs that fit into a step together, or one of any length."""
        rows = [pair.ids[:-1] for pair in group]
        cache = new_cache(self.model, [[]] * len(rows), max(map(len, rows)), CHUNK)
        sums, greedy = [0.0] * len(rows), [True] * len(rows)
        for start in range(0, max(map(len, rows)), CHUNK):
            chunks = [row[start : start + CHUNK] for row in rows]
            ends = [start + len(chunk) for chunk in chunks]
            begins = [max(start, len(pair.ids) - 1 - pair.scored) for pair in group]
            wanted = [max(0, end - begin) for end, begin in zip(ends, begins, strict=True)]
            logs = self._read(chunks, cache, wanted, list(map(len, chunks))).float().log_softmax(-1)
            for i, (own, begin, end) in enumerate(zip(torch.split(logs, wanted), begins, ends, strict=True)):
                targets = own.new_tensor(group[i].ids[begin + 1 : end + 1]).long()
                sums[i] += float(own.gather(1, targets[:, None]).double().sum())
                greedy[i] &= bool((own.argmax(1) == targets).all())
        return list(zip(sums, greedy, strict=True))


def settings_of(said: Mapping[str, Any]) -> dict[str, Any]:
    """What a task says of generating, as `Model.generate` takes it; greedy unless it says otherwise. InputError: it
    says what has no meaning here."""
    rest = dict(said)
    until = rest.pop("until", None) or ()
    lengths = [rest.pop(name) for name in _LENGTHS if name in rest]
    sampled, temperature = rest.pop("do_sample", None), float(rest.pop("temperature", None) or 0.0)
    if sampled and not temperature:
        temperature = 1.0
    settings = {name: rest.pop(name) for name in _SAME if name in rest}
    if rest:
        raise InputError(f"generation_kwargs: {', '.join(rest)} has no meaning for this model")
    return {
        **settings,
        "max_tokens": int(lengths[0]) if lengths else 256,
        "temperature": 0.0 if sampled is False else temperature,
        "stop": [until] if isinstance(until, str) else [text for text in until if text],
    }


def _groups(pairs: Sequence[Pair]) -> Iterator[list[int]]:
    """The places of pairs that one step can read together, longest first; longer ones alone. Those without a token to
    score are left out."""
    group: list[int] = []
    room = CHUNK
    some = [place for place, pair in enumerate(pairs) if pair.scored]
    for place in sorted(some, key=lambda place: -len(pairs[place].ids)):
        size = len(pairs[place].ids) - 1
        if group and size > room:
            yield group
            group, room = [], CHUNK
        group.append(place)
        room -= size
    if group:
        yield group


def main() -> None:
    """lm-eval's command."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
