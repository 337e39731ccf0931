"""Which module stands for which value of the spec.

    @implements(spec.RMS)
    class RMSNorm(nn.Module): ...

    build(spec.RMS(1e-5), 576)          # RMSNorm(spec.RMS(1e-5), 576)

The same line registers a part of your own: a frozen dataclass of the spec, and one module.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from qkv.errors import ConfigError
from qkv.spec import Part

MODULES: dict[type[Part], Callable[..., Any]] = {}
M = TypeVar("M", bound=Callable[..., Any])


def implements(kind: type[Part]) -> Callable[[M], M]:
    """Register the class for a spec value. It is made as `module(value, *sizes)`."""

    def register(module: M) -> M:
        MODULES[kind] = module
        return module

    return register


def build(part: Part, *sizes: Any) -> Any:
    """The module for one value. ConfigError: nothing implements it."""
    import qkv.nn.stack  # noqa: F401  (it imports, and so registers, every part of this folder; they import this file)

    module = MODULES.get(type(part))
    if module is None:
        raise ConfigError(f"no module implements {type(part).__name__}; register one with @qkv.nn.parts.implements")
    return module(part, *sizes)
