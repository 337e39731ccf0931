"""A kill at any instant, a full disk, a broken file: the newest whole checkpoint is found, and never a torn one."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qkv.errors import CorruptFile, InputError, NotFound, WeightError
from qkv.train import checkpoint, manifest, parallel, slices
from qkv.train.checkpoint import Checkpoint, Unsaved, at, check_room, newest, save, set_aside
from qkv.train.parallel import World
from tests.tiny import tiny
from tests.train import ranks
from tests.train.test_lock import read_only
from tests.train.test_parallel import Step, feeds

HERE = "tests.train.test_checkpoint"


def tensors(step: int) -> dict[str, dict[str, Tensor]]:
    """What a run of that step holds."""
    draw = torch.Generator().manual_seed(step)
    weights = {f"w{i}": torch.randn(7, 5, generator=draw) for i in range(3)}
    return {"weights": weights, "optimizer": {"step": torch.tensor(float(step))}}


def put(folder: Path, step: int, keep: int = 2, protect: tuple[int, ...] = ()) -> Path:
    return save(folder, step, tensors(step), {"step": step, "order": [step, 0.1]}, keep=keep, protect=protect)


def silent(text: str) -> None:
    raise AssertionError(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def check_right(found: Checkpoint) -> None:
    """It holds what was saved at its step, in every bit."""
    assert found.state == {"step": found.step, "order": [found.step, 0.1]}
    assert found.stems == ("optimizer", "weights")
    for stem, right in tensors(found.step).items():
        held = found.read(stem)
        assert held.keys() == right.keys()
        assert all(torch.equal(held[name], right[name]) for name in right)


# --- saved and found ------------------------------------------------------------------------------------------------


def test_what_is_saved_is_found(tmp_path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    path = put(folder, 100)
    assert path == folder / "step-00000100"
    assert names(path) == ["manifest.json", "optimizer.safetensors", "state.json", "weights.safetensors"]
    found = newest(folder, silent)
    assert found is not None
    assert (found.path, found.step) == (path, 100)
    check_right(found)
    check_right(at(folder, 100))


def test_nothing_saved_is_no_checkpoint(tmp_path) -> None:
    assert newest(tmp_path, silent) is None
    assert newest(tmp_path / "nowhere", silent) is None


def test_loading_is_in_place_and_strict(tmp_path) -> None:
    model, other = tiny(), tiny()
    save(tmp_path, 1, {"weights": dict(model.named_parameters())}, {}, keep=1)
    addresses = [weight.data_ptr() for weight in other.parameters()]
    found = at(tmp_path, 1)
    found.load("weights", dict(other.named_parameters()))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert addresses == [weight.data_ptr() for weight in other.parameters()]
    with pytest.raises(WeightError, match="step-00000001/weights doesn't fit:\n  missing: more"):
        found.load("weights", {**dict(other.named_parameters()), "more": torch.zeros(1)})
    with pytest.raises(NotFound, match="step-00000001 holds no ema, only weights"):
        found.read("ema")


def test_a_subset_of_parameters(tmp_path) -> None:
    model = tiny()
    chosen = {name: weight for name, weight in model.named_parameters() if ".q." in name}
    save(tmp_path, 1, {"adapter": chosen}, {}, keep=1)
    assert at(tmp_path, 1).read("adapter").keys() == chosen.keys()


def test_the_last_few_and_the_protected_stay(tmp_path) -> None:
    for step in range(1, 7):
        put(tmp_path, step, keep=2, protect=(2, 6))
    assert names(tmp_path) == ["step-00000002", "step-00000005", "step-00000006"]


def test_no_old_one_goes_before_the_new_one_is_verified(tmp_path, monkeypatch) -> None:
    put(tmp_path, 1, keep=1)
    flip = lambda path, step: (path / "weights.safetensors").write_bytes(b"flipped")  # noqa: E731
    real = manifest.check_whole
    monkeypatch.setattr(manifest, "check_whole", lambda path, step: (flip(path, step), real(path, step))[1])
    with pytest.raises(Unsaved, match=r"step-00000002/weights\.safetensors: 7 bytes, .* just after it was written"):
        put(tmp_path, 2, keep=1)
    monkeypatch.undo()
    assert names(tmp_path) == ["step-00000001"]
    check_right(at(tmp_path, 1))


def test_the_same_step_again(tmp_path) -> None:
    put(tmp_path, 1, keep=1)
    put(tmp_path, 1, keep=1)
    assert names(tmp_path) == ["step-00000001"]
    (tmp_path / "step-00000001" / "state.json").write_text("{}")
    put(tmp_path, 1, keep=1)
    check_right(at(tmp_path, 1))


def test_leftovers_are_told_and_removed_at_the_next_save(tmp_path) -> None:
    (tmp_path / "tmp-step-00000009").mkdir()
    (tmp_path / "tmp-step-00000009" / "weights.safetensors").write_text("half")
    (tmp_path / "tmp-probe-1").write_text("")
    said: list[str] = []
    assert newest(tmp_path, said.append) is None
    assert len(said) == 2
    assert "tmp-step-00000009 is what a stopped run left of an unfinished save" in said[1]
    put(tmp_path, 1)
    assert names(tmp_path) == ["step-00000001"]


@pytest.mark.parametrize("bad", [{"a": {1: 2}}, {"a": float("inf")}])
def test_a_state_that_would_not_come_back(tmp_path, bad) -> None:
    with pytest.raises(InputError, match="state"):
        save(tmp_path, 1, {}, bad, keep=1)
    with pytest.raises(InputError, match="must be called by a word"):
        save(tmp_path, 1, {"../weights": {}}, {}, keep=1)
    assert names(tmp_path) == []


# --- broken ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_a_broken_file_is_named_and_the_one_before_is_taken(tmp_path, file: str, how: str) -> None:
    put(tmp_path, 1)
    path = put(tmp_path, 2) / file
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 16
    {"flip": lambda: path.write_bytes(raw), "cut": lambda: path.write_bytes(raw[:-9]), "gone": path.unlink}[how]()
    said: list[str] = []
    found = newest(tmp_path, said.append)
    assert found is not None
    assert found.step == 1
    check_right(found)
    assert len(said) == 1
    assert f"step-00000002 is broken, and the one before it is taken: {path}" in said[0]
    with pytest.raises((CorruptFile, NotFound), match=f"step-00000002/{file}"):
        at(tmp_path, 2)


def test_none_whole_is_no_fresh_start(tmp_path) -> None:
    for step in (1, 2):
        (put(tmp_path, step) / "state.json").unlink()
    with pytest.raises(CorruptFile, match="no checkpoint is whole; to start afresh, choose another folder:") as error:
        newest(tmp_path, lambda text: None)
    assert str(error.value).count("state.json") == 2


def test_a_step_that_is_not_there(tmp_path) -> None:
    with pytest.raises(NotFound, match="no checkpoint of step 5: there is none"):
        at(tmp_path, 5)
    put(tmp_path, 1)
    put(tmp_path, 4)
    with pytest.raises(NotFound, match="no checkpoint of step 5: there are 1, 4"):
        at(tmp_path, 5)


def test_another_course_is_set_aside(tmp_path) -> None:
    for step in (1, 2, 3):
        put(tmp_path, step, keep=3)
    said: list[str] = []
    set_aside(tmp_path, 1, said.append)
    assert len(said) == 2
    put(tmp_path, 2, keep=3)
    set_aside(tmp_path, 1, said.append)
    put(tmp_path, 2, keep=1)
    assert names(tmp_path) == [
        "aside-step-00000002",
        "aside-step-00000002-1",
        "aside-step-00000003",
        "step-00000002",
    ]
    assert newest(tmp_path, silent).step == 2


# --- no room --------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_one(tmp_path) -> None:
    put(tmp_path, 1, keep=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(
            Unsaved, match=r"step 2 can't be written \(File too large\): it takes 0.1 MB, and .* is free"
        ):
            save(tmp_path, 2, {"weights": {"a": torch.zeros(100, 250)}}, {}, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["step-00000001"]
    check_right(newest(tmp_path, silent))


@pytest.mark.parametrize("nth", range(4))
def test_a_disk_that_is_full_at_any_file(tmp_path, monkeypatch, nth: int) -> None:
    put(tmp_path, 1, keep=1)
    calls = iter(range(100))

    def full(handle: int) -> None:
        if next(calls) == nth:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unsaved, match="No space left on device"):
        put(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["step-00000001"]
    check_right(newest(tmp_path, silent))


def test_room_is_looked_for_before_the_first_step(tmp_path) -> None:
    check_room(tmp_path / "run", 1000)
    assert names(tmp_path / "run") == []
    with pytest.raises(
        InputError, match=r"a checkpoint takes 1,000,000,000,000.0 MB, and .* has room for .*: make room"
    ):
        check_room(tmp_path, 10**18)
    with read_only() as folder, pytest.raises(InputError, match="can't be written: Permission denied; choose another"):
        check_room(folder / "run", 1)


# --- killed ---------------------------------------------------------------------------------------------------------


def forked(work: Callable[[], None]) -> int:
    """A process of its own that does this and no more."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def test_killed_at_every_instant(tmp_path) -> None:
    """At each event of a save that Python reports (open, rename, mkdir, remove, …), with one kept, and the step saved
    for the first time or again."""
    for again in (False, True):
        n, ended_well = 0, False
        while not ended_well:
            folder = tmp_path / f"{again}-{n}"
            put(folder, 1, keep=1)
            step = 1 if again else 2
            pid = forked(lambda folder=folder, step=step, n=n: _killed_at(n, folder, step))
            ended_well = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            found = newest(folder, lambda text: None)
            assert found is not None
            assert found.step == step or (found.step == 1 and not ended_well)
            check_right(found)
            put(folder, 3, keep=2)
            assert names(folder) == [f"step-0000000{found.step}", "step-00000003"]
            check_right(at(folder, found.step))
            n += 1
        assert n > 20


def _killed_at(n: int, folder: Path, step: int) -> None:
    events = iter(range(10**6))

    def kill(event: str, told: tuple[object, ...]) -> None:
        if event.startswith(("open", "os.", "shutil.")) and next(events) == n:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill)
    put(folder, step, keep=1)


def test_killed_at_random_instants(tmp_path) -> None:
    """A run that saves all the time, killed 50 times and resumed: what it reported saved is never lost."""
    draw, reached = random.Random(0), 0
    for _ in range(50):
        ready, told = os.pipe()
        pid = forked(lambda told=told: _saving(tmp_path, told))
        os.close(told)
        said = os.read(ready, 8)  # at least one a time
        time.sleep(draw.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while more := os.read(ready, 1 << 16):
            said += more
        os.close(ready)
        reported = int.from_bytes(said[-8:], "big")
        found = newest(tmp_path, lambda text: None)
        assert found is not None
        assert reported <= found.step <= reported + 1
        assert reported > reached
        check_right(found)
        reached = found.step


def _saving(folder: Path, told: int) -> None:
    found = newest(folder, lambda text: None)
    step = found.step if found else 0
    while True:
        step += 1
        put(folder, step)
        os.write(told, step.to_bytes(8, "big"))


# --- by several ranks -----------------------------------------------------------------------------------------------


class Odd(Step):
    """With weights of fewer rows than there are ranks."""

    def __init__(self) -> None:
        super().__init__(tiny())
        self.three, self.one = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(1))

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) + self.three.square().sum() * self.one.sum()


def trained(world: World, kind: str, steps: int) -> tuple[Step, torch.optim.Optimizer]:
    """A wrapped model, and AdamW after so many steps."""
    torch.manual_seed(world.rank)
    step = Odd()
    wrapped = parallel.wrap(step, world, kind)
    optimizer = torch.optim.AdamW(step.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        wrapped(feeds(4)[world.rank]).backward()
        optimizer.step()
    return step, optimizer


def held(step: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    moments = {
        f"{name}.{key}": value
        for name, weight in step.named_parameters()
        for key, value in optimizer.state[weight].items()
    }
    return {"weights": dict(step.named_parameters()), "optimizer": moments}


def by_two(out: str) -> None:
    """Saved by ranks that hold rows each, and by ranks that hold all."""
    world = World.from_environment("cpu")
    for kind in ("fsdp", "ddp"):
        own = held(*trained(world, kind, 2))
        whole = {f"whole_{stem}": parallel.gathered(tensors) for stem, tensors in own.items()}
        state = {"ranks": parallel.gather(world, {"seed": world.rank})}
        save(Path(out) / kind, 1, {**own, **whole}, state, keep=1, world=world)
        again = held(*trained(world, kind, 1))
        found = newest(Path(out) / kind, silent, world)
        for stem, tensors in again.items():
            found.load(stem, tensors)
            assert _equal(parallel.gathered(tensors), whole[f"whole_{stem}"])
    world.close()


def by_four(out: str) -> None:
    """What two saved, loaded by four, and saved by them."""
    world = World.from_environment("cpu")
    own, found = held(*trained(world, "fsdp", 1)), at(Path(out) / "fsdp", 1, world)
    for stem, tensors in own.items():
        found.load(stem, tensors)
        assert _equal(parallel.gathered(tensors), found.read(f"whole_{stem}"))
    save(Path(out) / "fsdp", 2, own, found.state, keep=2, world=world)
    world.close()


def by_one(out: str) -> None:
    """What one holds goes to two."""
    folder = Path(out) / "fsdp"
    found = at(folder, 2)
    save(folder, 3, {stem: found.read(stem) for stem in found.stems}, {}, keep=3)


def back_by_two(out: str) -> None:
    world = World.from_environment("cpu")
    folder = Path(out) / "fsdp"
    own = held(*trained(world, "fsdp", 1))
    for stem, tensors in own.items():
        at(folder, 3, world).load(stem, tensors)
        assert _equal(parallel.gathered(tensors), at(folder, 1, world).read(f"whole_{stem}"))
    world.close()


def failing(out: str) -> None:
    """A disk that is full on rank 1 only, and a broken checkpoint that rank 0 finds: both learn of it."""
    world = World.from_environment("cpu")
    folder = Path(out) / "failing"
    own = held(*trained(world, "fsdp", 1))
    save(folder, 1, own, {}, keep=1, world=world)
    real = checkpoint.write_slices
    if world.rank == 1:
        checkpoint.write_slices = _full
    with pytest.raises(Unsaved, match=r"step 2 can't be written.*No space left"):
        save(folder, 2, own, {}, keep=1, world=world)
    checkpoint.write_slices = real
    assert at(folder, 1, world).step == 1
    parallel.barrier(world)
    if world.first:
        assert names(folder) == ["step-00000001"]
        (folder / "step-00000001" / "weights-00002-of-00002.safetensors").unlink()
    parallel.barrier(world)
    with pytest.raises(NotFound if world.first else parallel.Elsewhere, match=r"weights-00002-of-00002.* is missing"):
        at(folder, 1, world)
    world.close()


def _full(path: Path, part: Mapping[str, slices.Slice]) -> slices.Stamp:
    raise OSError(errno.ENOSPC, "No space left on device")


def _equal(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """All that needs several processes, in one go: each asserts what it must find."""
    out = tmp_path_factory.mktemp("ranks")
    jobs = [("by_two", 2), ("by_four", 4), ("by_one", 1), ("back_by_two", 2), ("failing", 2)]
    ranks.run(HERE, jobs, out)
    return out


def test_any_number_of_ranks_loads_what_any_number_saved(saved) -> None:
    """Two to four to one to two: asserted by the ranks; and here, two and four to one."""
    for step in (1, 2):
        found = at(saved / "fsdp", step)
        assert found.state == {"ranks": [{"seed": 0}, {"seed": 1}]}
        for stem in ("weights", "optimizer"):
            right = at(saved / "fsdp", 1).read(f"whole_{stem}")
            assert _equal(found.read(stem), right)
            mine = {name: torch.zeros_like(tensor) for name, tensor in right.items()}
            found.load(stem, mine)
            assert _equal(mine, right)


def test_each_rank_writes_its_rows_and_whole_tensors_are_written_once(saved) -> None:
    assert {f"weights-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)} <= set(at(saved / "fsdp", 2).files)
    assert "weights.safetensors" in at(saved / "ddp", 1).files
    sizes = [(saved / "fsdp/step-00000001" / f"weights-0000{i}-of-00002.safetensors").stat().st_size for i in (1, 2)]
    assert sum(sizes) < 1.3 * (saved / "ddp/step-00000001/weights.safetensors").stat().st_size
    assert json.loads((saved / "fsdp/step-00000002/manifest.json").read_text())["files"].keys() == set(
        at(saved / "fsdp", 2).files
    )


def test_a_ranks_missing_file_breaks_the_checkpoint(saved, tmp_path) -> None:
    shutil.copytree(saved / "fsdp", tmp_path / "fsdp")
    (tmp_path / "fsdp/step-00000002/optimizer-00003-of-00004.safetensors").unlink()
    with pytest.raises(NotFound, match=r"optimizer-00003-of-00004\.safetensors is missing"):
        at(tmp_path / "fsdp", 2)
