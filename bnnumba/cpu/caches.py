"""How much of a core's caches a fused step may count on, and whether it should fetch ahead.

A fused step sweeps a block of channels twice, and the second sweep should find the block in the
cache. It then writes, and could meanwhile fetch the next block. Which of the two pays depends on
how the CPU shares its memory; results do not.

=====================  =====================================  =======================
CPU                    block                                  next block
=====================  =====================================  =======================
AMD (Zen 4, L2 1 MiB)  2 MiB, of which a part is in L3        fetched while writing:
                       (half of L2: 4 to 20 % longer)         5.7 ms against 6.9
others (Intel Xeon,    half of L2 (all of it, and fetching    not fetched: 4.5 ms
L2 2 MiB)              ahead: 16 to 48 % longer than half)    against 5.0, for 103 MB
=====================  =====================================  =======================
"""

from functools import lru_cache

import llvmlite.binding as llvm

__all__ = ["AMD_BLOCK", "L2_SIZE", "USUAL_L2", "block_bytes", "fetches_ahead"]

# Where Linux says how large the L2 cache is, in KiB: "2048K".
L2_SIZE = "/sys/devices/system/cpu/cpu0/cache/index2/size"
USUAL_L2 = 1024 * 1024
AMD_BLOCK = 2 * 1024 * 1024
_AMD = ("znver", "bdver", "btver", "bobcat")


def _l2_bytes():
    try:
        with open(L2_SIZE) as size:
            return 1024 * int(size.read().strip().removesuffix("K"))
    except (OSError, ValueError):  # another system
        return USUAL_L2


@lru_cache(maxsize=1)  # which takes as long as to normalize a small image
def fetches_ahead():
    """Return whether a fused step fetches its next block while it writes one."""
    return llvm.get_host_cpu_name().startswith(_AMD)


@lru_cache(maxsize=1)
def block_bytes():
    """Return how many bytes of data a fused step takes at a time."""
    return AMD_BLOCK if fetches_ahead() else _l2_bytes() // 2
