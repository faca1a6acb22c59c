"""The smaller and the larger of two indices, in kernels.

Numba compiles each version of Python's ``min`` and ``max`` as a function of its own, optimized by
itself: 4 % of what a first forward and backward call take.
"""

from numba import types
from numba.extending import intrinsic

__all__ = ["maximum", "minimum"]


def _select(predicate):
    @intrinsic
    def choose(typingctx, a, b):
        def codegen(context, builder, sig, args):
            return builder.select(builder.icmp_signed(predicate, *args), *args)

        return types.int64(types.int64, types.int64), codegen

    return choose


minimum, maximum = _select("<"), _select(">")
