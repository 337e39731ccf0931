"""A wheel that holds a model, made here."""

import zipfile
from pathlib import Path

GGUF = b"GGUF" + bytes(range(256)) * 40
FILES = {
    "tiny_model/tiny.gguf": GGUF,
    "tiny_model/__init__.py": b"raise SystemExit('a package was imported')",
    "tiny_model-1.0.dist-info/LICENSE": b"Apache-2.0",
    "tiny_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
    b"Requires-Python: <3\nRequires-Dist: nothing-of-this-name\n",
    "tiny_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "tiny_model-1.0.dist-info/RECORD": b"",
}


def make_wheel(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
