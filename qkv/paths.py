"""Where qkv keeps what it fetched or made."""

import os
import sys
from pathlib import Path


def cache_root() -> Path:
    """qkv's own cache: $QKV_CACHE, else $XDG_CACHE_HOME/qkv, else the platform's usual place."""
    if own := os.environ.get("QKV_CACHE"):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser() / "qkv"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "qkv"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "qkv" / "cache"
    return Path.home() / ".cache" / "qkv"
