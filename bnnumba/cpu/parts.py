"""Parts of kernels: functions that are lowered once, and linked into the kernels that call them."""

import weakref
from typing import Any, NamedTuple

from numba import types
from numba.core import cgutils
from numba.core.compiler import Compiler, compile_extra
from numba.core.targetconfig import ConfigStack
from numba.core.typed_passes import NopythonRewrites
from numba.core.untyped_passes import InlineClosureLikes
from numba.extending import intrinsic

__all__ = ["by_rank", "call_within", "part"]


class _Compiler(Compiler):
    """Numba's own without the passes for what no part has: expressions of arrays, and closures.

    They look for it all the same, which took 4 % of the time.
    """

    def define_pipelines(self):
        (pipeline,) = super().define_pipelines()
        skipped = NopythonRewrites, InlineClosureLikes
        pipeline.passes = [step for step in pipeline.passes if step[0] not in skipped]
        pipeline.finalize()
        return [pipeline]


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


def call_within(context, builder, function, signature, arguments, merged=True, allocates=False):
    """Emit a call to a Python function, and return its status and result.

    Numba would optimize what is called as a library of its own, to be linked into this one and
    optimized again. This is lowered once for all kernels, then linked into the kernel that is at
    work, and either merged into each caller, or a function by itself. Unless it `allocates`, all
    its arrays are the caller's, and nobody counts references to them: that compiles in 4 % less.
    """
    found = _lowered(context.subtarget(enable_nrt=allocates), function, signature)
    _link(found, context.active_code_library)
    callee = context.declare_function(builder.module, found.description)
    return context.call_conv.call_function(
        builder, callee, signature.return_type, signature.args, arguments,
        attrs=("alwaysinline" if merged else "noinline",),
    )  # fmt: skip


def _lowered(context, function, signature):
    flags = ConfigStack().top().copy()
    flags.nrt = context.enable_nrt
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    key = function, signature, flags.summary()
    if key not in _parts:
        library = context.codegen().create_library(function.__qualname__)
        uses = _uses[library] = []
        description = compile_extra(
            context.typing_context, context, function, signature.args, signature.return_type, flags,
            locals={}, library=library, pipeline_class=_Compiler,
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
        function, within = choose(*arguments), types.void(*arguments)

        def codegen(context, builder, sig, args):
            values = cgutils.unpack_tuple(builder, args[0])
            status, _ = call_within(context, builder, function, within, values, merged)
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
