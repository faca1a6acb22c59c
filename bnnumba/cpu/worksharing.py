"""A loop over the work items of a step, done in order or by a team of threads.

A step is compiled once. What it does with a part of its items stands in a function of C's kind,
which the step calls for all of them, or has a team call, which Numba's threads are.
"""

import functools

from llvmlite import ir
from numba import config, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..compiling import compiling, uninterrupted
from .integers import minimum
from .jit import callback
from .parts import call_within
from .simd import I32, I64

__all__ = ["parallel_for", "team"]

_TASK = ir.FunctionType(ir.VoidType(), [I64, I64, I64])
_TEAM = ir.FunctionType(I64, [I64, I64, I64])
_FLAG = ir.IntType(8)
# The next item of a worker's share comes first in it; no other share is in its cache line.
_SHARE = ir.ArrayType(I64, 16)


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


@intrinsic
def _shares(typingctx, workers):
    """Return the address of a number for each worker, to be counted up by `_take`."""

    def codegen(context, builder, sig, args):
        return builder.ptrtoint(builder.alloca(_SHARE, args[0]), I64)

    return types.int64(types.int64), codegen


def _emit_share(builder, shares, worker):
    at = builder.inttoptr(shares, _SHARE.as_pointer())
    return builder.gep(at, [worker, I32(0)], inbounds=True)


@intrinsic
def _begin(typingctx, shares, worker, item):
    """Have the share of a worker begin at an item."""

    def codegen(context, builder, sig, args):
        shares, worker, item = args
        builder.store(item, _emit_share(builder, shares, worker))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen


@intrinsic
def _take(typingctx, shares, worker, items):
    """Take some items of the share of a worker, and return the first one."""

    def codegen(context, builder, sig, args):
        shares, worker, items = args
        place = _emit_share(builder, shares, worker)
        return builder.atomic_rmw("add", place, items, "monotonic")

    return types.int64(*[types.int64] * 3), codegen


def _team(task, arguments, items):
    """Have threads do a task, each an even share of the items, then what others have left.

    A thread may be late: asleep until it was called, or on a CPU that does other work as well.
    """
    workers = minimum(items, _threads())
    shares = _shares(workers)
    for worker in range(workers):
        _begin(shares, worker, worker * items // workers)
    for worker in prange(workers):
        for turn in range(workers):
            owner = (worker + turn) % workers
            end = (owner + 1) * items // workers
            left = end - _take(shares, owner, 0)
            while left > 0:
                part = (left + 1) // 2
                begin = _take(shares, owner, part)
                if begin < end:
                    _do_part(task, arguments, begin, minimum(end, begin + part))
                left = end - _take(shares, owner, 0)
    return 0


@functools.cache
def team():
    """Return the address of the team, or 0 without the compiler."""
    return 0 if config.DISABLE_JIT else uninterrupted(_compiled_team)


def _compiled_team():
    with compiling():
        return callback(_team, types.int64(*[types.int64] * 3), parallel=True).address


def parallel_for(function):
    """Return what calls ``function(begin, end, *arguments)`` for all items of a step.

    Its arguments are the team, the number of items, and those of the function. The team is the
    address of the function of that name, whose threads do some of the items at a time, or 0. It
    returns whether all of them were done: the function returns False, and does nothing, where there
    is no memory for what it needs.
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
            return cgutils.is_null(builder, builder.load(_field(builder, place, 0)))

        rest = types.StarArgTuple.from_types(arguments)
        return types.boolean(types.int64, types.int64, rest), codegen

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
    rest = [builder.load(_field(builder, place, i)) for i in range(1, len(kinds) + 1)]
    values = [begin, end, *rest]
    within = types.boolean(types.int64, types.int64, *kinds)
    status, done = call_within(context, builder, function, within, values, allocates=True)
    # An exception is one of Numba's checks of indices, where they are switched on.
    failed = builder.or_(status.is_error, cgutils.is_null(builder, done))
    with cgutils.if_unlikely(builder, failed):
        builder.store(_FLAG(1), _field(builder, place, 0))
    builder.ret_void()
    return task
