"""Generate the part of libbnnumba_embed that starts Python, with cffi.

    python capi/build_embedding.py build     writes build/python.c and build/python.h
    python capi/build_embedding.py --flags   what the compiler needs for python.c
    python capi/build_embedding.py --libs    what the linker needs

The regions of ``bnnumba.h`` between ``/* cffi: ... */`` and ``/* cffi: end */`` are what cffi
reads; the functions marked as `tensors` are repeated with the prefix ``bn_python_`` as entry points
of Python, for tensors that C cannot reach.
"""

import argparse
import re
import sys
import sysconfig
from pathlib import Path

import cffi

HEADER = Path(__file__).parent / "include" / "bnnumba.h"

# The entry points beside those of the header. All names begin with bn_: they are not exported.
ENTRY_POINTS = """
int bn_python_start(const char *version, const char *agreed, char *cpu_out, int capacity);
intptr_t bn_python_kernel(const char *name);
"""
CALLBACKS = "void bn_python_failed(bnnumba_status status, const char *text);"

# The environment is the one that this runs in, or a virtual environment named at run time.
INIT_CODE = (
    "import os, site; site.addsitedir(os.path.join("
    "os.environ.get('BNNUMBA_PYTHON_ENV') or {prefix!r}, {site_packages!r}))\n"
    "from _bnnumba_embed import ffi, lib; "
    "from bnnumba._capi.embedding import register; register(ffi, lib)\n"
)


def region(kind: str) -> str:
    """Return all regions of the header that are marked with a word."""
    found = re.findall(r"/\* cffi: ([\w ]+) \*/\n(.*?)/\* cffi: end \*/", HEADER.read_text(), re.S)
    return "\n".join(text for words, text in found if kind in words.split())


def generate(directory: Path) -> None:
    """Write python.c and python.h."""
    site_packages = str(Path(sysconfig.get_path("purelib")).relative_to(sys.prefix))
    tensors = re.sub(r"/\*.*?\*/", "", region("tensors"), flags=re.S)
    entry_points = ENTRY_POINTS + re.sub(r"\bbnnumba_(\w+_dl)\(", r"bn_python_\1(", tensors)
    ffi = cffi.FFI()
    ffi.cdef(region("types") + region("functions") + CALLBACKS)
    ffi.embedding_api(entry_points)
    ffi.set_source("_bnnumba_embed", f'#include "bnnumba.h"\n{CALLBACKS}')
    ffi.embedding_init_code(INIT_CODE.format(prefix=sys.prefix, site_packages=site_packages))
    ffi.emit_c_code(str(directory / "python.c"))
    defines = {"BUILT_IN": sys.prefix, "SITE_PACKAGES": site_packages}
    (directory / "python.h").write_text(
        '/* Made by build_embedding.py: do not edit. */\n#include "bnnumba.h"\n'
        + "".join(f'#define {name} "{value}"\n' for name, value in defines.items())
        + CALLBACKS
        + entry_points
    )


def libs() -> list[str]:
    """Return the linker's arguments for the shared library of this Python, none if it has none."""
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        return []
    name = f"python{sysconfig.get_config_var('LDVERSION')}"
    directory = sysconfig.get_config_var("LIBDIR")
    return [f"-L{directory}", f"-l{name}", f"-Wl,-rpath,{directory}"]


def main() -> None:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, nargs="?")
    parser.add_argument("--flags", action="store_true")
    parser.add_argument("--libs", action="store_true")
    options = parser.parse_args()
    if options.flags:
        print(f"-I{sysconfig.get_path('include')}")
    elif options.libs:
        print(*libs())
    else:
        generate(options.directory)


main()
