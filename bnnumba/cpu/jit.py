"""Every Numba compile option that the CPU kernels use, each with its reason."""

import hashlib
import inspect
import pathlib
import types
import warnings

import numba
from numba import config
from numba.core.errors import NumbaPerformanceWarning
from numba.extending import overload

from ..compiling import compiling
from ..errors import BackendError

# nogil: other Python threads run while a kernel works.
# error_model="numpy": a division by zero gives inf or nan as in NumPy, and no branch raises.
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
    # Nobody calls these by C's convention, for which Numba would compile another entry.
    options = {**_OPTIONS, "no_cfunc_wrapper": True, **options}
    try:
        dispatcher = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no directory for the cache can be written: compile in each process
        return numba.njit(**options)(function)
    cache = getattr(dispatcher, "_cache", None)
    cache_file = getattr(cache, "_cache_file", None)
    if _STAMP is not None and hasattr(cache_file, "_source_stamp"):
        cache_file._source_stamp = _STAMP
    for name in ("load_overload", "save_overload"):
        if hasattr(cache, name):
            setattr(cache, name, _forgiving(getattr(cache, name)))
    return dispatcher


def _forgiving(use_cache):
    def use_cache_or_not(*arguments):
        try:
            return use_cache(*arguments)
        except OSError:  # a full disk, a directory that went away: keep compiled code in memory
            return None

    return use_cache_or_not


def inlined(function):
    """Compile a helper into each kernel that calls it.

    Numba compiles and optimizes a called function by itself and then again inside each caller;
    with small helpers inlined before typing, a kernel compiles in less time.
    """
    return numba.njit(inline="always", **_OPTIONS)(function)


def by_rank(ncs, rc):
    """Return one function of a view x and more: `ncs` for x[n, c, s], `rc` for x[r, c]."""

    def step(x, *arguments):
        return (ncs if x.ndim == 3 else rc)(x, *arguments)

    @overload(step, strict=False, jit_options={**_OPTIONS, "no_cfunc_wrapper": True})
    def _overload_step(x, *arguments):
        return ncs if x.ndim == 3 else rc

    return step


def kernel(function):
    """Compile a range kernel: serial, without the GIL, without allocating."""
    dispatcher = _compile(function)
    dispatcher.inlined = inlined(function)
    return dispatcher


class Strided:
    """A compiled function that takes contiguous, strided and read-only arrays alike.

    Numba would compile another version for each combination of layouts that it meets. Here arrays
    are typed as strided, and as read-only unless they are among `outputs`, so that there is one
    version for each combination of dtypes and ranks.
    """

    def __init__(self, function, outputs, **options):
        self.dispatcher = _compile(function, **options)
        self._written = [name in outputs for name in inspect.signature(function).parameters]
        # Numba refuses to stop compiling before there is something compiled.
        self._call = self.dispatcher if config.DISABLE_JIT else self._compile_and_call
        if not config.DISABLE_JIT:
            # Numba asks this for code when it has none that fits and may compile, which it may
            # while `compile` is at work: a call from another thread must not compile as it likes.
            self.dispatcher._compile_for_args = self._entry_point

    def __call__(self, *arguments):
        """Call, compiling first where the types are new."""
        try:
            return self._call(*arguments)
        except TypeError:
            if config.DISABLE_JIT:
                raise
            return self._compile_and_call(*arguments)
        except NotImplementedError as error:
            msg = "bnnumba's kernels need the compiler: NUMBA_DISABLE_JIT must not be set"
            raise BackendError(msg) from error

    def _compile_and_call(self, *arguments):
        self.compile(arguments)
        self._call = self.dispatcher
        return self.dispatcher(*arguments)

    def _entry_point(self, *arguments):
        return self.dispatcher.overloads[self.compile(arguments)].entry_point

    def compile(self, arguments):
        """Compile (or load from the cache) the version that takes these arguments."""
        with compiling():
            signature = tuple(
                _strided(numba.typeof(argument), written)
                for argument, written in zip(arguments, self._written, strict=True)
            )
            if signature not in self.dispatcher.overloads:
                self.dispatcher.disable_compile(False)
                self.dispatcher.compile(signature)
                self.dispatcher.disable_compile()
        return signature


def _strided(kind, written):
    if isinstance(kind, numba.types.Array):
        return numba.types.Array(kind.dtype, kind.ndim, "A", readonly=not written)
    return kind


class Driver:
    """A function over ``prange``, compiled with and without threads."""

    def __init__(self, function, outputs):
        warnings.filterwarnings("ignore", category=NumbaPerformanceWarning, module="numba")
        # The two must differ in name, by which Numba's cache tells functions apart.
        self.parallel = Strided(_twin(function, "_parallel", {}), outputs, parallel=True)
        # Numba compiles a parallel function twice, as a whole and its loop by itself, so that
        # it calls the range kernels; they are compiled into a serial one in less time.
        inlined_kernels = {
            name: value.inlined
            for name, value in function.__globals__.items()
            if hasattr(value, "inlined")
        }
        self.serial = Strided(_twin(function, "_serial", inlined_kernels), outputs)


def _twin(function, suffix, replaced):
    """Return a function of the same code that has another name and other globals."""
    name = function.__name__ + suffix
    twin = types.FunctionType(function.__code__, {**function.__globals__, **replaced}, name)
    twin.__qualname__ = name
    return twin
