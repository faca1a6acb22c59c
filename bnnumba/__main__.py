"""``python -m bnnumba``: what a bug report needs, and compiling ahead of the first call."""

import argparse
import functools
import importlib.metadata
import importlib.util
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

from . import __version__, config
from .code_cache import not_kept
from .errors import BackendError


def _cuda_state() -> str:
    if importlib.util.find_spec("numba_cuda") is None:  # Numba's own CUDA target is too old
        return "numba-cuda is not installed (pip install 'bnnumba[cu13]')"
    from numba import cuda

    try:
        if not cuda.is_available():
            return "no device found"
        found = cuda.get_current_device().name
        return found.decode() if isinstance(found, bytes) else found
    except Exception as error:
        return f"not usable: {error}"


def _cache_directory() -> str | None:
    from .cpu import parallel

    cache = getattr(parallel.forward.dispatcher, "_cache", None)
    return getattr(cache, "cache_path", None)


def _cache() -> str:
    import numba

    if numba.config.DISABLE_JIT:
        return "none: NUMBA_DISABLE_JIT is set, so that there is no compiler and kernels cannot run"
    return _cache_directory() or "none can be written, each process compiles anew"


def _threading_layer() -> str:
    import numba

    try:
        numba.get_num_threads()  # starts the threads
        layer = numba.threading_layer()
    except ValueError as error:
        return f"none can be used: {str(error).splitlines()[0]}"
    hint = " (slow to start: install GNU OpenMP, libgomp1, or tbb)"
    return f"{layer}{hint}" if layer == "workqueue" else layer


def _threads() -> int | str:
    import numba

    try:
        return numba.get_num_threads()
    except ValueError:  # there is no threading layer
        return "none"


def info() -> None:
    """Print versions, the CPU, threads, the cache directory and the state of CUDA."""
    import llvmlite.binding as llvm
    import numba

    features = llvm.get_host_cpu_features()
    known = [name for name in ("sse4.2", "avx2", "fma", "f16c", "avx512f") if features.get(name)]
    rows = {
        "bnnumba": __version__,
        "Python": f"{sys.version.split()[0]} ({platform.platform()})",
        "Numba": f"{numba.__version__} (llvmlite {importlib.metadata.version('llvmlite')})",
        "NumPy": np.__version__,
        "CPU": f"{llvm.get_host_cpu_name()} ({', '.join(known)})",
        "threading layer": _threading_layer(),
        "threads": _threads(),
        "cache": _cache(),
        "CUDA": _cuda_state(),
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")


# Shapes that reach the serial, the fused and the split drivers of both views. Fused are those of
# many channels, in long runs of memory, in any cache.
_SHAPES = [
    ((4, 8, 64), 1),
    ((64, 8), 1),
    ((1, 128, 4096), 1),
    ((8, 2, 32768), 1),
    ((4, 131072), 1),
    ((20000, 64), 1),
]


def warmup(dtypes: list[str], embed: bool, capabilities: list[tuple[int, int]]) -> None:
    """Compile the kernels for the common cases, as far as the cache does not have them.

    BackendError is raised at the end if they could not all be kept.

    With `embed` also those that ``libbnnumba_embed`` calls, and CUDA kernels for any compute
    capabilities.
    """
    work = [*_common_cases(dtypes)]
    if embed:
        work += _entries(dtypes)
    for capability in capabilities:
        work += _cuda_kernels(dtypes, capability)
    begin = time.perf_counter()
    for done, (name, compile_it) in enumerate(work, 1):
        compile_it()
        seconds = time.perf_counter() - begin
        print(f"[{done}/{len(work)}] {name}: {seconds:.1f} s so far", flush=True)
    kept = _cache_directory()
    if not kept:
        msg = "no directory for compiled code can be written: nothing is kept"
        raise BackendError(msg)
    if not_kept:
        msg = f"{len(not_kept)} compiled functions could not be kept: {not_kept[-1]}"
        raise BackendError(msg)
    print(f"compiled code is in {kept}")


# What is to be compiled: a name to show, and a call that does it.
_Work = Iterator[tuple[str, Callable[[], object]]]


def _common_cases(dtypes: list[str]) -> _Work:
    for dtype in dtypes:
        for shape, axis in _SHAPES:
            yield f"{dtype} {shape}", functools.partial(_call_everything, dtype, shape, axis)


def _call_everything(dtype: str, shape: tuple[int, ...], axis: int) -> None:
    from . import (
        BatchNorm,
        batch_norm_backward,
        batch_norm_inference,
        batch_norm_training,
        moments,
    )

    kind = np.dtype(dtype) if dtype != "bfloat16" else _bfloat16()
    x = np.ones(shape, kind)
    weight = np.ones(shape[axis], np.float64 if dtype == "float64" else np.float32)
    mean, var = np.zeros_like(weight), np.ones_like(weight)
    y, saved = batch_norm_training(x, weight, weight, running_mean=mean, running_var=var, axis=axis)
    batch_norm_backward(y, saved)
    batch_norm_inference(x, mean, var, weight, weight, axis=axis)
    layer = BatchNorm(shape[axis], dtype=weight.dtype, axis=axis).eval()
    layer(x)
    layer.backward(y)
    moments(x, axis=axis).merge(saved.moments)


def _entries(dtypes: list[str]) -> _Work:
    from ._capi import entries

    for name in entries.names(*(dtype.replace("float", "f") for dtype in dtypes)):
        yield name, functools.partial(entries.entry, name)


def _cuda_kernels(dtypes: list[str], capability: tuple[int, int]) -> _Work:
    try:
        from .gpu.jit import SIMULATED
        from .gpu.launch import kernels_of
        from .gpu.plan import widest
        from .gpu.simd import KINDS
    except ImportError as error:
        install = "pip install 'bnnumba[cu13]'"
        msg = f"--cuda: needs numba-cuda ({install}), which could not be imported: {error}"
        raise BackendError(msg) from error
    if SIMULATED:
        msg = "--cuda: the simulator (NUMBA_ENABLE_CUDASIM=1) compiles nothing"
        raise BackendError(msg)
    wanted = f"for {capability[0]}.{capability[1]}"
    for dtype in dtypes:
        parameter = "float64" if dtype == "float64" else "float32"
        for view, columns_contiguous in (("ncs", False), ("rc", True)):
            count = widest(KINDS[dtype], columns_contiguous, capability)
            found = kernels_of(dtype, count, count if columns_contiguous else 1, parameter)
            for name, kernel in vars(found).items():
                compile_it = functools.partial(kernel.machine_code, capability)
                yield f"{name} {view} {dtype} {wanted}", compile_it


def _capability(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)\.(\d)", text)
    if not found or int(found[1]) < 8:
        msg = f"expected a compute capability from 8.0, such as 9.0, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return int(found[1]), int(found[2])


def _bfloat16() -> np.dtype:
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bnnumba",
        description="What a bug report needs, and compiling ahead of the first call.",
    )
    parser.add_argument("--version", action="version", version=f"bnnumba {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="print versions, CPU, threads, cache directory, CUDA state")
    warm = commands.add_parser("warmup", help="compile the common cases ahead, into the cache")
    warm.add_argument(
        "--dtypes",
        nargs="+",
        choices=["float32", "float64", "float16", "bfloat16"],
        default=["float32"],
        help="dtypes of the data to compile for (default: float32)",
    )
    warm.add_argument(
        "--embed", action="store_true", help="also what the C library libbnnumba_embed calls"
    )
    warm.add_argument(
        "--cuda",
        nargs="+",
        type=_capability,
        default=[],
        metavar="CAPABILITY",
        help="also CUDA kernels for compute capabilities such as 9.0, for which no GPU is needed",
    )
    c_library = commands.add_parser("config", help="tell C compilers where the C library is")
    config.add_options(c_library)
    options = parser.parse_args(arguments)
    if options.command == "config" and not config.asked(options):
        c_library.error("expected at least one of " + ", ".join(config.OPTIONS))
    try:
        if options.command == "info":
            info()
        elif options.command == "config":
            print(config.show(options))
        else:
            warmup(options.dtypes, options.embed, options.cuda)
    except BackendError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
