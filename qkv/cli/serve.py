"""`qkv serve [MODEL …]`: the OpenAI API over models of one's own, and a page to look into them."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkv.cli import answer
from qkv.cli.console import DEFAULT_MODEL, JsonOption, note, out, print_json

if TYPE_CHECKING:
    from qkv.model import Model
    from qkv.serve.engine import Engine
    from qkv.serve.options import Options

_NAMED = re.compile(r"([A-Za-z0-9][\w.:-]{0,63})=([^=].*)")  # not pypi:NAME==VERSION


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...", help="Alias, folder, file or org/name, each perhaps as NAME=MODEL to call it so."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; one that others reach needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 is any that is free.")] = 8000,
    cache: Annotated[
        str | None, typer.Option(metavar="4096|256MB", help="Cache of each model: tokens, or bytes.")
    ] = None,
    max_running: Annotated[int, typer.Option(min=1, help="Answers that are computed at the same time.")] = 64,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are told to come back.")] = 256,
    budget: Annotated[
        int, typer.Option(min=1, help="Tokens that a step reads, prompts in pieces of it; a GPU wants more.")
    ] = 192,
    api_key_env: Annotated[
        str, typer.Option(metavar="NAME", help="Variable of the environment with the API keys, commas between.")
    ] = "QKV_API_KEY",
    grace: Annotated[float, typer.Option(min=0, help="Seconds that open answers get when it is told to stop.")] = 30.0,
    page: Annotated[bool, typer.Option(help="The page to chat with a model and look into it, at /.")] = True,
    replicas: Annotated[int, typer.Option(min=1, help="Servers of the one model behind one port, by Ray Serve.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and serve nothing.")] = False,
    dtype: answer.Dtype = None,
    device: answer.Device = None,
    threads: answer.Threads = None,
    json: JsonOption = False,
) -> None:
    """Serve models to OpenAI's clients, and to a browser.

    Clients use http://127.0.0.1:8000/v1. SIGTERM and Ctrl-C let open answers finish and then end with 0; a second one
    ends at once. The log, a line of JSON a request, goes to standard error.

    Example: qkv serve smollm2 minilm --port 8080
    """
    from qkv.serve.options import Options, keys_from

    wanted = names_of(models or [DEFAULT_MODEL])
    options = Options(host=host, port=port, keys=keys_from(api_key_env), grace=grace, page=page)
    options.check_open(api_key_env)
    sizes = {"cache": cache, "budget": budget, "most_running": max_running, "most_waiting": max_waiting}
    if dry_run:
        _dry_run({name: answer.load(ref, dtype, device, threads) for name, ref in wanted.items()}, options, sizes, json)
        return
    how = (dtype, device, threads)
    if replicas > 1:
        from qkv.serve.replicas import plan_of, serve_replicas

        plan = plan_of(wanted, options, sizes, how, replicas, api_key_env)
        if json:
            print_json({"url": f"http://{host}:{port}", "models": [{"name": plan.name}], "replicas": replicas})
        raise typer.Exit(serve_replicas(plan, replicas))
    raise typer.Exit(_run(wanted, options, sizes, how, json))


def names_of(refs: Sequence[str]) -> dict[str, str]:
    """What each model is called: as it is typed, a folder or file by its last part; NAME=MODEL says another name.
    InputError: two are called the same."""
    from qkv.errors import InputError

    found: dict[str, str] = {}
    for ref in refs:
        given = _NAMED.fullmatch(ref)
        name, rest = given.groups() if given and not Path(ref).exists() else (None, ref)
        if name is None:
            name = Path(ref).resolve().name.removesuffix(".gguf") if Path(ref).exists() else ref
        if name in found:
            raise InputError(f"two models are called {name!r}: give one another name, as in other={rest}")
        found[name] = rest
    return found


def _run(
    wanted: dict[str, str], options: "Options", sizes: dict[str, Any], how: tuple[Any, Any, Any], json: bool
) -> int:
    """Listen, load, serve. The socket first: a port that is taken should not cost a load."""
    from qkv.serve.log import standard_error

    log = standard_error()
    with log.step("imports"):
        from qkv.serve.engine import Engine
        from qkv.serve.run import address, bind, serve
        from qkv.serve.served import Served
    listening = bind(options)
    engines: dict[str, Engine] = {}
    for name, ref in wanted.items():
        with log.step("weights", model=name):
            model = answer.load(ref, *how)
        for text in model.notes:
            note(text)
        with log.step("cache", model=name):
            engines[name] = Engine(model, name=name, **sizes)
        if engines[name].generates:
            note(f"{name}: {Served(engines[name]).settings.describe()}; a request may say otherwise")
    where = address(listening)
    if json:
        print_json({"url": where, "models": [_told(engine) for engine in engines.values()]})
    else:
        note(f"{where}/v1 serves {', '.join(engines)}{f'; {where}/ shows them' if options.page else ''}")
    return serve(engines, options, listening, log)


def _told(engine: "Engine") -> dict[str, Any]:
    return {"name": engine.name, "generates": engine.generates, "context": engine.limits.context}


def _dry_run(models: "dict[str, Model]", options: "Options", sizes: dict[str, Any], json: bool) -> None:
    """What serving them would take."""
    from qkv import spec
    from qkv.serve.memory import plan_memory
    from qkv.serve.pages import Pages
    from qkv.serve.scheduler import Scheduler

    limits = {**dataclasses.asdict(options), "keys": len(options.keys), **sizes}
    cache, running = limits.pop("cache"), sizes["most_running"]
    plans = {}
    for name, model in models.items():
        generates = model.decoder is not None and isinstance(model.spec.head, spec.LMHead)
        plans[name] = plan_memory(model, cache=cache, most_running=running, generates=generates)
        if generates:  # what an engine would refuse
            Scheduler(Pages(1), **{size: sizes[size] for size in ("budget", "most_running", "most_waiting")})
    if json:
        found = {
            name: {**dataclasses.asdict(plan), "tokens": plan.tokens, "cache": plan.cache_bytes}
            for name, plan in plans.items()
        }
        print_json({"models": found, "limits": limits})
        return
    console = out()
    for name, plan in plans.items():
        console.print(name, style="bold", soft_wrap=True)
        for line in plan.lines():
            console.print(f"  {line}", soft_wrap=True, markup=False)
    console.print("limits", style="bold")
    for name, value in limits.items():
        console.print(f"  {name} {value}", soft_wrap=True, markup=False)
