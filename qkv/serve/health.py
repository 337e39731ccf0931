"""GET /health: 200 while every engine turns and has made its first token, else 503 and why."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from qkv.serve.engine import Engine
from qkv.serve.served import Models


def router(models: Models) -> APIRouter:
    """The route over these models."""
    routes = APIRouter()

    @routes.get("/health", summary="Is every engine alive and ready?", response_model=None)
    async def health() -> Response:
        states = {name: state_of(engine, models.options.health_seconds) for name, engine in models.engines.items()}
        worst = max(states.values(), key=("ok", "starting", "stalled", "dead").index)
        return JSONResponse({"status": worst}, 200 if worst == "ok" else 503)

    return routes


def state_of(engine: Engine, seconds: float) -> str:
    """ok; starting: no token yet; stalled: the step loop hasn't turned for so long; dead: its thread has ended."""
    if engine.failure is not None or (engine.ready and not engine.alive):
        return "dead"
    if not engine.ready:
        return "starting"
    return "ok" if engine.heartbeat() <= seconds else "stalled"
