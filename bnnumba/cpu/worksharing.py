"""A loop over the work items of a step, done in order or by a team of threads.

A step is compiled once. What it does with a part of its items stands in a function of C's kind,
which the step calls for all of them, or has a team call, which Numba's threads are.
"""

from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import call_within, compiled_for_c
from .simd import I32, I64

__all__ = ["parallel_for", "team"]

_TASK = ir.FunctionType(ir.VoidType(), [I64, I64, I64])
_TEAM = ir.FunctionType(I64, [I64, I64, I64])
_FLAG = ir.IntType(8)
_NO_MEMORY = "no memory for the workspace of a kernel"


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


def parallel_for(function):
    """Return what calls ``function(begin, end, *arguments)`` for all items of a step.

    Its arguments are the team, the number of items, and those of the function. The team is the
    address of the function of that name, whose threads do a part of the items each, or 0. An
    exception ends the part that it comes from and is raised as MemoryError, for there is nothing
    else that can go wrong in a kernel.
    """

    @intrinsic
    def loop(typingctx, team, items, *arguments):
        def codegen(context, builder, sig, args):
            team, items, values = args
            values = cgutils.unpack_tuple(builder, values)
            # What the parts share: whether one failed, and the arguments.
            shared = ir.LiteralStructType([_FLAG, *(value.type for value in values)])
            place = cgutils.alloca_once(builder, shared)
            builder.store(_FLAG(0), _field(builder, place, 0))
            for i, value in enumerate(values, 1):
                builder.store(value, _field(builder, place, i))
            task = _emit_task(context, builder, shared, function, arguments)
            address = builder.ptrtoint(place, I64)
            alone = builder.icmp_signed("==", team, I64(0))
            with builder.if_else(alone) as (serial, parallel):
                with serial:
                    builder.call(task, [address, I64(0), items])
                with parallel:
                    at = builder.inttoptr(team, _TEAM.as_pointer())
                    builder.call(at, [builder.ptrtoint(task, I64), address, items])
            failed = cgutils.as_bool_bit(builder, builder.load(_field(builder, place, 0)))
            with cgutils.if_unlikely(builder, failed):
                context.call_conv.return_user_exc(builder, MemoryError, (_NO_MEMORY,))
            return context.get_dummy_value()

        rest = types.StarArgTuple.from_types(arguments)
        return types.void(types.int64, types.int64, rest), codegen

    return loop


def _field(builder, place, i):
    return builder.gep(place, [I32(0), I32(i)], inbounds=True)


def _emit_task(context, builder, shared, function, kinds):
    """Write the function that does a part of the items, with the arguments at an address."""
    name = builder.module.get_unique_name(f"{builder.function.name}.{function.__name__}")
    task = ir.Function(builder.module, _TASK, name)
    task.linkage = "internal"
    builder = ir.IRBuilder(task.append_basic_block())
    address, begin, end = task.args
    place = builder.inttoptr(address, shared.as_pointer())
    values = [builder.load(_field(builder, place, i)) for i in range(1, len(kinds) + 1)]
    kinds = (types.int64, types.int64, *kinds)
    status = call_within(context, builder, function, kinds, [begin, end, *values])
    with cgutils.if_unlikely(builder, status.is_error):
        builder.store(_FLAG(1), _field(builder, place, 0))
    builder.ret_void()
    return task
