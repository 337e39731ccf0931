"""How a server is set up: where it listens, who may ask, and what it takes from a client at most."""

import ipaddress
import math
import os
import re
from dataclasses import dataclass, field

from qkv.errors import InputError

_SHORTEST_KEY = 8  # characters: less could be guessed over the network


@dataclass(frozen=True)
class Options:
    """What `qkv serve` is told. Sizes are bytes, times seconds.

    keys: whoever sends one of these may ask; none: whoever reaches the port. max_body: of a request; body_seconds: for
    it to arrive; header_seconds: for its headers; request_seconds: for all of it, the answer too. max_headers: of all
    header lines together. most_connections: open at once; the longest idle one makes room. grace: for open answers to
    finish once a signal asks to stop. health_seconds: how old the engine's last turn may be. template_variables: names
    that `chat_template_kwargs` may set. page: whether the page is served at /."""

    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = field(default=(), repr=False)
    max_body: int = 4 * 2**20
    max_headers: int = 32 * 2**10
    body_seconds: float = 30.0
    header_seconds: float = 10.0
    request_seconds: float = 600.0
    most_connections: int = 512
    grace: float = 30.0
    health_seconds: float = 30.0
    template_variables: tuple[str, ...] = ("enable_thinking",)
    page: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InputError(f"the port must be a whole number from 0 (any that is free) to 65535, got {self.port}")
        for name in ("max_body", "max_headers", "body_seconds", "header_seconds", "request_seconds", "health_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be above 0 and finite, got {getattr(self, name)!r}")
        if self.most_connections < 1 or not 0 <= self.grace < math.inf:
            raise InputError("most_connections must be at least 1, and grace at least 0 seconds and finite")
        if any(len(key) < _SHORTEST_KEY or not re.fullmatch(r"[!-~]+", key) for key in self.keys):
            raise InputError(f"an API key must be {_SHORTEST_KEY} or more printable ASCII characters without spaces")

    def check_open(self, variable: str) -> None:
        """InputError: others could reach the port, and `variable` of the environment holds no key."""
        if not self.keys and not is_loopback(self.host):
            raise InputError(
                f"--host {self.host} can be reached from other machines, and there is no API key: put one (or several, "
                f"with commas) into {variable}, or stay on 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Is this an address that only this machine reaches?"""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def keys_from(variable: str) -> tuple[str, ...]:
    """The API keys in a variable of the environment, with commas or spaces between. InputError: it is set and has
    none, which would open the server to whoever reaches it."""
    said = os.environ.get(variable)
    if said is None:
        return ()
    keys = tuple(dict.fromkeys(re.split(r"[\s,]+", said.strip(", \t\n"))))
    if keys == ("",):
        raise InputError(f"{variable} is set and holds no key: unset it, or put one in")
    return keys
