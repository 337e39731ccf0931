"""Models on the Hugging Face hub: resolved to a commit, in the hub's own cache, each file checked by its content.

The cache layout is the documented one (https://huggingface.co/docs/hub/local-cache): `snapshots/<commit>/<file>` links
to `blobs/<etag>`, and the etag is the sha256 of a large file and the git hash of a small one.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import constants

from qkv.errors import CorruptFile, NotFound, QkvError
from qkv.load.folder import CONFIG_FILES, TOKENIZER_FILES, check_member, choose_weights, sentence_names, shard_names
from qkv.load.progress import watching, without_hub_bars
from qkv.load.verify import Expected, Marks, problems, set_aside
from qkv.paths import cache_root
from qkv.write import write_text

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubRef:
    """A model on the hub: `org/name` (or a bare old name), its branch, tag or commit, and a file where one is named."""

    repo: str
    revision: str = constants.DEFAULT_REVISION
    file: str | None = None

    def __str__(self) -> str:
        revision = "" if self.revision == constants.DEFAULT_REVISION else f"@{self.revision}"
        return f"{self.repo}{revision}" + (f":{self.file}" if self.file else "")

    @property
    def folder(self) -> Path:
        """The repository's folder in the hub's cache."""
        return Path(constants.HF_HUB_CACHE) / f"models--{self.repo.replace('/', '--')}"

    @property
    def pointer(self) -> Path:
        """The file that holds the commit of a branch or tag."""
        return self.folder / "refs" / self.revision

    def snapshot(self, commit: str) -> Path:
        """The folder with the files of one commit."""
        return self.folder / "snapshots" / commit

    def marks(self, commit: str) -> Marks:
        """Which files of one commit have been checked."""
        return Marks(cache_root() / "hub" / self.folder.name / f"{commit}.json", self.snapshot(commit))


@dataclass(frozen=True)
class HubModel:
    """What a HubRef was resolved to, and how, as a phrase."""

    kind: Literal["folder", "gguf"]
    path: Path
    commit: str
    how: str


@dataclass(frozen=True)
class _Listing:
    commit: str
    files: Mapping[str, Expected]


@dataclass(frozen=True)
class _Wanted:
    """Which files a reference needs: `first`, and then the shards that `index` (one of them) names."""

    kind: Literal["folder", "gguf"]
    first: tuple[str, ...]
    index: str | None = None


def fetch_hub(ref: HubRef, *, config_only: bool = False, progress: bool = True) -> HubModel:
    """Resolve `ref`, downloading what the cache lacks: everything but the weights where `config_only`.

    The hub is asked what the revision is now; a full commit that has been checked before, or HF_HUB_OFFLINE, opens no
    socket. Where the hub can't be reached, the cached commit is used and `how` says so. Raises NotFound (no such model,
    no access, nothing cached), UnsafeFile (only pickled weights), CorruptFile (damaged, also after a second download).
    """
    mode = f"file:{ref.file}" if ref.file else "config" if config_only else "weights"
    if constants.HF_HUB_OFFLINE:
        return _from_cache(ref, mode, "HF_HUB_OFFLINE is set", progress)
    if _COMMIT.fullmatch(ref.revision) and ref.marks(ref.revision).has(mode):
        return _from_cache(ref, mode, "checked before", progress)
    try:
        listing = _ask(ref)
    except _UnreachableError as error:
        return _from_cache(ref, mode, f"the hub could not be reached ({error})", progress)
    wanted = _choose(ref, listing.files, mode)
    if ref.marks(listing.commit).has(mode):
        _write_ref(ref, listing.commit)
        return _model(ref, listing.commit, wanted, "cached")
    names = list(wanted.first)
    _obtain(ref, listing, names, progress)
    if wanted.index is not None:
        shards = shard_names(ref.snapshot(listing.commit) / wanted.index)
        _require(shards, listing.files, f"{ref} (commit {listing.commit})")
        _obtain(ref, listing, shards, progress)
        names += shards
    ref.marks(listing.commit).add(mode, names)
    _write_ref(ref, listing.commit)
    return _model(ref, listing.commit, wanted, "from the hub")


def cached_hub() -> list[tuple[str, Path, int]]:
    """Models in the hub's cache as (reference with commit, folder, bytes)."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return []
    models = [repo for repo in repos if repo.repo_type == "model"]
    found = [(f"{r.repo_id}@{v.commit_hash}", v.snapshot_path, v.size_on_disk) for r in models for v in r.revisions]
    return sorted(found)


def _from_cache(ref: HubRef, mode: str, why: str, progress: bool) -> HubModel:
    """The cached commit of `ref`, without a socket; NotFound names the path that was looked at."""
    commit = ref.revision if _COMMIT.fullmatch(ref.revision) else _pointed_at(ref, why)
    snapshot = ref.snapshot(commit)
    names = [p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*") if p.is_file()]
    if not names:
        raise NotFound(f"{ref}: {why}, and it is not in the cache: nothing in {snapshot}")
    try:
        wanted = _choose(ref, names, mode)
        shards = shard_names(snapshot / wanted.index) if wanted.index else ()
        _require(shards, names, str(snapshot))
    except NotFound as error:
        raise NotFound(f"{error} ({why}, and the cached copy in {snapshot} is not complete)") from error
    if not ref.marks(commit).has(mode):
        needed = (*wanted.first, *shards)
        for name, problem in problems(snapshot, dict.fromkeys(needed, Expected()), progress).items():
            raise CorruptFile(f"{snapshot / name}: {problem}; {why}, so it can't be fetched again")
        ref.marks(commit).add(mode, needed)
    return _model(ref, commit, wanted, f"cached; {why}")


def _pointed_at(ref: HubRef, why: str) -> str:
    """The commit at which a branch or tag stood when the hub was last asked."""
    if not ref.pointer.is_file():
        raise NotFound(f"{ref}: {why}, and it is not in the cache: there is no {ref.pointer}")
    commit = ref.pointer.read_text(encoding="utf-8").strip()
    if not _COMMIT.fullmatch(commit):
        raise CorruptFile(f"{ref}: {why}, and {ref.pointer} holds {commit[:50]!r}, which is no commit; delete it")
    return commit


def _model(ref: HubRef, commit: str, wanted: _Wanted, how: str) -> HubModel:
    snapshot = ref.snapshot(commit)
    path = snapshot if wanted.kind == "folder" else snapshot / wanted.first[-1]
    return HubModel(wanted.kind, path, commit, how)


def _choose(ref: HubRef, names: Iterable[str], mode: str) -> _Wanted:
    present = set(names)
    if ref.file is not None:
        _require([ref.file], present, str(ref))
        return _Wanted("gguf", (ref.file,))
    small = (*(name for name in (*CONFIG_FILES, *TOKENIZER_FILES) if name in present), *sentence_names(present))
    if mode == "config" and CONFIG_FILES[0] in present:
        return _Wanted("folder", small)
    choice = choose_weights(present, where=str(ref))
    if choice.kind == "gguf":
        return _Wanted("gguf", (choice.name,))
    _require([CONFIG_FILES[0]], present, str(ref))
    return _Wanted("folder", (*small, choice.name), choice.name if choice.sharded else None)


def _require(needed: Iterable[str], present: Iterable[str], where: str) -> None:
    missing = sorted(set(needed) - set(present))
    if missing:
        raise NotFound(f"{where}: no {', '.join(missing)} there")


# --- asking and downloading ---


class _UnreachableError(Exception):
    """No answer, or one that may pass (a timeout, a 5xx, too many requests)."""


@contextmanager
def _explained(ref: HubRef) -> Iterator[None]:
    """Turn the hub library's errors into NotFound with a way out, or _UnreachableError."""
    from huggingface_hub import errors

    where = f"{constants.ENDPOINT}/{ref.repo}"
    try:
        yield
    except errors.GatedRepoError as error:
        way_out = "accept its terms there, then run `hf auth login` or set HF_TOKEN"
        raise NotFound(f"{ref}: {where} is gated; {way_out}") from error
    except errors.RepositoryNotFoundError as error:
        way_out = "check the spelling; for a private one run `hf auth login` or set HF_TOKEN"
        raise NotFound(f"{ref}: there is no {where}, or it is private; {way_out}") from error
    except errors.RevisionNotFoundError as error:
        raise NotFound(f"{ref}: {where} has no branch, tag or commit {ref.revision!r}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            raise NotFound(f"{ref}: {where} answered {status}; check the name, and the token in HF_TOKEN") from error
        raise _UnreachableError(f"HTTP {status}") from error
    except QkvError:
        raise
    except Exception as error:  # the library's HTTP client has changed twice; its errors share no base class
        lines = str(error).strip().splitlines() or [""]
        raise _UnreachableError(f"{type(error).__name__}: {lines[-1]}") from error


def _ask(ref: HubRef) -> _Listing:
    from huggingface_hub import HfApi

    with _explained(ref):
        timeout = constants.HF_HUB_ETAG_TIMEOUT
        info = HfApi().model_info(ref.repo, revision=ref.revision, files_metadata=True, timeout=timeout)
    if info.sha is None or not _COMMIT.fullmatch(info.sha):
        raise NotFound(f"{ref}: {constants.ENDPOINT} named no commit for it; is HF_ENDPOINT a hub?")
    files = {}
    for sibling in info.siblings or ():
        files[sibling.rfilename] = Expected(sibling.size, sibling.lfs.sha256 if sibling.lfs else sibling.blob_id)
    return _Listing(info.sha, files)


def _obtain(ref: HubRef, listing: _Listing, names: Iterable[str], progress: bool) -> None:
    """Have `names` of the commit in its snapshot, whole: what is damaged is set aside and fetched again once."""
    snapshot = ref.snapshot(listing.commit)
    expected = {name: listing.files[name] for name in names}
    for name in expected:
        check_member(name, where=str(ref))
    _download(ref, listing, list(expected), progress)
    damaged = problems(snapshot, expected, progress)
    aside = [set_aside(snapshot / name) for name in damaged]
    if not damaged:
        return
    _download(ref, listing, list(damaged), progress)
    for name, problem in problems(snapshot, {name: expected[name] for name in damaged}, progress).items():
        left = set_aside(snapshot / name)
        raise CorruptFile(f"{ref}: {name} {problem}, also after a second download; it was moved to {left}")
    for path in aside:
        path.unlink(missing_ok=True)


def _download(ref: HubRef, listing: _Listing, names: list[str], progress: bool) -> None:
    from huggingface_hub import snapshot_download

    snapshot = ref.snapshot(listing.commit)
    missing = [name for name in names if not (snapshot / name).is_file()]
    if not missing:
        return
    total = sum(listing.files[name].size or 0 for name in missing)
    start = _blob_bytes(ref)
    own_bar = progress and constants.HF_HUB_DISABLE_PROGRESS_BARS is None
    try:
        with (
            _explained(ref),
            without_hub_bars(),
            watching(f"downloading {ref}", lambda: _blob_bytes(ref) - start, lambda: total or None, enabled=own_bar),
        ):
            patterns = [glob.escape(name) for name in missing]
            snapshot_download(ref.repo, revision=listing.commit, allow_patterns=patterns)
    except _UnreachableError as error:
        raise NotFound(f"{ref}: the download broke off ({error}); run it again, whole files are kept") from error
    _require(missing, [name for name in missing if (snapshot / name).is_file()], str(snapshot))


def _blob_bytes(ref: HubRef) -> int:
    total = 0
    with suppress(OSError), os.scandir(ref.folder / "blobs") as entries:
        for entry in entries:
            with suppress(OSError):  # renamed between listing and looking
                total += entry.stat().st_size
    return total


def _write_ref(ref: HubRef, commit: str) -> None:
    """Remember which commit a branch stands at, as the library does, so that it is found offline."""
    if _COMMIT.fullmatch(ref.revision) or (ref.pointer.is_file() and ref.pointer.read_text(encoding="utf-8") == commit):
        return
    with suppress(OSError):  # a read-only cache: only offline use loses by it
        ref.pointer.parent.mkdir(parents=True, exist_ok=True)
        write_text(ref.pointer, commit)
