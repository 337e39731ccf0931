"""Checkpoints that a kill, a full disk or a flipped bit can't turn into a wrong resume.

    checkpoints/
      step-00000100/   weights.safetensors, optimizer.safetensors, …: one file a stem; where ranks hold rows each,
                       weights-00001-of-00002.safetensors, …
                       state.json, manifest.json: size and sha256 of every other file
      tmp-…            unfinished, or being removed: never read, and removed at the next save
      step-00000100.old   a step that is being saved again: read where the new one isn't whole
      aside-step-…     steps that a resume left behind

A folder gets its name `step-…` once all in it is on the disk, its manifest last. `folder` is the one that holds these.
"""

import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from qkv.errors import CorruptFile, InputError, NotFound, QkvError
from qkv.strict_json import read_json
from qkv.train import manifest
from qkv.train.parallel import ALONE, Elsewhere, World, together
from qkv.train.slices import Slice, Slices, Stamp, slice_of, write_bytes, write_slices

Held = Mapping[str, Mapping[str, Slice]]  # by stem and name


CHECKPOINTS = "checkpoints"  # their folder, in a run's own


def begun(out: Path) -> bool:
    """Whether a run's folder holds checkpoints."""
    return any((out / CHECKPOINTS).glob("step-*"))


class Unsaved(QkvError):
    """A checkpoint couldn't be written. Those before it are as they were, and nothing half is left."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: every file is what its manifest says."""

    path: Path
    step: int
    state: dict[str, Any]
    files: tuple[str, ...]

    @property
    def stems(self) -> tuple[str, ...]:
        """What `load` and `read` take: weights, optimizer, …"""
        return tuple(sorted({stem for stem in map(manifest.stem_of, self.files) if stem}))

    def load(self, stem: str, into: Mapping[str, Tensor]) -> None:
        """Fill tensors in place, of a rank only its rows, however many ranks wrote. NotFound: no such stem.
        WeightError, before any is touched: names on one side only, another shape or dtype."""
        self._open(stem).load(into)

    def read(self, stem: str) -> dict[str, Tensor]:
        """All tensors of a stem, whole, in mapped memory. NotFound: no such stem."""
        return self._open(stem).read()

    def _open(self, stem: str) -> Slices:
        own = [self.path / name for name in self.files if manifest.stem_of(name) == stem]
        if not own:
            raise NotFound(f"{self.path} holds no {stem}, only {', '.join(self.stems) or 'its state'}")
        return Slices(own, f"{self.path}/{stem}")


# --- saving ---------------------------------------------------------------------------------------------------------


def save(
    folder: str | Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    keep: int,
    protect: Collection[int] = (),
    world: World = ALONE,
) -> Path:
    """Write a checkpoint, by all ranks together; once it has been read again, those up to this step beyond the newest
    `keep` are removed, but for the steps of `protect`. Only the holder of the run's lock may call it.

    tensors: by stem (a word) and name; of sharded ones each rank writes its rows, of plain ones rank 0's count.
    state: of JSON's kinds, keys are strings; rank 0's counts (`parallel.gather` brings what differs by rank).
    Unsaved: the disk is full or fails, on any rank. InputError: a stem or a state that can't be kept."""
    folder = Path(folder)
    temporary = folder / f"tmp-{manifest.name_of(step)}"
    for stem in tensors:
        manifest.check_stem(stem)
    manifest.check_json(state, "state")
    held = {stem: {name: slice_of(tensor) for name, tensor in own.items()} for stem, own in tensors.items()}
    stamps: dict[str, Stamp] = {}
    try:
        together(world, lambda: _begin(temporary) if world.first else None)
        for written in together(world, lambda: _write(temporary, held, world)):
            stamps.update({name: Stamp(*stamp) for name, stamp in written.items()})
        together(world, lambda: _finish(temporary, step, stamps, state) if world.first else None)
        together(world, lambda: _retain(folder, step, keep, protect) if world.first else None)
    except Elsewhere as error:
        raise Unsaved(f"{folder}: the checkpoint of step {step} can't be written: {error}") from error
    except OSError as error:
        raise Unsaved(_no_room(folder, step, held, error)) from error
    finally:
        if world.first:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder / manifest.name_of(step)


def check_room(folder: str | Path, needed: int) -> None:
    """Before the first step: can a checkpoint of so many bytes be written here? InputError: it can't."""
    folder = Path(folder)
    probe = folder / f"tmp-probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(probe, iter([b"room?"]))
        probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise InputError(f"{folder} can't be written: {error.strerror}; choose another folder for the run") from error
    if free < needed:
        raise InputError(f"a checkpoint takes {_size(needed)}, and {folder} has room for {_size(free)}: make room")


def set_aside(folder: str | Path, step: int, say: Callable[[str], None]) -> None:
    """After a resume from `step`, by rank 0: later checkpoints, of another course or broken, are renamed `aside-…`, so
    that none is taken for the newest of this one. They are neither read nor removed any more."""
    for path, number in manifest.steps(Path(folder)):
        if number > step:
            tried = (path.with_name(f"aside-{path.name}{f'-{i}' if i else ''}") for i in range(10**6))
            target = next(name for name in tried if not name.exists())
            path.rename(target)
            say(f"{path} is beyond step {step}, from which this run goes on: it is now {target.name}")


def _begin(temporary: Path) -> None:
    """An empty folder; what killed runs left is gone, or has its name again."""
    temporary.parent.mkdir(parents=True, exist_ok=True)
    for path, step in manifest.steps(temporary.parent):
        if not (own := path.with_name(manifest.name_of(step))).exists():
            path.rename(own)
    for left in temporary.parent.glob("tmp-*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    temporary.mkdir()


def _write(temporary: Path, held: Held, world: World) -> dict[str, Stamp]:
    """This rank's files."""
    stamps = {}
    for stem, slices in held.items():
        sharded = any(part.parts > 1 for part in slices.values())
        own = {name: part for name, part in slices.items() if world.first or (part.parts > 1 and len(part.rows))}
        if sharded or world.first:
            file = f"{stem}-{world.rank + 1:05}-of-{world.size:05}" if sharded else stem
            stamps[f"{file}.safetensors"] = write_slices(temporary / f"{file}.safetensors", own)
    return stamps


def _finish(temporary: Path, step: int, stamps: dict[str, Stamp], state: Mapping[str, Any]) -> None:
    """By rank 0, once all ranks' files are on the disk."""
    path = temporary.with_name(manifest.name_of(step))
    stamps[manifest.STATE] = write_bytes(temporary / manifest.STATE, iter([json.dumps(state).encode()]))
    manifest.write_manifest(temporary, step, stamps)
    old = _make_way(path, step)
    temporary.rename(path)
    manifest.sync(path.parent)
    try:
        manifest.check_whole(path, step)
    except (CorruptFile, NotFound) as error:
        _remove(path)
        if old is not None:
            old.rename(path)
        raise Unsaved(f"{error}, just after it was written: the disk or the memory is at fault") from error


def _make_way(path: Path, step: int) -> Path | None:
    """What a checkpoint of the same step is until the new one is whole: `.old`. None: it was broken or not there."""
    old = path.with_name(f"{path.name}.old")
    if not path.exists():
        return old if old.exists() else None
    try:
        manifest.check_whole(path, step)
    except (CorruptFile, NotFound):
        _remove(path)
        return old if old.exists() else None
    if old.exists():
        _remove(old)
    return path.rename(old)


def _retain(folder: Path, step: int, keep: int, protect: Collection[int]) -> None:
    """By rank 0, once the new one is known to be whole. Steps beyond it belong to another course of the run."""
    there = [(path, number) for path, number in manifest.steps(folder) if number <= step]
    kept = {*sorted({number for _, number in there})[-keep:], *protect}
    for path, number in there:
        if number not in kept or path.name != manifest.name_of(number):
            _remove(path)
    manifest.sync(folder)


def _remove(path: Path) -> None:
    """Through another name, so that no kill leaves half of it under its own."""
    gone = path.with_name(f"tmp-gone-{path.name}")
    path.rename(gone)
    shutil.rmtree(gone)


def _no_room(folder: Path, step: int, held: Held, error: OSError) -> str:
    needed = sum(part.rows.nbytes for slices in held.values() for part in slices.values())
    free = _size(shutil.disk_usage(folder).free) if folder.exists() else "nothing"
    return (
        f"{folder}: the checkpoint of step {step} can't be written ({error.strerror or error}): it takes "
        f"{_size(needed)}, and {free} is free. Those before it are as they were: make room (or raise the limit on the "
        "size of files) and resume"
    )


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


# --- finding --------------------------------------------------------------------------------------------------------


def newest(folder: str | Path, say: Callable[[str], None], world: World = ALONE) -> Checkpoint | None:
    """The newest whole checkpoint; None: there was never one. What is passed over is told to `say`, by file and reason.
    Rank 0 looks, and the others take the same.

    CorruptFile: there are checkpoints and none is whole."""
    return _same(world, Path(folder), lambda: _newest(Path(folder), say))


def at(folder: str | Path, step: int, world: World = ALONE) -> Checkpoint:
    """The checkpoint of one step. NotFound lists those that exist; CorruptFile names the broken file."""
    found = _same(world, Path(folder), lambda: _at(Path(folder), step))
    assert found is not None
    return found


def _same(world: World, folder: Path, look: Callable[[], tuple[Path, int] | None]) -> Checkpoint | None:
    """What rank 0 finds, on all ranks."""

    def look_first() -> list[Any] | None:
        found = look() if world.first else None
        return None if found is None else [found[0].name, found[1]]

    answer = together(world, look_first)[0]
    if answer is None:
        return None
    path, step = folder / answer[0], answer[1]
    files = tuple(manifest.listed(path, step))
    return Checkpoint(path, step, read_json(path / manifest.STATE, manifest.MAX_STATE), files)


def _newest(folder: Path, say: Callable[[str], None]) -> tuple[Path, int] | None:
    broken: list[str] = []
    for left in sorted(folder.glob("tmp-*")):
        say(f"{left} is what a stopped run left of an unfinished save: it is not read")
    for path, step in manifest.steps(folder):
        try:
            manifest.check_whole(path, step)
        except (CorruptFile, NotFound) as error:
            broken.append(str(error))
            say(f"{path} is broken, and the one before it is taken: {error}")
        else:
            return path, step
    if broken:
        raise CorruptFile(
            "\n  ".join([f"{folder}: no checkpoint is whole; to start afresh, choose another folder:", *broken])
        )
    return None


def _at(folder: Path, step: int) -> tuple[Path, int]:
    there = manifest.steps(folder)
    for path, number in there:
        if number == step:
            manifest.check_whole(path, step)
            return path, step
    listed = f"there are {', '.join(map(str, sorted({number for _, number in there})))}" if there else "there is none"
    raise NotFound(f"{folder} has no checkpoint of step {step}: {listed}")
