"""The one module that imports numba.cuda: how kernels are compiled, and who a thread is.

Compiled functions take addresses as integers (`bnnumba.gpu.memory` reads and writes there), so that
a call passes few arguments and needs no array object of Numba's. In Numba's CUDA simulator
(``NUMBA_ENABLE_CUDASIM=1``) the same functions run as Python.
"""

import contextlib
import inspect
import re
from types import SimpleNamespace

from numba import cuda, float32, float64, int64
from numba.core.compiler_lock import global_compiler_lock

__all__ = ["MAX_THREADS", "SIMULATED", "Kernel", "block", "inlined", "sync", "thread", "threads"]

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


class Kernel:
    """A kernel, compiled for a device when it is first wanted there.

    Parameters
    ----------
    function : function
        Its body; arguments in the `reals` last places are floats, all others integers.
    double : bool
        Whether its floats are float64.
    """

    def __init__(self, function, reals, double):
        self.name = function.__name__
        self.function = function
        count = len(inspect.signature(function).parameters)
        real, code = (float64, "d") if double else (float32, "f")
        self.signature = (int64,) * (count - reals) + (real,) * reals
        self.format = "q" * (count - reals) + code * reals  # of `struct`

    def ptx(self, capability):
        """Return the entry point's name and the PTX for a compute capability such as (9, 0)."""
        with _device(capability):
            text, _ = cuda.compile(
                self.function, self.signature, device=False, abi="numba", cc=capability,
                launch_bounds=MAX_THREADS,
            )  # fmt: skip
        return re.search(r"\.visible \.entry (\w+)", text)[1], text
