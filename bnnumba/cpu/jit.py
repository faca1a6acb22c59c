"""Every Numba compile option that the CPU kernels use, each with its reason."""

import hashlib
import pathlib
import warnings

import numba
from numba import config
from numba.core.errors import NumbaPerformanceWarning

# nogil: other Python threads run while a kernel works.
# error_model="numpy": a division by zero gives inf or nan as in NumPy, without a branch that raises.
# fastmath stays off: NaN and infinity must survive, and the order of additions is the contract
# ("same bits every time"). What may be fused to an FMA says so itself (simd.fma).
_OPTIONS = {"nogil": True, "error_model": "numpy"}


def _source_stamp():
    """Return a digest of all kernel sources and of the options that change their machine code.

    Numba's cache index watches only the file that a function stands in, not what it calls, so a
    cached kernel would go stale silently when a helper in another file changed.
    """
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        try:
            digest.update(path.read_bytes())
        except OSError:  # a zipped package: Numba's own stamp, the archive's, covers every file
            return None
    digest.update(f"boundscheck={config.BOUNDSCHECK}".encode())
    return digest.hexdigest()


_STAMP = _source_stamp()


def _compile(function, **options):
    try:
        dispatcher = numba.njit(cache=True, **_OPTIONS, **options)(function)
    except RuntimeError:  # no directory for the cache can be written: compile in each process
        return numba.njit(**_OPTIONS, **options)(function)
    cache_file = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if _STAMP is not None and hasattr(cache_file, "_source_stamp"):
        cache_file._source_stamp = _STAMP
    return dispatcher


def kernel(function):
    """Compile a serial kernel: a range kernel or a helper that one calls."""
    return _compile(function)


def driver(function):
    """Compile a function that runs a range kernel over ``prange``."""
    warnings.filterwarnings("ignore", category=NumbaPerformanceWarning, module=__package__)
    return _compile(function, parallel=True)
