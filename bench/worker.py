"""An engine in a process of its own, and the other end of its pipe.

The child reads a line of JSON an order ({"prompts": …, "tokens": …}), answers with a line, and sleeps in between: its
threads have stopped spinning by the time that the next engine is asked.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from bench.engines import ENGINES, Ids, Run
from bench.machine import memory, pin_process


class Worker:
    """One engine of ENGINES, pinned to as many processors as it has threads. RuntimeError: it ended early."""

    def __init__(self, name: str, model: str, threads: int, env: Mapping[str, str] | None = None) -> None:
        count = {key: str(threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", name, model, str(threads)],
            env={**os.environ, **count, **dict(ENGINES[name].env), **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.about = str(self._answer()["about"])

    def run(self, prompts: Ids, tokens: int) -> Run:
        """As Engine.run, timed over there."""
        answer = self._ask({"prompts": prompts, "tokens": tokens})
        return Run(answer["prefill"], answer["decode"], answer["tokens"])

    def memory(self) -> dict[str, float]:
        """As bench.machine.memory, of the child."""
        return self._ask({})

    def close(self) -> None:
        """End the child."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def main() -> None:
    """The child."""
    name, model, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever an engine prints must not mix with the answers
    pin_process(int(threads))
    engine = ENGINES[name].make(model, int(threads))

    def answer(what: dict[str, Any]) -> None:
        print(json.dumps(what), file=answers, flush=True)

    answer({"about": engine.about})
    for line in sys.stdin:
        order = json.loads(line)
        answer(engine.run(**order)._asdict() if order else memory())


if __name__ == "__main__":
    main()
