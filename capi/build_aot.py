"""Compile the range kernels ahead of time: one object file per level of the CPU.

    python capi/build_aot.py lower build/lowered

has Numba lower each entry, which takes most of the time, and writes ``build/lowered/<entry>.bc``;

    python capi/build_aot.py compile build/lowered build --machine x86_64

has LLVM optimize those modules for each level of a machine, and writes ``build/kernels.h`` (names,
constants and the job as C) and ``build/kernels_<level>.o``. What Numba lowers fits any 64-bit
machine that stores low bytes first.

The script re-executes itself with Numba's settings in the environment, because Numba reads them
when it is imported. Only private parts of Numba give the LLVM module of a function
(`_library._final_module`); a change there shows as an error here, or in the gate on undefined
symbols, not in the library.
"""

import argparse
import functools
import itertools
import multiprocessing
import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

LEVELS = {"x86_64": ["x86-64-v2", "x86-64-v3", "x86-64-v4"], "aarch64": ["generic"]}
TRIPLES = {"x86_64": "x86_64-unknown-linux-gnu", "aarch64": "aarch64-unknown-linux-gnu"}
# The level that Numba lowers for, on the machine that builds. It loads what it has compiled, though
# nothing runs, and below v3 would miss the functions that stand for conversions from float16.
LOWERED = {"x86_64": "x86-64-v3", "aarch64": "generic"}
# What an entry is called before it has its own name, which names the level as well.
ENTRY = "bnnumba_entry"


def write_header(path: Path, levels: list[str]) -> None:
    """Write what C must know about the kernels, from where Python knows it."""
    from bnnumba import __version__
    from bnnumba._capi import entries, job
    from bnnumba.cpu import caches, choices

    fields = "\n".join(
        f"    {'double' if name in job.FLOATS else 'int64_t'} {name};" for name in job.FIELDS
    )
    constants = {
        "PARALLEL_SIZE": choices.PARALLEL_SIZE,
        "USUAL_L2": caches.USUAL_L2,
        "USUAL_SHARE": caches.USUAL_SHARE,
        "USUAL_SWEPT": caches.USUAL_SWEPT,
        "ZEN_4_BLOCK": caches.ZEN_4_BLOCK,
        "SPILL": caches.SPILL,
        **job.SIZES,
    }
    defines = "\n".join(f"#define {name} INT64_C({value})" for name, value in constants.items())
    listed = " \\\n    ".join(f"X({name})" for name in entries.names())
    leveled = " \\\n    ".join(f"X({name}, level)" for name in entries.names())
    level_list = " ".join(f'X({suffix(level)}, "{level}")' for level in levels)
    path.write_text(f"""\
/* Made by build_aot.py from the Python package: do not edit. */
#ifndef BNNUMBA_KERNELS_H
#define BNNUMBA_KERNELS_H
#include <stdint.h>

#define PACKAGE_VERSION "{__version__}"
#define CACHE_SIZE "{caches.SIZE.format("%d")}"
#define AGREEMENT "{job.agreement()}"
{defines}

typedef struct job {{
{fields}
}} job;

typedef void kernel(int64_t begin, int64_t end, job *job_at, double *work);

#define KERNELS(X) \\
    {listed}
#define KERNELS_OF(X, level) \\
    {leveled}
#define LEVELS(X) {level_list}
#endif
""")


def suffix(level: str) -> str:
    """Return a level as a part of a C name."""
    return level.replace("x86-64-", "").replace("-", "_")


def lower(directory: Path) -> None:
    """Write the LLVM modules of all entries."""
    from bnnumba._capi import entries

    directory.mkdir(parents=True, exist_ok=True)
    # One process does those of a dtype and view, such as forward_ncs_f32, which have common parts.
    alike = itertools.groupby(entries.names(), lambda name: name.split("_")[-2:])
    groups = [[*names] for _, names in alike]
    _show_progress(functools.partial(_lower, directory), groups, ", ".join)


def _lower(directory: Path, names: list[str]) -> None:
    import llvmlite.binding as llvm

    from bnnumba._capi import entries

    for name in names:
        callback = entries.entry(name, keep=False)
        text = str(callback._library._final_module)
        module = llvm.parse_assembly(text.replace(callback.native_name, ENTRY))
        (directory / f"{name}.bc").write_bytes(module.as_bitcode())


def compile_lowered(lowered: Path, directory: Path, machine: str) -> None:
    """Write the object files of all entries, one for each level of a machine."""
    import llvmlite.binding as llvm

    from bnnumba._capi import entries

    _know(machine)
    libraries: dict = {}
    optimize = functools.partial(_optimize, lowered, machine)
    for levels in _show_progress(optimize, entries.names()):
        for level, bitcode in levels.items():
            module = llvm.parse_bitcode(bitcode)
            if level in libraries:
                libraries[level].link_in(module)
            else:
                libraries[level] = module
    for level, library in libraries.items():
        path = directory / f"kernels_{suffix(level)}.o"
        path.write_bytes(_target_machine(machine, level).emit_object(library))


def _show_progress(work: Callable, items: list, name: Callable[[Any], str] = str) -> list:
    """Do some work on each item, in as many processes as there are CPUs."""
    done = []
    with multiprocessing.Pool(len(os.sched_getaffinity(0))) as pool:
        for item, result in zip(items, pool.imap(work, items), strict=True):
            done.append(result)
            print(f"[{len(done)}/{len(items)}] {name(item)}", flush=True)
    return done


def _know(machine: str) -> None:
    """Have LLVM know a machine."""
    import llvmlite.binding as llvm

    if machine != platform.machine():
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()


def _target_machine(machine: str, level: str):
    """Return LLVM's idea of a level of a machine."""
    import llvmlite.binding as llvm

    return llvm.Target.from_triple(TRIPLES[machine]).create_target_machine(
        cpu=level, features="", opt=3, reloc="pic", codemodel="default"
    )


def _optimize(lowered: Path, machine: str, name: str) -> dict[str, bytes]:
    """Return the optimized LLVM module of an entry for each level."""
    _know(machine)
    bitcode = (lowered / f"{name}.bc").read_bytes()
    return {
        level: _module(
            bitcode, f"bnnumba_{name}_{suffix(level)}", _target_machine(machine, level)
        ).as_bitcode()
        for level in LEVELS[machine]
    }


def _module(bitcode: bytes, name: str, target_machine):
    """Return the optimized LLVM module of an entry, which is all that others see of it."""
    import llvmlite.binding as llvm

    module = llvm.parse_bitcode(bitcode)
    module.triple = target_machine.triple
    module.data_layout = str(target_machine.target_data)
    for function in module.functions:
        if not function.is_declaration:
            visible = function.name == ENTRY
            function.linkage = "external" if visible else "internal"
            if visible:
                function.name = name
                function.visibility = "hidden"
    for variable in module.global_variables:
        if not variable.is_declaration:
            variable.linkage = "internal"
    # Inlines the helpers and drops the error paths, which would call Python.
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    builder = llvm.create_pass_builder(target_machine, options)
    builder.getModulePassManager().run(module, builder)
    foreign = [
        function.name
        for function in module.functions
        if function.is_declaration and re.match(r"_?Py|NRT_|numba", function.name)
    ]
    if foreign:
        # Not sys.exit: the pool would wait for good for the process that it ends.
        msg = f"{name} would call {', '.join(foreign)}"
        raise RuntimeError(msg)
    return module


def main() -> None:
    """Write everything, in a process that has Numba's settings."""
    parser = argparse.ArgumentParser(description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True)
    stage = stages.add_parser("lower", help="write the modules of all entries")
    stage.add_argument("lowered", type=Path)
    stage = stages.add_parser("compile", help="write the object files and kernels.h")
    stage.add_argument("lowered", type=Path)
    stage.add_argument("directory", type=Path)
    stage.add_argument(
        "--machine", default=platform.machine(), help="what to build for, as uname -m names it"
    )
    given = parser.parse_args()
    settings = {
        "NUMBA_CPU_NAME": LOWERED.get(platform.machine(), ""),
        "NUMBA_CPU_FEATURES": "",
        "NUMBA_OPT": "1",  # O3 comes after
        "NUMBA_CACHE_DIR": str(given.lowered / "cache"),
    }
    if any(os.environ.get(name) != value for name, value in settings.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **settings})
    if given.stage == "lower":
        lower(given.lowered)
    elif given.machine in LEVELS:
        given.directory.mkdir(parents=True, exist_ok=True)
        write_header(given.directory / "kernels.h", LEVELS[given.machine])
        compile_lowered(given.lowered, given.directory, given.machine)
    else:
        found = given.machine
        sys.exit(f"bnnumba's C library is built for {' and '.join(LEVELS)}, not for {found}")


if __name__ == "__main__":
    main()
