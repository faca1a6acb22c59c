"""Where the C libraries of this installation are: ``python -m bnnumba config --cflags --libs``."""

from __future__ import annotations

import argparse
from pathlib import Path

from .errors import BackendError

__all__ = ["add_options", "prefix", "show"]

# An installed wheel carries them in the package; `make capi` stages them in a checkout.
_PLACES = (
    Path(__file__).parent / "_capi",
    Path(__file__).parents[1] / "capi" / "build" / "prefix",
)


def prefix() -> Path:
    """Return the directory that has ``include`` and ``lib``, or raise BackendError."""
    for place in _PLACES:
        if (place / "include" / "bnnumba.h").exists():
            return place
    msg = (
        "this installation of bnnumba has no C library: "
        "run `make capi` in a checkout, then `pip install .` there"
    )
    raise BackendError(msg)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what `show` reads; several may be given, as for pkg-config."""
    parser.add_argument("--cflags", action="store_true", help="print what the compiler needs")
    parser.add_argument("--libs", action="store_true", help="print what the linker needs")
    parser.add_argument("--include", action="store_true", help="print the directory of the header")
    parser.add_argument("--cmakedir", action="store_true", help="print bnnumba_DIR for CMake")


def show(options: argparse.Namespace) -> str:
    """Return the answer to the options."""
    root = prefix()
    library = root / "lib"
    parts = []
    if options.include:
        parts.append(str(root / "include"))
    if options.cmakedir:
        parts.append(str(library / "cmake" / "bnnumba"))
    if options.cflags:
        parts.append(f"-I{root / 'include'}")
    if options.libs:
        parts.append(f"-L{library} -Wl,-rpath,{library} -lbnnumba")
    return " ".join(parts)
