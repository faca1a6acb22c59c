"""Asking for memory some time before it is read."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .memory import LINE, pointer
from .simd import I32, I64
from .storage import storage

# Elements of a row that a sum takes at a time, with one branch and one prefetch.
BLOCK = 64
# Bytes between a prefetch and the use of what is read, measured: 2.8 ms for 100 MB against 3.5 at
# 2 KiB and 5.8 with no prefetch, as the hardware's own prefetcher stops at each 4 KiB page.
PREFETCHED = 8192


@intrinsic
def prefetch_distance(typingctx, array):
    """Return how many elements ahead of its use a prefetch pays."""

    def codegen(context, builder, sig, args):
        return I64(PREFETCHED // storage(sig.args[0])[1])

    return types.int64(array), codegen


def _emit_prefetch(context, builder, array_type, array, index):
    element, _ = storage(array_type)
    at = pointer(context, builder, array_type, array, index, element, 1)
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(ir.VoidType(), [at.type, I32, I32, I32]),
        "llvm.prefetch.p0",
    )
    # A read, into L1, of data: into L2, Zen 5 took a tenth longer for all steps but inference.
    builder.call(function, [at, I32(0), I32(3), I32(1)])


@intrinsic
def prefetch(typingctx, array, index):
    """Ask for the cache line of ``array[index]``; any index is harmless."""

    def codegen(context, builder, sig, args):
        _emit_prefetch(context, builder, sig.args[0], *args)
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


@intrinsic
def prefetch_run(typingctx, row, ahead, i, turn):
    """Ask for what is read some time after ``row[i:i + BLOCK]``; any place is harmless.

    From position `turn` on that stands in `ahead`. It is chosen without a branch, as one more in
    the loop of a sum made moments in the cache take up to a fifth longer.
    """

    def codegen(context, builder, sig, args):
        row, ahead, i, turn = args
        size = storage(sig.args[0])[1]
        here = builder.icmp_signed("<", i, turn)
        base = builder.select(here, row, ahead)
        on = builder.select(here, builder.add(i, I64(PREFETCHED // size)), builder.sub(i, turn))
        for offset in range(0, BLOCK, LINE // size):
            at = builder.add(on, I64(offset))
            _emit_prefetch(context, builder, sig.args[0], base, at)
        return context.get_dummy_value()

    return types.void(row, row, types.int64, types.int64), codegen
