"""The one module that imports numba.cuda: how kernels are compiled, and who a thread is.

Compiled functions take addresses as integers (`bnnumba.gpu.memory` reads and writes there), so that
a call passes few arguments and needs no array object of Numba's. In Numba's CUDA simulator
(``NUMBA_ENABLE_CUDASIM=1``) the same functions run as Python.
"""

import contextlib
import functools
import importlib.metadata
import inspect
import os
import pathlib
import re
from types import SimpleNamespace

from numba import cuda, float32, float64, int64
from numba.core.caching import CompileResultCacheImpl
from numba.core.compiler_lock import global_compiler_lock

from ..code_cache import code_files, forgiving, not_kept, source_stamp

__all__ = [
    "MAX_THREADS",
    "SIMULATED",
    "Kernel",
    "assemble",
    "block",
    "inlined",
    "sync",
    "thread",
    "threads",
]

SIMULATED = bool(cuda.config.ENABLE_CUDASIM) if hasattr(cuda, "config") else False
# Threads of a block at most: 128 registers are left to each, more than any kernel uses.
MAX_THREADS = 512

if SIMULATED:
    from .simulator import block, inlined, sync, thread, threads
else:
    from numba.cuda import dispatcher

    def inlined(function):
        """Compile a device function, once for all kernels; the optimizer inlines it.

        Numba's own inlining (``inline="always"``) took ten times as long to compile.
        """
        return cuda.jit(device=True, forceinline=True)(function)

    @inlined
    def thread():
        """Return the number of this thread in its block."""
        return int64(cuda.threadIdx.x)

    @inlined
    def threads():
        """Return the number of threads of a block, a power of two."""
        return int64(cuda.blockDim.x)

    @inlined
    def block():
        """Return the number of this block."""
        return int64(cuda.blockIdx.x)

    @inlined
    def sync():
        """Wait for all threads of this block."""
        cuda.syncthreads()


@contextlib.contextmanager
def _device(capability):
    """Have called functions compiled for a compute capability.

    Numba asks the driver for the device at hand, which may be another one, or none.
    """
    with global_compiler_lock:
        asked = dispatcher.get_current_device
        dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
        try:
            yield
        finally:
            dispatcher.get_current_device = asked


@functools.cache
def _compilers():
    """Return what PTX depends on that is not in the sources of kernels."""
    from numba.cuda.cuda_paths import get_cuda_paths

    version, debug = importlib.metadata.version("numba-cuda"), cuda.config.CUDA_DEBUGINFO_DEFAULT
    _, nvvm = get_cuda_paths()["nvvm"]
    try:
        found = os.stat(nvvm)
    except (OSError, TypeError):  # the name of a library that the system finds, or none
        return version, debug, nvvm
    return version, debug, nvvm, found.st_size, found.st_mtime_ns


def _assembler():
    """Return what machine code depends on besides its PTX."""
    from cuda.bindings import nvjitlink

    return nvjitlink.version()


def assemble(ptx, capability):
    """Return the machine code that nvJitLink makes of PTX, and its report."""
    from cuda.bindings import nvjitlink

    options = [f"-arch=sm_{capability[0]}{capability[1]}", "-verbose"]
    handle = nvjitlink.create(len(options), options)
    try:
        text = ptx.encode()
        nvjitlink.add_data(handle, nvjitlink.InputType.PTX, text, len(text), "bnnumba")
        nvjitlink.complete(handle)
        code = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, code)
        report = bytearray(nvjitlink.get_info_log_size(handle))
        nvjitlink.get_info_log(handle, report)
    finally:
        nvjitlink.destroy(handle)
    return bytes(code), report.decode().rstrip("\0")


class Kernel:
    """A kernel, compiled for a device when it is first wanted there, or taken from the cache.

    Parameters
    ----------
    function : function
        Its body; arguments in the `reals` last places are floats, all others integers.
    double : bool
        Whether its floats are float64.
    variant : tuple
        What tells it from others that are made by the same source.
    """

    def __init__(self, function, reals, double, variant):
        self.name = function.__name__
        self.function = function
        self.variant = variant
        count = len(inspect.signature(function).parameters)
        real, code = (float64, "d") if double else (float32, "f")
        self.signature = (int64,) * (count - reals) + (real,) * reals
        self.format = "q" * (count - reals) + code * reals  # of `struct`

    def ptx(self, capability):
        """Return the entry point's name and the PTX for a compute capability such as (9, 0)."""
        key = capability, _compilers()
        return self._kept(key, lambda: self._compile(capability))

    def machine_code(self, capability):
        """Return the entry point's name and the machine code, or PTX where nothing assembles it."""

        def make():
            name, text = self.ptx(capability)
            return name, assemble(text, capability)[0]

        try:
            # With its name, which differs from process to process.
            return self._kept((capability, _compilers(), _assembler()), make)
        except Exception:  # no nvJitLink, or an older one, whose error is no RuntimeError
            # The driver assembles PTX that is not newer than itself.
            name, text = self.ptx(capability)
            return name, text.encode()

    def _kept(self, key, make):
        """Return what stands under a key in the cache, after making it if there is none."""
        try:
            place = CompileResultCacheImpl(self.function)
        except RuntimeError:  # no directory for the cache can be written
            return make()
        files = code_files(place, source_stamp(pathlib.Path(__file__).parent))
        key = self.variant, self.format, *key
        found = forgiving(files.load)(key)
        if found is None:
            found = make()
            forgiving(files.save, not_kept)(key, found)
        return found

    def _compile(self, capability):
        with _device(capability):
            text, _ = cuda.compile(
                self.function, self.signature, device=False, abi="numba", cc=capability,
                launch_bounds=MAX_THREADS,
            )  # fmt: skip
        return re.search(r"\.visible \.entry (\w+)", text)[1], text
