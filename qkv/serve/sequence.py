"""One answer in the making: its tokens, how many of them the model has read, and the pages with their keys."""

from collections.abc import Sequence as Ids
from typing import Literal

from qkv.errors import InputError
from qkv.serve.pages import Inconsistent
from qkv.serve.prefix import Prefix

State = Literal["waiting", "running", "finished"]


class Sequence:
    """A prompt and the answer to it so far.

    `id`         unlike that of all others that live
    `limit`      the most tokens of its answer; 0: the prompt is only read
    `salt`       only sequences of the same salt share pages through the index
    `tenant`     on whose account it runs: the queue is fair over tenants
    `source`     what an encoder reads, for an encoder–decoder model; its pages are `source_pages`
    `reuse`      False: all of its prompt is read, though its keys may be there: each token's logits are wanted
    `apart`      its answer's keys are not quite those that the same tokens have in a prompt, so that only its prompt's
                 pages are shared through the index
    `ids`        prompt and answer; `read` of them have their keys in `pages`, token i in page i // size
    `cached`     tokens whose keys were there when it was first admitted
    `preempted`  how often it lost its pages: it then reads all of `ids` again

    InputError: no prompt, or a negative limit. The scheduler alone changes anything but `append`."""

    __slots__ = (
        "apart",
        "cached",
        "charged",
        "id",
        "ids",
        "limit",
        "order",
        "pages",
        "passed",
        "preempted",
        "prefix",
        "prompt",
        "read",
        "remembered",
        "reuse",
        "room",
        "salt",
        "source",
        "source_pages",
        "state",
        "tenant",
    )

    def __init__(
        self,
        id: int,
        prompt: Ids[int],
        *,
        limit: int,
        salt: bytes = b"",
        tenant: str = "",
        source: Ids[int] = (),
        reuse: bool = True,
        apart: bool = False,
    ) -> None:
        if not prompt:
            raise InputError("a sequence needs a prompt of one token at least")
        if limit < 0:
            raise InputError(f"an answer can't have {limit} tokens; ask for 0 or more")
        self.id, self.limit = id, limit
        self.prompt, self.source = tuple(prompt), tuple(source)
        self.salt, self.tenant = salt, tenant
        self.reuse = reuse and not source  # a decoder's keys are of its tokens and of what the encoder read
        self.apart = apart
        self.ids = list(self.prompt)
        self.read = self.cached = self.preempted = 0
        self.pages: list[int] = []
        self.source_pages: list[int] = []
        self.room = 0  # tokens that it may read without asking for pages
        self.state: State = "waiting"
        self.order: int | None = None  # when it was first admitted, among all
        self.passed = 0  # how many were admitted before it though it was their turn later
        self.charged = -len(self.source)  # of `ids`, and before them of its source: what its tenant has paid for
        self.prefix: Prefix | None = None  # of the last page that the index was told of
        self.remembered = 0  # pages that the index was told of

    def __repr__(self) -> str:
        return f"Sequence({self.id}, {self.state}, {self.read} of {len(self.ids)} read)"

    @property
    def waiting(self) -> int:
        """Tokens that the model has yet to read."""
        return len(self.ids) - self.read

    @property
    def made(self) -> int:
        """Tokens of the answer."""
        return len(self.ids) - len(self.prompt)

    @property
    def shared(self) -> int:
        """How many of its tokens, its first ones, have keys that others can use, and it those of others."""
        return len(self.prompt) if self.apart else len(self.ids)

    @property
    def longest(self) -> int:
        """The most tokens whose keys it may have to hold: the answer's last is never read."""
        return len(self.prompt) + max(self.limit, 1) - 1

    def append(self, token: int) -> None:
        """One more token of the answer. Inconsistent: it is finished, or has all that it asked for."""
        if self.state == "finished" or self.made >= self.limit:
            raise Inconsistent(f"{self} takes no more tokens")
        self.ids.append(token)
