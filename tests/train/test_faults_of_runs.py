"""Whole `qkv train` processes that are killed, stopped and starved at any moment: what they leave, and that they go
on to the bit."""

import os
import random
import resource
import signal
import time

import pytest

from qkv.cli.train import STOPPED
from qkv.train import checkpoint, log, recipe_file
from qkv.train.checkpoint import CHECKPOINTS
from tests.train import tiny
from tests.train.forks import Run, at_call, helper, reached, wait_for
from tests.train.same import assert_same, held, losses

KILLS = 50
GRACE = 5.0  # seconds from a signal to the end
ALL = {  # of everything something: dropout, accumulation across epochs, an average, evaluations, checkpoints
    "model": {"dropout": 0.1},
    "data": {"valid": "valid.jsonl"},
    "batch": {"sequences": 9, "accumulate": 2},
    "train": {"steps": 6, "ema": 0.5},
    "eval": {"every": 2, "best": "loss", "samples": 0},
    "save": {"every": 3, "keep": 9},
}
ENCODE, COLLATE, LOSS = (f"qkv.train.causal:Causal.{name}" for name in ("encode", "collate", "loss"))
STALLS = {  # where the run is when the signal comes: what stalls at which call, for how long, which step is saved
    "tokenizing": (ENCODE, 7, 30, 0),
    "the first step": (LOSS, 1, 30, 0),
    "a step": (LOSS, 6, 30, 2),
    "the middle of an accumulation": (LOSS, 7, 30, 2),
    "making a batch": (COLLATE, 9, 30, 3),
    "a move": ("qkv.train.optim:set_factor", 4, 0.5, 4),
    "an evaluation": ("qkv.train.evaluate:Evaluator._losses", 2, 30, 4),
    "a save": ("qkv.train.checkpoint:_finish", 3, 0.5, 4),
    "leaving the model": ("qkv.train.export:save", 1, 0.5, 6),
}
NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.fixture(scope="module")
def process():
    with helper(__name__) as made:
        yield made


def written(folder, **changes):
    """The recipe in a file, with its data."""
    os.environ["QKV_CACHE"] = str(folder / "cache")
    tiny.write(folder)
    path = folder / f"{len(list(folder.glob('*.toml')))}.toml"
    path.write_text(recipe_file.resolved(tiny.recipe(folder, **changes)))
    return path


def run(path, out, *more, first=lambda: None):
    return Run(path, "--out", out, *more, said=path.parent / "said.txt", first=first)


def finished(path, out, *more):
    ran = run(path, out, *more)
    assert ran.ended() == 0, ran.text()


# --- killed ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_one_interval_at_most(process, tmp_path):
    process("killed", tmp_path)


def killed(folder):
    draw, kills, number = random.Random(0), 0, 0
    paths = {every: written(folder, save={"every": every}, train={"steps": 6}) for every in (1, 2)}
    whole = folder / "whole"
    began = time.monotonic()
    finished(paths[1], whole)
    long, wanted = time.monotonic() - began, held(whole, 6)
    while kills < KILLS:
        number += 1
        every, out = 1 + number % 2, folder / f"run-{number}"
        while True:
            ran = run(paths[every], out)
            time.sleep(draw.uniform(0, long))
            ran.signal(signal.SIGKILL)
            code = ran.ended()
            assert code in (0, -9), ran.text()
            if code == 0:
                break
            kills += 1
            looked_at(out, every)
        assert_same(held(out, 6), wanted)
        assert losses(out) == losses(whole)


def looked_at(out, every):
    """What a killed run has left."""
    behind = max((line["step"] for line in log.read(out).steps), default=0) if (out / log.NAME).exists() else 0
    found = checkpoint.newest(out / CHECKPOINTS, lambda text: None)
    assert (found.step if found else 0) >= behind - every


# --- stopped --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_signal_anywhere_saves_and_the_run_goes_on_to_the_bit(process, tmp_path):
    process("stopped", tmp_path)


def stopped(folder):
    path, whole = written(folder, **ALL), folder / "whole"
    finished(path, whole)
    for i, place in enumerate(STALLS):
        where, call, seconds, step = STALLS[place]
        out, mark = folder / f"run-{i}", folder / f"mark-{i}"
        os.environ["QKV_CACHE"] = str(folder / f"cache-{i}")
        once_stopped(run(path, out, first=lambda w=where, c=call, m=mark, s=seconds: at_call(w, c, reached(m, s))),
                     mark, NUMBERS[i % 3], place)  # fmt: skip
        saved = checkpoint.newest(out / CHECKPOINTS, print)
        assert (saved.step if saved else 0) == step, place
        finished(path, out)
        goes_on_as(whole, out)


def once_stopped(ran, mark, number, place):
    wait_for(mark, ran)
    ran.signal(number)
    assert ran.ended(GRACE) == STOPPED, (place, ran.text())


def goes_on_as(whole, out):
    assert_same(held(out, 6), held(whole, 6))
    assert losses(out) == losses(whole)
    evaluations = [[(line["step"], line["values"]) for line in log.read(one).evaluations] for one in (whole, out)]
    assert evaluations[0] == evaluations[1]
    for name in ("config.json", "model.safetensors"):
        assert (whole / name).read_bytes() == (out / name).read_bytes()


def test_a_signal_while_a_worker_stalls(process, tmp_path):
    process("stalled_worker", tmp_path)


def stalled_worker(folder):
    path, whole, out, mark = written(folder, **ALL), folder / "whole", folder / "run", folder / "mark"
    finished(path, whole)
    ran = run(path, out, "data.workers=2", first=lambda: at_call(COLLATE, 3, reached(mark)))
    once_stopped(ran, mark, signal.SIGTERM, "a worker")
    finished(path, out, "data.workers=2")
    goes_on_as(whole, out)


def test_a_second_signal_ends_at_once(process, tmp_path):
    process("twice", tmp_path)


def twice(folder):
    path, mark = written(folder, save={"every": 2}), folder / "mark"
    ran = run(path, folder / "run", first=lambda: at_call("qkv.train.checkpoint:_finish", 2, reached(mark)))
    wait_for(mark, ran)
    ran.signal(signal.SIGINT)
    time.sleep(1.1)
    ran.signal(signal.SIGTERM)
    assert ran.ended(0.5) == 128 + signal.SIGTERM
    found = checkpoint.newest(folder / "run" / CHECKPOINTS, lambda text: None)
    assert found is not None
    assert found.step == 2
    finished(path, folder / "run")


# --- starved --------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_checkpoint(process, tmp_path):
    process("full", tmp_path)


def full(folder):
    path, whole, out = written(folder, save={"every": 2, "keep": 1}), folder / "whole", folder / "run"
    finished(path, whole)

    def less():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))

    ran = run(path, out, first=lambda: at_call("qkv.train.checkpoint:save", 2, less))
    assert ran.ended() == 1
    assert "the checkpoint of step 4 can't be written (File too large)" in ran.text()
    assert "Traceback" not in ran.text()
    assert [one.name for one in (out / CHECKPOINTS).iterdir()] == ["step-00000002"]
    finished(path, out)
    assert_same(held(out, 8), held(whole, 8))


def test_a_killed_worker_ends_the_run(process, tmp_path):
    process("dead_worker", tmp_path)


def dead_worker(folder):
    path = written(folder, data={"workers": 1})
    ran = run(path, folder / "run", first=lambda: at_call(COLLATE, 3, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    assert ran.ended(10) == 1
    assert "a process that makes batches died" in ran.text()
    finished(path, folder / "run")


def test_one_run_a_folder(process, tmp_path):
    process("two_runs", tmp_path)


def two_runs(folder):
    path, mark = written(folder), folder / "mark"
    ran = run(path, folder / "run", first=lambda: at_call(LOSS, 3, reached(mark)))
    wait_for(mark, ran)
    other = run(path, folder / "run")
    assert other.ended() == 1
    assert f"in use by another run: process {ran.pid}" in other.text()
    ran.signal(signal.SIGTERM)
    assert ran.ended(GRACE) == STOPPED
    (folder / "file").touch()
    ran = run(path, folder / "file" / "run")
    assert ran.ended() == 1
    assert "can't be written" in ran.text()


def test_a_log_that_fails_stops_nothing(process, tmp_path):
    process("no_log", tmp_path)


def no_log(folder):
    path, mark = written(folder), folder / "said.txt"

    def fail():
        raise OSError("no space for lines")

    ran = run(path, folder / "run", first=lambda: at_call("qkv.train.log:Log.record", 5, fail))
    assert ran.ended() == 0
    assert mark.read_text().count("no space for lines") == 1


def test_a_step_that_is_not_there_is_no_fresh_start(process, tmp_path):
    process("no_step", tmp_path)


def no_step(folder):
    path = written(folder)
    ran = run(path, folder / "run", "--resume", "5")
    assert ran.ended() == 1
    assert "no checkpoint of step 5: there is none" in ran.text()
    assert log.NAME not in os.listdir(folder / "run")


def test_a_resume_takes_no_more_memory(process, tmp_path):
    process("memory", tmp_path)


def memory(folder):
    """Of weights, two moments and an average of 4 M numbers."""
    large = {**tiny.GPT2, **tiny.DRY, "n_embd": 256, "n_layer": 5}
    path = written(folder, model={"config": large}, train={"steps": 2, "ema": 0.9}, save={"every": 2})
    out, most = folder / "run", []
    for steps in (2, 4):
        ran = run(path, out, f"train.steps={steps}", "--allow-changed", first=lambda: at_exit(folder / "most"))
        assert ran.ended() == 0, ran.text()
        most.append(int((folder / "most").read_text()))
    assert most[1] < 1.1 * most[0], most


def at_exit(file):
    """The most memory beyond what the process began with, in KB, as it ends."""
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    began = peak()
    at_call("qkv.train.export:leave", 1, lambda: file.write_text(str(peak() - began)) and None)


def peak():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
