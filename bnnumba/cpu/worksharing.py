"""A loop over the work items of a step, done in order or by a team of threads.

A step is compiled once. What it does with a part of its items stands in a function of C's kind,
which the step calls for all of them, or has a team call, which Numba's threads are.
"""

from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import call_within, compiled_for_c, inlined
from .simd import I64

__all__ = ["check", "parallel_for", "team"]

_TASK = ir.FunctionType(ir.VoidType(), [I64, I64, I64])


@intrinsic
def _do_part(typingctx, task, arguments, begin, end):
    """Call the task at an address, with the address of its arguments."""

    def codegen(context, builder, sig, args):
        task, *rest = args
        builder.call(builder.inttoptr(task, _TASK.as_pointer()), rest)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


@intrinsic
def _threads(typingctx):
    """Return how many threads there are, by the name that Numba's own parallel loops know.

    What calls ``numba.get_num_threads()``, an address, cannot be cached.
    """

    def codegen(context, builder, sig, args):
        kind = ir.FunctionType(I64, [])
        return builder.call(
            cgutils.get_or_insert_function(builder.module, kind, "get_num_threads"), []
        )

    return types.int64(), codegen


def _team(task, arguments, items):
    """Have threads do a task, each an even part of the items."""
    workers = min(items, _threads())
    for worker in prange(workers):
        _do_part(task, arguments, worker * items // workers, (worker + 1) * items // workers)
    return 0


team = compiled_for_c(_team, types.int64(*[types.int64] * 3), parallel=True)


@intrinsic
def parallel_for(typingctx, team, items, function, arguments):
    """Call an inlined ``function(begin, end, *arguments)`` for all items.

    Each thread of a team does a part of them; `team` is the address of the function of that name,
    or 0. Returns whether all went well: an exception ends the part that it comes from.
    """
    kinds = tuple(arguments)

    def codegen(context, builder, sig, args):
        team, items, _, values = args
        values = cgutils.unpack_tuple(builder, values)
        shared = ir.LiteralStructType([ir.IntType(8), *(value.type for value in values)])
        # What the parts share: whether one failed, and the arguments.
        place = cgutils.alloca_once(builder, shared)

        def field(builder, at, i):
            return builder.gep(at, [ir.IntType(32)(0), ir.IntType(32)(i)], inbounds=True)

        builder.store(ir.IntType(8)(0), field(builder, place, 0))
        for i, value in enumerate(values, 1):
            builder.store(value, field(builder, place, i))

        name = builder.module.get_unique_name(f"{builder.function.name}.part")
        task = ir.Function(builder.module, _TASK, name)
        task.linkage = "internal"
        inner = ir.IRBuilder(task.append_basic_block())
        address, begin, end = task.args
        here = inner.inttoptr(address, shared.as_pointer())
        values = [inner.load(field(inner, here, i)) for i in range(1, len(values) + 1)]
        status, _ = call_within(
            context, inner, function.dispatcher.py_func,
            types.void(types.int64, types.int64, *kinds), [begin, end, *values],
        )  # fmt: skip
        with cgutils.if_unlikely(inner, status.is_error):
            inner.store(ir.IntType(8)(1), field(inner, here, 0))
        inner.ret_void()

        address = builder.ptrtoint(place, I64)
        alone = builder.icmp_signed("==", team, I64(0))
        with builder.if_else(alone) as (serial, parallel):
            with serial:
                builder.call(task, [address, I64(0), items])
            with parallel:
                kind = ir.FunctionType(I64, [I64, I64, I64]).as_pointer()
                builder.call(
                    builder.inttoptr(team, kind), [builder.ptrtoint(task, I64), address, items]
                )
        failed = builder.load(field(builder, place, 0))
        return builder.icmp_unsigned("==", failed, ir.IntType(8)(0))

    return types.boolean(types.int64, types.int64, function, arguments), codegen


@inlined
def check(done):
    """Raise where `parallel_for` did not go well, for the one reason that there can be."""
    if not done:
        msg = "no memory for the workspace of a kernel"
        raise MemoryError(msg)
