"""``python -m bnnumba``: what a bug report needs, and compiling ahead of the first call."""

import argparse
import importlib.metadata
import importlib.util
import platform
import sys
import time

import numpy as np

from . import __version__, config
from .errors import BackendError


def _cuda_state() -> str:
    if importlib.util.find_spec("numba_cuda") is None:  # Numba's own CUDA target is too old
        return "numba-cuda is not installed (pip install 'bnnumba[cu13]')"
    from numba import cuda

    try:
        if not cuda.is_available():
            return "no device found"
        return cuda.get_current_device().name.decode()
    except Exception as error:
        return f"not usable: {error}"


def _cache_directory() -> str | None:
    from .cpu import parallel

    cache = getattr(parallel.forward.dispatcher, "_cache", None)
    return getattr(cache, "cache_path", None)


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
        "cache": _cache_directory() or "none can be written, each process compiles anew",
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


def warmup(dtypes: list[str], embed: bool) -> None:
    """Compile the kernels for the common cases, as far as the cache does not have them.

    With `embed` also those that ``libbnnumba_embed`` calls.
    """
    from . import (
        BatchNorm,
        batch_norm_backward,
        batch_norm_inference,
        batch_norm_training,
        moments,
    )

    cases = [(dtype, shape, axis) for dtype in dtypes for shape, axis in _SHAPES]
    begin = time.perf_counter()
    for done, (dtype, shape, axis) in enumerate(cases, 1):
        kind = np.dtype(dtype) if dtype != "bfloat16" else _bfloat16()
        x = np.ones(shape, kind)
        weight = np.ones(shape[axis], np.float64 if dtype == "float64" else np.float32)
        mean, var = np.zeros_like(weight), np.ones_like(weight)
        y, saved = batch_norm_training(
            x, weight, weight, running_mean=mean, running_var=var, axis=axis
        )
        batch_norm_backward(y, saved)
        batch_norm_inference(x, mean, var, weight, weight, axis=axis)
        layer = BatchNorm(shape[axis], dtype=weight.dtype, axis=axis).eval()
        layer(x)
        layer.backward(y)
        moments(x, axis=axis).merge(saved.moments)
        seconds = time.perf_counter() - begin
        print(f"[{done}/{len(cases)}] {dtype} {shape}: {seconds:.1f} s so far", flush=True)
    if embed:
        from ._capi import entries

        names = entries.names(*(dtype.replace("float", "f") for dtype in dtypes))
        for done, name in enumerate(names, 1):
            entries.entry(name)
            seconds = time.perf_counter() - begin
            print(f"[{done}/{len(names)}] {name}: {seconds:.1f} s so far", flush=True)
    kept = _cache_directory()
    print(
        f"compiled code is in {kept}"
        if kept
        else "no directory for it can be written: nothing kept"
    )


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
    c_library = commands.add_parser("config", help="tell C compilers where the C library is")
    config.add_options(c_library)
    options = parser.parse_args(arguments)
    if options.command == "info":
        info()
    elif options.command == "config":
        if not config.asked(options):
            c_library.error("expected at least one of " + ", ".join(config.OPTIONS))
        try:
            print(config.show(options))
        except BackendError as error:
            print(error, file=sys.stderr)
            return 1
    else:
        warmup(options.dtypes, options.embed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
