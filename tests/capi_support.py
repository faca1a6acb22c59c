"""What the tests of the C libraries share: building, compiling C programs, running them."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

CAPI = Path(__file__).parents[1] / "capi"
BUILD = CAPI / "build"
HEADER = CAPI / "include" / "bnnumba.h"
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
C99 = ["-std=c99", "-D_POSIX_C_SOURCE=200809L", *WARNINGS]
LIBRARIES = ["bnnumba", "bnnumba_embed"]
# More threads than a small machine has CPUs, so that the parallel paths are taken there as well.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "4", "OMP_WAIT_POLICY": "passive"}


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip a test where a program is missing."""
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def run(*command: object, env: dict | None = None, timeout: float = 900, status: int = 0):
    """Run a command; return the finished process, whose exit status is `status`."""
    process = subprocess.run(
        [str(part) for part in command],
        env={**ENVIRONMENT, **(env or {})},
        timeout=timeout,
        text=True,
        capture_output=True,
        check=False,
    )
    said = f"{process.stdout[-4000:]}\n{process.stderr[-4000:]}"
    assert process.returncode == status, f"{command[0]}: exit {process.returncode}\n{said}"
    return process


def make(*arguments: object):
    """Run make in `capi`, one process at a time: tests of several files build at once."""
    BUILD.mkdir(exist_ok=True)
    with (BUILD / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # A compiler's warning is an error here, not where someone installs.
        options = f"PYTHON={sys.executable}", "WERROR=1"
        return run("make", "-C", CAPI, *options, *arguments, timeout=1800)


@functools.cache
def build(name: str = "bnnumba") -> Path:
    """Build a library, unless that is done, and return its path."""
    if shutil.which("make") is None or shutil.which("cc") is None:
        pytest.skip("the C libraries need make and a C compiler")
    if name == "bnnumba_embed" and not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        pytest.skip("this Python has no shared library to embed")
    path = BUILD / f"lib{name}.so"
    make(f"build/{path.name}")
    return path


def link(name: str) -> list[str]:
    """Return the arguments that link a program with a library that is not installed."""
    build(name)
    return [f"-I{CAPI / 'include'}", f"-L{BUILD}", f"-l{name}", f"-Wl,-rpath,{BUILD}", "-lm"]


@functools.cache
def build_for_aarch64() -> Path:
    """Build the library without Python for another machine and return its directory."""
    make(
        "build/aarch64/libbnnumba.so", "B=build/aarch64", "MACHINE=aarch64",
        "CC=aarch64-linux-gnu-gcc", "STRIP=aarch64-linux-gnu-strip",
    )  # fmt: skip
    return BUILD / "aarch64"
