"""Runs work in several processes of this machine, with the variables that torchrun would set.

One helper process imports torch once and forks the ranks; forking pytest's own process isn't safe once autograd ran."""

import importlib
import json
import os
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

import qkv


class Ended(NamedTuple):
    """How a rank ended: its exit status (below 0: a signal), and how many seconds it ran."""

    status: int
    seconds: float


def run(module: str, jobs: list[tuple[str, int]], *arguments: object, well: bool = True) -> list[list[Ended]]:
    """Each job, a function of `module` and a number of ranks, one after another: how its ranks ended. All of them must
    have ended `well`."""
    own = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    told = json.dumps([module, jobs, [str(argument) for argument in arguments]])
    helper = subprocess.run(
        [sys.executable, "-m", "tests.train.ranks", told],
        env={**os.environ, **own},
        cwd=Path(qkv.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert helper.returncode == 0, helper.stderr
    ended = [[Ended(*rank) for rank in job] for job in json.loads(helper.stdout.splitlines()[-1])]
    assert not well or all(rank.status == 0 for job in ended for rank in job), (ended, helper.stderr)
    return ended


def _main() -> None:
    module, jobs, arguments = json.loads(sys.argv[1])
    import torch._dynamo  # once, and not in each rank: an optimizer's first step imports it
    import torch.distributed.fsdp  # noqa: F401

    home = importlib.import_module(module)
    print(json.dumps([_job(getattr(home, name), size, arguments) for name, size in jobs]))


def _job(work, size: int, arguments: list[str]) -> list[tuple[int, float]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start, ended = time.monotonic(), {}
    ranks = [_fork(work, rank, size, port, arguments) for rank in range(size)]
    while len(ended) < size:
        pid, status, _ = os.wait3(os.WUNTRACED)
        if os.WIFSTOPPED(status):  # it hangs: the others are what is watched
            ended[pid] = (-os.WSTOPSIG(status), time.monotonic() - start)
        else:
            ended[pid] = (os.waitstatus_to_exitcode(status), time.monotonic() - start)
    for pid, (status, _) in ended.items():
        if status < 0:
            _end(pid)
    return [ended[pid] for pid in ranks]


def _end(pid: int) -> None:
    try:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return


def _fork(work, rank: int, size: int, port: int, arguments: list[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()})
    try:
        work(*arguments)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    _main()
