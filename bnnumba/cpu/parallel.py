"""Drivers: they deal out (slab, block of channels) items to threads, or run them one by one.

Each driver is one function compiled twice, with and without threads; a range kernel does the
work. Results are the same to the bit either way.
"""

import numpy as np
from numba import prange

from .jit import driver, kernel
from .moments import WORKSPACE, collect_slab_ncs, merge_slabs
from .normalize import normalize_coefficients, normalize_slab_ncs


@kernel
def forward_range(begin, end, x, block, plan, weight, bias, eps, work, partial, coefs, mean_out, m2_out, y, streaming):
    """Normalize blocks of channels by their own statistics, each block while it is in the cache."""
    n, channels, s = x.shape
    for item in range(begin, end):
        c0 = item * block
        c1 = min(channels, c0 + block)
        for slab in range(plan[3]):
            collect_slab_ncs(x, slab, c0, c1, plan, work, partial[slab, 0], partial[slab, 1])
        merge_slabs(c0, c1, n, s, plan, partial, mean_out, m2_out)
        normalize_coefficients(c0, c1, mean_out, m2_out, n * s, weight, bias, eps, coefs)
        for slab in range(plan[3] - 1, -1, -1):
            normalize_slab_ncs(x, slab, c0, c1, plan, coefs, y, streaming)


def _forward(x, block, plan, weight, bias, eps, partial, coefs, mean_out, m2_out, y, streaming):
    blocks = (x.shape[1] + block - 1) // block
    for item in prange(blocks):
        work = np.empty(block * WORKSPACE)
        forward_range(item, item + 1, x, block, plan, weight, bias, eps, work, partial, coefs, mean_out, m2_out, y, streaming)


forward_parallel = driver(_forward)
forward_serial = kernel(_forward)
