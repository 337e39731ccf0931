"""The page at `/`: one response that needs nothing else, made of page.html, page.css and the page_*.js beside it.

Its Content-Security-Policy names the hashes of its own style and script and lets nothing else in: no other origin, no
inline handler, no text that becomes markup (Trusted Types). It holds no data and no key, so it is open to all; what it
shows it asks of `/v1/*` and `/look/*`, with the key that a person types in.
"""

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response

FOLDER = Path(__file__).parent
SCRIPTS = ("base", "tip", "answer", "chat", "tokens", "attention", "heads", "map", "arcs", "engine")


@dataclass(frozen=True)
class Page:
    """The page, the policy that a browser is to hold it to, and its fingerprint."""

    html: bytes
    policy: str
    tag: str


@cache
def page() -> Page:
    """The page, put together."""
    style = _read("page.css")
    script = "\n".join(_read(f"page_{name}.js") for name in SCRIPTS)
    html = _read("page.html").replace("/* page.css */", style).replace("/* page_*.js */", script).encode()
    rules = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "img-src": "data:",  # its icon
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
    }
    policy = "; ".join(f"{name} {value}" for name, value in rules.items())
    return Page(html, policy, f'"{hashlib.sha256(html).hexdigest()[:32]}"')


def router() -> APIRouter:
    """The route `/`."""
    made = APIRouter()

    @made.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    def root(request: Request) -> Response:
        found = page()
        headers = {
            "Content-Security-Policy": found.policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cache-Control": "no-cache",
            "ETag": found.tag,
        }
        if request.headers.get("If-None-Match") == found.tag:
            return Response(status_code=304, headers=headers)
        return Response(found.html, media_type="text/html; charset=utf-8", headers=headers)

    return made


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
