"""Who may ask: API keys, compared in constant time, for every route but the few that hold nothing; and without keys
whoever is on this machine, but no page of another site that a browser shows here."""

import hashlib
import hmac
import os
import re
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from qkv.serve.errors import response
from qkv.serve.options import Options, is_loopback

OPEN = frozenset({"/health", "/"})  # "/" is the page's fixed text; what it shows comes from closed routes
_OWN = (".localhost", ".internal")  # nobody can register such names; containers call their host by one
_SECRET = os.urandom(32)  # of this process: a salt can't be computed by who knows a key alone


@dataclass(frozen=True)
class Tenant:
    """Who asks. name: for fairness and the log, never the key; digest: of the key."""

    name: str = ""
    digest: bytes = b""

    def salt(self, asked: str = "") -> str:
        """What this tenant's prefixes are cached under: no other's hash can be the same. `asked`: `cache_salt`."""
        return hashlib.blake2b(self.digest + asked.encode(), key=_SECRET, digest_size=16).hexdigest()


class Auth:
    """ASGI middleware: 401 without a key. The tenant is then in `request.state.tenant`.

    Where nobody needs a key, on the loopback, 403 for a Host that isn't this machine's: a site can have its own name
    mean 127.0.0.1, and its page could then ask and read as if the server were the site's (DNS rebinding)."""

    def __init__(self, app: ASGIApp, options: Options) -> None:
        self.app = app
        self.tenants = [Tenant(f"key-{i}", _digest(key)) for i, key in enumerate(options.keys, 1)]
        self.local = not options.keys and is_loopback(options.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self.local and not is_own(headers.get("host", "")):
            why = "this server is for its own machine: ask 127.0.0.1 or localhost, or give it an API key"
            await response(403, why, code="foreign_host")(scope, receive, send)
            return
        tenant = self._tenant(headers.get("authorization", "")) if self.tenants else Tenant()
        if tenant is None and scope["path"] not in OPEN:
            refusal = response(401, "no valid API key: send it as 'Authorization: Bearer KEY'", code="invalid_api_key")
            await refusal(scope, receive, send)
            return
        scope.setdefault("state", {})["tenant"] = tenant or Tenant()
        await self.app(scope, receive, send)

    def _tenant(self, header: str) -> Tenant | None:
        """Whose key this is. All are compared, whichever fits, and as digests, so lengths tell nothing either."""
        scheme, _, key = header.partition(" ")
        given = _digest(key.strip())
        found = [tenant for tenant in self.tenants if hmac.compare_digest(tenant.digest, given)]
        return found[0] if found and scheme.lower() == "bearer" else None


def is_own(host: str) -> bool:
    """Does a Host header name the machine that it is sent on? (None at all: no browser sent it.)"""
    name = re.sub(r":\d*$", "", host.lower())
    return not host or is_loopback(name) or name.endswith(_OWN)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
