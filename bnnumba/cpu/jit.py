"""Every Numba compile option that the CPU kernels use, each with its reason."""

import inspect
import pathlib
import weakref
from typing import Any, NamedTuple

import numba
from numba import config, types
from numba.core import cgutils, sigutils
from numba.core.ccallback import CFunc
from numba.core.compiler import compile_internal
from numba.core.targetconfig import ConfigStack
from numba.extending import intrinsic

from ..code_cache import code_files, forgiving, source_stamp
from ..compiling import compiling
from ..errors import BackendError

# nogil: other Python threads run while a kernel works.
# error_model="numpy": a division by zero gives inf or nan as in NumPy, and no branch raises.
# fastmath stays off: NaN and infinity must survive, and the order of additions is the contract
# ("same bits every time"). What may be fused to an FMA says so itself (lanewise.fma).
OPTIONS = {"nogil": True, "error_model": "numpy"}


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
    for name in ("load_overload", "save_overload"):
        setattr(cache, name, forgiving(getattr(cache, name)))


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


class _Lowered(NamedTuple):
    """A part of kernels."""

    description: Any  # Numba's, of the function
    library: Any  # its code and that of no other part
    uses: list  # what it calls of other parts


# All parts, by Python function, signature and flags; what a part uses, by its library, which is
# known before the part is compiled; and the libraries of parts that are in the library of a kernel.
_parts: dict = {}
_uses: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_linked: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def call_within(context, builder, function, kinds, arguments, merged=True):
    """Emit a call to a Python function without a result, and return its status.

    Numba would optimize what is called as a library of its own, to be linked into this one and
    optimized again. This is lowered once for all kernels, then linked into the kernel that is at
    work, and either merged into each caller, or a function by itself.
    """
    signature = types.void(*kinds)
    found = _lowered(context, function, signature)
    _link(found, context.active_code_library)
    callee = context.declare_function(builder.module, found.description)
    status, _ = context.call_conv.call_function(
        builder, callee, signature.return_type, signature.args, arguments,
        attrs=("alwaysinline" if merged else "noinline",),
    )  # fmt: skip
    return status


def _lowered(context, function, signature):
    flags = ConfigStack().top().copy()
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    key = function, signature, flags.summary()
    if key not in _parts:
        library = context.codegen().create_library(function.__qualname__)
        uses = _uses[library] = []
        description = compile_internal(
            context.typing_context, context, library, function, signature.args,
            signature.return_type, flags, locals={},
        ).fndesc  # fmt: skip
        _parts[key] = _Lowered(description, library, uses)
    return _parts[key]


def _link(part, library):
    """Link a part, and the parts that it uses, into a library; into that of a part comes none."""
    if library in _uses:
        _uses[library].append(part)
        return
    there = _linked.setdefault(library, set())
    if part.library in there:
        return
    there.add(part.library)
    library._final_module.link_in(part.library._final_module, preserve=True)
    # Not to be kept, and compiled to machine code, for others.
    name = part.description.llvm_func_name
    library._final_module.get_function(name).linkage = "linkonce_odr"
    for other in part.library._linking_libraries:
        library.add_linking_library(other)
    library._reload_init.update(part.library._reload_init)
    for used in part.uses:
        _link(used, library)


def _part(choose, merged):
    @intrinsic
    def part(typingctx, *arguments):
        function = choose(*arguments)

        def codegen(context, builder, sig, args):
            values = cgutils.unpack_tuple(builder, args[0])
            status = call_within(context, builder, function, arguments, values, merged)
            with cgutils.if_unlikely(builder, status.is_error):
                context.call_conv.return_status_propagate(builder, status)
            return context.get_dummy_value()

        return types.void(types.StarArgTuple.from_types(arguments)), codegen

    return part


def part(function):
    """Compile a helper of some size, without a result, as a part of each kernel that calls it.

    It takes less time than `inlined`, which copies the helper into its caller for each call.
    """
    return _part(lambda *arguments: function, merged=True)


def by_rank(ncs, rc):
    """Return one function of a view x and more: `ncs` for x[n, c, s], `rc` for x[r, c].

    It stays by itself in machine code: with two such functions merged, too little of what their
    loops need would stay in registers (rows of 49 and 196: 0 to 3 % longer).
    """
    return _part(lambda x, *arguments: ncs if x.ndim == 3 else rc, merged=False)


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
