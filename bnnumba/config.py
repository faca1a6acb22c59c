"""Where the C libraries of this installation are: ``python -m bnnumba config --cflags --libs``."""

from __future__ import annotations

import argparse
from pathlib import Path

from .errors import BackendError

__all__ = ["OPTIONS", "add_options", "asked", "prefix", "show"]

# An installed wheel carries them in the package; `make capi` stages them in a checkout.
_PLACES = (
    Path(__file__).parent / "_capi",
    Path(__file__).parents[1] / "capi" / "build" / "prefix",
)

OPTIONS = {
    "--cflags": "what the compiler needs",
    "--libs": "what the linker needs",
    "--include": "the directory of the header",
    "--libdir": "the directory of the libraries",
    "--cmakedir": "bnnumba_DIR for CMake",
}


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
    for option, what in OPTIONS.items():
        parser.add_argument(option, action="store_true", help=f"print {what}")
    parser.add_argument(
        "--embed", action="store_true", help="have --libs name the library with Python inside"
    )


def asked(options: argparse.Namespace) -> bool:
    """Return whether any option was given."""
    return any(getattr(options, option.removeprefix("--")) for option in OPTIONS)


def show(options: argparse.Namespace) -> str:
    """Return the answer to the options."""
    root = prefix()
    library = root / "lib"
    parts = []
    if options.include:
        parts.append(str(root / "include"))
    if options.libdir:
        parts.append(str(library))
    if options.cmakedir:
        parts.append(str(library / "cmake" / "bnnumba"))
    if options.cflags:
        parts.append(f"-I{root / 'include'}")
    if options.libs:
        name = "bnnumba_embed" if options.embed else "bnnumba"
        parts.append(f"-L{library} -Wl,-rpath,{library} -l{name}")
    return " ".join(parts)
