"""The application: OpenAI's routes over engines, behind the checks that every request passes.

From the outside in: a request's id, its line in the log and what becomes of errors nobody caught (`log`); who may
ask (`auth`); its body (`limits`); the routes. Nothing here loads a model or listens: that is `qkv.serve.run`.
"""

from collections.abc import Mapping

from fastapi import FastAPI

from qkv.serve import chat, completions, embeddings, errors, health, look, page, rerank, tokens
from qkv.serve.auth import Auth
from qkv.serve.engine import Engine
from qkv.serve.limits import Body
from qkv.serve.log import Log, Requests
from qkv.serve.metrics import Metrics
from qkv.serve.options import Options
from qkv.serve.served import Models


def build(engines: Mapping[str, Engine], options: Options | None = None, log: Log | None = None) -> FastAPI:
    """Routes over engines by the names of their models. `log` None: no lines are written."""
    options = Options() if options is None else options
    app = FastAPI(title="qkv", summary="The OpenAI API over models of your own.", docs_url=None, redoc_url=None)
    models = Models(engines, options)
    for routes in (chat, completions, embeddings, rerank, tokens, health):
        app.include_router(routes.router(models))
    app.include_router(Metrics(engines).router())
    if options.page:
        app.include_router(page.router())
        app.include_router(look.router(models))
    errors.install(app)
    app.add_middleware(Body, options=options)
    app.add_middleware(Auth, options=options)
    app.add_middleware(Requests, log=Log() if log is None else log)
    return app
