"""Every Numba compile option that the CPU kernels use, each with its reason."""

import inspect
import pathlib

import numba
from numba import config
from numba.core import sigutils
from numba.core.ccallback import CFunc
from numba.core.runtime import rtsys

from ..code_cache import code_files, forgiving, not_kept, source_stamp
from ..compiling import compiling, uninterrupted
from ..errors import BackendError

# nogil: other Python threads run while a kernel works.
# error_model="numpy": a division by zero gives inf or nan as in NumPy, and no branch raises.
# fastmath stays off: NaN and infinity must survive, and the order of additions is the contract
# ("same bits every time"). What may be fused to an FMA says so itself (lanewise.fma).
OPTIONS = {"nogil": True, "error_model": "numpy"}


def _loader(cache):
    """Return a function that loads a version, without what only compiling needs.

    Numba's own first imports all that it can compile, SciPy and a parser of C among it, which takes
    several times as long as the rest of a first call.
    """

    def load(signature, context):
        rtsys.initialize(context)  # the one part of that which compiled code calls
        return cache._load_overload(signature, context)

    return load


def _keep(compiled, function):
    """Keep in the cache what is compiled of a function, where that can be written."""
    if config.DISABLE_JIT:
        return
    try:
        compiled.enable_caching()
    except RuntimeError:  # no directory for the cache can be written: compile in each process
        return
    cache = compiled._cache
    # Also of the options here.
    places = pathlib.Path(function.__code__.co_filename).parent, pathlib.Path(__file__).parent
    cache._cache_file = code_files(cache._impl, source_stamp(*places))
    cache.load_overload = forgiving(_loader(cache))
    cache.save_overload = forgiving(cache.save_overload, not_kept)


def _compile(function):
    # For C's convention Numba would compile another entry, which few of them need.
    dispatcher = numba.njit(no_cfunc_wrapper=True, **OPTIONS)(function)
    _keep(dispatcher, function)
    return dispatcher


def callback(function, signature, keep=True, **options):
    """Compile a function that C can call, and keep it in the cache, or not."""
    compiled = CFunc(function, sigutils.normalize_signature(signature), {}, {**OPTIONS, **options})
    if keep:
        _keep(compiled, function)
    compiled.compile()
    return compiled


def inlined(function):
    """Compile a helper into each kernel that calls it.

    Numba compiles and optimizes a called function by itself and then again inside each caller;
    with small helpers inlined before typing, a kernel compiles in less time.
    """
    return numba.njit(inline="always", **OPTIONS)(function)


class Strided:
    """A compiled function that takes contiguous, strided and read-only arrays alike.

    Numba would compile another version for each combination of layouts that it meets. Here arrays
    are typed as strided, and as read-only unless they are among `outputs`, so that there is one
    version for each combination of dtypes and ranks.
    """

    def __init__(self, function, outputs):
        self.dispatcher = _compile(function)
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
        return uninterrupted(self._compile, arguments)

    def _compile(self, arguments):
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
