"""Kernels between the stats of a forward pass and the rows that the C ABI keeps of one.

Stats are the rows mean, rest of the mean, m2 and invstd in the precision of the kernels; the ABI
has float64 rows mean, m2 and invstd. A float32 mean and its rest make a float64 exactly.
"""

from functools import lru_cache
from types import SimpleNamespace

from .jit import SIMULATED, Kernel, block, thread, threads

if SIMULATED:
    from .simulator import machine
else:
    from .memory import machine

__all__ = ["build"]


@lru_cache(maxsize=2)
def build(real):
    """Return the kernels for stats of a dtype, `pack` and `unpack`."""
    m = machine("float64", 1, 1, real)
    read, write, read_stats, write_stats = m.read, m.write, m.read_param, m.write_param

    def pack(stats, rows, channels):
        c = block() * threads() + thread()
        if c < channels:
            write(rows, c, read_stats(stats, c) + read_stats(stats, channels + c))
            write(rows, channels + c, read_stats(stats, 2 * channels + c))
            write(rows, 2 * channels + c, read_stats(stats, 3 * channels + c))

    def unpack(rows, stats, channels):
        c = block() * threads() + thread()
        if c < channels:
            mean = read(rows, c)
            write_stats(stats, c, mean)
            write_stats(stats, channels + c, mean - read_stats(stats, c))
            write_stats(stats, 2 * channels + c, read(rows, channels + c))
            write_stats(stats, 3 * channels + c, read(rows, 2 * channels + c))

    variant = (real,)
    return SimpleNamespace(
        pack=Kernel(pack, 0, True, variant), unpack=Kernel(unpack, 0, True, variant)
    )
