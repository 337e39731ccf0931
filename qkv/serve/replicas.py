"""`qkv serve --replicas N`: the same server N times behind one port, by Ray Serve (extra: `ray`).

A replica is a process with the model, its engine and the whole application, so keys, limits and errors are as they are
without Ray. Ray's proxy listens, gives each request to a replica that has less to do, and asks each replica for its
health, as GET /health does: one that has stalled or died is replaced. Replicas share nothing: a prefix is cached by the
replica that read it. GET /metrics tells of all of them, told apart by the label `replica`.

Ray's processes talk over ports of their own, in pickle, and some of them are open to other machines: so whoever calls
one must know a token, which is drawn anew for each start. On a cluster that is there already (RAY_ADDRESS) that is the
cluster's matter, and its network must be one to trust.
"""

import os
import secrets
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from qkv.errors import InputError, QkvError
from qkv.serve.health import state_of
from qkv.serve.log import standard_error
from qkv.serve.options import Options, keys_from
from qkv.serve.scheduler import MOST_RUNNING, MOST_WAITING

APP = "qkv"
BETWEEN = 1.0  # seconds from one report of a replica's metrics to the next
STALE = 10.0  # seconds after which a replica that no longer reports is left out
STARTING = 600.0  # seconds for a replica to load


@dataclass(frozen=True)
class Plan:
    """What each replica is. ref: the model, called `name`; options without keys: those are in `variable` of each
    replica's own environment, `keys` of them; sizes: of its engine."""

    name: str
    ref: str
    options: Options
    variable: str
    keys: int
    sizes: Mapping[str, Any]
    dtype: str | None = None
    device: str | None = None
    threads: int = 1


class Replica:
    """A server without a socket, which Ray Serve makes in a process of its own. Its constructor ends when the first
    token was made."""

    def __init__(self, plan: Plan, board: Any) -> None:
        import torch

        from qkv.model import load
        from qkv.serve.engine import Engine
        from qkv.serve.metrics import Metrics

        torch.set_num_threads(plan.threads)
        self.options = options_of(plan)
        self.engine = Engine(load(plan.ref, plan.dtype, plan.device), name=plan.name, **plan.sizes)
        self.metrics, self.board = Metrics({plan.name: self.engine}), board
        self._over = threading.Event()
        self.engine.start()
        end = time.monotonic() + STARTING
        while not self.engine.ready:
            if not self.engine.alive or time.monotonic() > end:
                raise QkvError(f"the engine of {plan.name!r} didn't start") from self.engine.failure
            time.sleep(0.01)
        threading.Thread(target=self._report, daemon=True).start()

    def __serve_build_asgi_app__(self) -> Any:
        from qkv.serve.app import build
        from qkv.serve.gathered import of_all

        app = build({self.engine.name: self.engine}, self.options, standard_error())
        app.router.routes[:0] = of_all(self.reports).routes  # before the application's own /metrics
        return app

    def check_health(self) -> None:
        """Ray asks; QkvError: replace me."""
        state = state_of(self.engine, self.options.health_seconds)
        if state != "ok":
            raise QkvError(f"the engine {self.engine.name!r} is {state}") from self.engine.failure

    def reports(self) -> dict[str, str]:
        """Every replica's metrics; this one's as they are now."""
        import ray

        found: dict[str, str] = ray.get(self.board.all.remote(), timeout=BETWEEN)
        return {**found, self.rank: self._metrics()}

    @property
    def rank(self) -> str:
        """Which of the replicas this is, from 0; one that is replaced leaves its number to the next."""
        from ray import serve

        return str(serve.get_replica_context().rank.rank)

    def _metrics(self) -> str:
        from prometheus_client.exposition import generate_latest

        return generate_latest(self.metrics.registry).decode()

    def _report(self) -> None:
        while not self._over.wait(BETWEEN):
            self.board.put.remote(self.rank, self._metrics())

    def __del__(self) -> None:
        if hasattr(self, "_over"):
            self._over.set()
            self.engine.close(self.options.grace)


class Board:
    """What replicas last reported: an actor that is asked for it."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[float, str]] = {}

    def put(self, replica: str, text: str) -> None:
        """A replica's metrics now."""
        self._found[replica] = (time.monotonic(), text)

    def all(self) -> dict[str, str]:
        """Those of every replica that still reports."""
        now = time.monotonic()
        return {replica: text for replica, (at, text) in sorted(self._found.items()) if now - at < STALE}


def options_of(plan: Plan) -> Options:
    """A replica's options, with the keys of its own environment. InputError: they are not as many as there should be:
    then the port that Ray opens would be closed to some, or open to all."""
    keys = keys_from(plan.variable)
    if len(keys) != plan.keys:
        raise InputError(
            f"{plan.variable} holds {len(keys)} API keys where this replica runs, and {plan.keys} where it was "
            "started: set the same on every machine of the cluster"
        )
    return replace(plan.options, keys=keys)


def serve_replicas(plan: Plan, replicas: int) -> int:
    """Serve the plan's model by so many replicas until SIGTERM or Ctrl-C; open answers then have the options' grace.
    Returns the exit code."""
    options, log, over = plan.options, standard_error(), threading.Event()

    def stop(sig: int, frame: FrameType | None) -> None:
        if over.is_set():
            os._exit(128 + sig)
        over.set()

    try:
        with log.step("replicas", model=plan.name):
            ray = start(plan, replicas)
        for which in (signal.SIGINT, signal.SIGTERM):
            signal.signal(which, stop)  # only now: Ray has set its own, which end the process at once
        url = f"http://{options.host}:{options.port}"
        log.write("serving", url=url, model=plan.name, replicas=replicas, ray=ray)
        over.wait()
        log.write("stop", grace=options.grace)
    finally:
        end()
    return 0


def environment() -> dict[str, str]:
    """What the environment is to say, where it doesn't say otherwise. Ray reads it when it is first imported."""
    said = {
        "RAY_USAGE_STATS_ENABLED": "0",  # it would tell its makers
        "RAY_DEDUP_LOGS": "0",  # it would leave out lines of the log that look alike
        "RAY_COLOR_PREFIX": "0",
        "GOMP_SPINCOUNT": "1000",  # as the command line has it: replicas share processors
    }
    if "RAY_ADDRESS" in os.environ:
        return said
    return {**said, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def plan_of(
    wanted: Mapping[str, str],
    options: Options,
    sizes: Mapping[str, Any],
    how: tuple[str | None, str | None, int | None],
    replicas: int,
    variable: str,
) -> Plan:
    """What each replica of the one model of `wanted` {name: reference} is to be. `how`: its dtype, device and threads
    (None: a share of the processors). It says in the environment what Ray is to read there when it is imported.
    InputError: several models, no Ray, port 0."""
    if len(wanted) != 1:
        raise InputError(f"--replicas serves one model, and {len(wanted)} were named: start a server for each")
    if options.port == 0:
        raise InputError("--replicas needs a port: Ray's proxy can't choose a free one")
    os.environ.update({name: os.environ.get(name, value) for name, value in environment().items()})
    try:
        import ray.serve  # noqa: F401
    except ImportError as error:
        raise InputError(f"--replicas needs Ray Serve ({error}): pip install 'qkv[ray]'") from error
    [(name, ref)] = wanted.items()
    dtype, device, threads = how
    return Plan(
        name,
        str(Path(ref).resolve()) if Path(ref).exists() else ref,
        replace(options, keys=()),
        variable,
        len(options.keys),
        dict(sizes),
        dtype,
        device,
        threads or max(1, (os.cpu_count() or 1) // replicas),
    )


def start(plan: Plan, replicas: int) -> str:
    """Start Ray where it doesn't run yet, and the replicas; return its address when all of them answer. Raises as they
    do."""
    import ray
    from ray import serve

    if not ray.is_initialized():
        local: dict[str, Any] = {}
        if "RAY_ADDRESS" not in os.environ:
            local = {"num_cpus": plan.threads * replicas, "include_dashboard": False}
        ray.init(namespace=APP, logging_level="WARNING", **local)
    http = {"host": plan.options.host, "port": plan.options.port, "request_timeout_s": plan.options.request_seconds}
    quiet = {"log_level": "WARNING", "enable_access_log": False}  # the application writes a line a request
    serve.start(http_options=http, proxy_location="HeadOnly", logging_config=quiet)
    board = ray.remote(num_cpus=0)(Board).remote()
    sizes = {"most_running": MOST_RUNNING, "most_waiting": MOST_WAITING, **plan.sizes}
    most = int(sizes["most_running"]) + int(sizes["most_waiting"])
    kind = serve.deployment(
        serve.ingress()(Replica),
        name="Replica",
        num_replicas=replicas,
        max_ongoing_requests=2 * most,  # the engine itself refuses what is too much, with 429
        health_check_period_s=2.0,
        graceful_shutdown_timeout_s=plan.options.grace,
        graceful_shutdown_wait_loop_s=0.2,
        ray_actor_options={"num_cpus": plan.threads},
        logging_config=quiet,
    )
    serve.run(kind.bind(plan, board), name=APP, route_prefix="/")
    return str(ray.get_runtime_context().gcs_address)


def end() -> None:
    """Stop the replicas, and Ray where `start` has started it."""
    import ray
    from ray import serve

    if ray.is_initialized():
        serve.shutdown()
        ray.shutdown()
