"""How much memory an engine takes, and how many tokens its cache then holds: known before anything is allocated."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from qkv.errors import InputError
from qkv.generate.limits import totals
from qkv.generate.settings import Settings
from qkv.model import Model
from qkv.nn.paged import bytes_a_page
from qkv.serve.scheduler import MOST_RUNNING

SHARE = 4  # the cache may take one part in so many of the memory that is free, if nobody says how large it is
UNSTATED = 4096  # tokens: what counts as the context of a model that states none
LEAST = 2  # pages
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
_SIZE = re.compile(r"([0-9]{1,15})(?: ?([KMG]I?)?B)?", re.IGNORECASE)


@dataclass(frozen=True)
class Memory:
    """What an engine takes, in bytes where not said otherwise.

    page: tokens in one; pages: how many there are. free: what there was to begin with, on the model's device (None: the
    system doesn't tell). context: tokens of one sequence that the model allows (None: it states none)."""

    weights: int
    page: int
    pages: int
    page_bytes: int
    free: int | None
    context: int | None

    @property
    def tokens(self) -> int:
        """That all pages hold together."""
        return self.page * self.pages

    @property
    def cache_bytes(self) -> int:
        """Of all pages."""
        return self.pages * self.page_bytes

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that there is room for."""
        return self.tokens if self.context is None else min(self.context, self.tokens)

    @property
    def sequences(self) -> float:
        """How many sequences of that length there is room for."""
        return self.tokens / self.longest if self.longest else 0.0

    def lines(self) -> list[str]:
        """For a person."""
        stated = "states no context" if self.context is None else f"context of {self.context:,} tokens"
        lines = [f"weights  {size(self.weights)}"]
        if self.pages:
            lines += [
                f"cache    {size(self.cache_bytes)}: {self.tokens:,} tokens in {self.pages:,} pages of {self.page},"
                f" {size(self.page_bytes // self.page)} a token",
                f"room     {self.sequences:.1f} sequences of {self.longest:,} tokens (the model's: {stated})",
            ]
        if self.free is not None:
            lines.append(f"free     {size(self.free)} before the cache is made")
        return lines


def plan_memory(
    model: Model,
    *,
    cache: int | str | None = None,
    page: int = 16,
    most_running: int = MOST_RUNNING,
    generates: bool = True,
) -> Memory:
    """What an engine of this model would take. `cache`: tokens (a number or "4096") or bytes ("256MB"); None: what
    `most_running` sequences of the whole context need, but at most a quarter of the memory that is free. A model that
    doesn't generate needs none. InputError: no such size, or too little for two pages."""
    context = min((most for most, _ in totals(model.spec, Settings())), default=None) if generates else None
    weights = sum(x.nbytes for x in (*model.parameters(), *model.buffers()))
    free = free_memory(model.device)
    if not generates:
        return Memory(weights, page, 0, 0, free, None)
    a_page = bytes_a_page(model, page)
    if cache is None:
        pages = most_running * -(-(context or UNSTATED) // page)
        pages = pages if free is None else min(pages, free // SHARE // a_page)
    else:
        count, unit = parse_cache(cache)
        pages = -(-count // page) if unit == "tokens" else count // a_page
    if pages < LEAST:
        asked = "a quarter of the free memory" if cache is None else f"{cache}"
        raise InputError(
            f"cache: {asked} is less than {LEAST} pages of {page} tokens, which take {size(LEAST * a_page)}: give more"
        )
    return Memory(weights, page, pages, a_page, free, context)


def parse_cache(said: int | str) -> tuple[int, str]:
    """4096 or "4096" → (4096, "tokens"); "256MB", "1GiB" → (…, "bytes"). InputError: neither."""
    found = _SIZE.fullmatch(str(said).strip()) if isinstance(said, int | str) and not isinstance(said, bool) else None
    if found is None:
        raise InputError(f"cache: give tokens (4096) or bytes (256MB, 1GiB), got {said!r:.80}")
    if not str(said).strip().upper().endswith("B"):
        return int(found[1]), "tokens"
    return int(found[1]) * UNITS[(found[2] or "").upper()], "bytes"


def size(count: int) -> str:
    """1536 → "1.5 KB"."""
    value = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be taken now on a device; None: the system doesn't tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [count for count in (_available(), _left_of_container()) if count is not None]
    return min(found, default=None)


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pass
    try:  # elsewhere: half of all
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return None


def _left_of_container(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container's limit (control groups, version 2) leaves."""
    try:
        most = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = (folder / "memory.current").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return max(0, int(most) - int(used)) if most.isdecimal() and used.isdecimal() else None
