"""Writing files so that a reader sees the old one or the new one, never half of it."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def renamed_when_whole(path: Path) -> Iterator[Path]:
    """An empty file beside `path` to write to: it becomes `path` once it is whole and on the disk, or else it goes."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors 0.8 replaces the file by one that only its owner can read
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8. Raises OSError where it can't be written, with the old one left as it was."""
    with renamed_when_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """`write_text` for a JSON object, indented."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
