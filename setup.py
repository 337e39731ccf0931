"""The native library, for setuptools; everything else is said in pyproject.toml.

Optional: without a compiler, or where it fails, the package is installed without it and torch does the work."""

import os
import runpy
from pathlib import Path

from setuptools import Extension, setup

os.chdir(Path(__file__).parent)
build = runpy.run_path("qkv/kernels/build.py")
sources, headers = build["sources"](Path("qkv/kernels"))
library = Extension(
    f"qkv.kernels._packed_{build['fingerprint'](Path('qkv/kernels'))}",
    sources=[path.as_posix() for path in sources],
    depends=[path.as_posix() for path in headers],
    extra_compile_args=[*build["FLAGS"], "-g0"],
    extra_link_args=["-pthread"],
    optional=True,
)
setup(ext_modules=[library] if os.name == "posix" else [])
