"""How much of this CPU's caches the steps may count on; results do not depend on it.

A fused step sweeps a block of channels twice, and the second sweep should find the block in the
cache. It then writes, and could meanwhile fetch the next block. A block is a run of memory in each
image, and to jump from run to run is slow where runs are shorter than `prefetching.PREFETCHED`; a
larger block has longer runs. Which of these pays depends on how the CPU shares its memory:

========================  ==================  =======================  ===========================
CPU (where measured)      block               for a run of 8 KiB       next block
========================  ==================  =======================  ===========================
AMD Zen 5 (L2 1 MiB)      half of L2 (2 MiB:  up to 4 MiB, of L3 then  fetched while writing
                          3 to 37 % longer)   (a tenth to a quarter    (103 MB: 4.1 ms against 5.0)
                                              shorter)
AMD Zen 4 (L2 1 MiB)      2 MiB (half of L2:  the same, but not        fetched while writing
                          4 to 20 % longer)   measured               (103 MB: 5.7 ms against 6.9)
AMD Zen 3 (L2 512 KiB)    2 MiB (128 KiB to   the same, but not        fetched while writing
                          4 MiB: at most 6 %  measured                 (103 MB: 4 % shorter to 4 %
                          apart)                                       longer; 26 MB: 7 % longer)
others (Intel Xeon,       half of L2 (all of  no more                  not fetched
L2 2 MiB)                 it: 16 to 48 %                               (103 MB: 4.5 ms against 5.0)
                          longer)
========================  ==================  =======================  ===========================

An output is written past the caches unless it fits with the inputs into what one program has of
the last one (`bnnumba.cpu.choices.streams`). On Zen 5 that is what the system says (13 MB
normalized in 32 MiB: 190 us in the cache, 306 past it), on Zen 3 half of it (13 MB: 1.0 to 1.2 ms
in the cache, 0.7 to 0.8 past it; 7.6 MB: 0.28 and 0.42; 6.4 MB backward: 0.72 and 0.66). Other
servers say what all their cores share, of which one program has little (Xeon, 13 MB: 1.16 ms in the
cache, 0.86 past it). A fused step, which jumps from run to run, has half of a cache on Zen 5 too
(of 32 MB, forward of 13 MB took up to a fifth longer in the cache, backward of 6 MB by one thread a
third).
"""

from functools import lru_cache
from typing import NamedTuple

import llvmlite.binding as llvm

from ..compiling import compiler_lock

__all__ = [
    "SIZE",
    "SPILL",
    "USUAL_L2",
    "USUAL_SHARE",
    "USUAL_SWEPT",
    "ZEN_4_BLOCK",
    "Caches",
    "found",
]

# Where Linux says how large a cache is, in KiB: "2048K".
SIZE = "/sys/devices/system/cpu/cpu0/cache/index{}/size"
USUAL_L2 = 1 << 20
# Of a last-level cache that many cores share, and of that for a fused step.
USUAL_SHARE, USUAL_SWEPT = 24 << 20, 16 << 20
ZEN_4_BLOCK = 2 << 20
SPILL = 4 << 20

_ZEN_3 = {"znver1", "znver2", "znver3"}
_ZEN_4 = {*_ZEN_3, "znver4"}


class Caches(NamedTuple):
    """What the steps go by, in bytes."""

    block: int  # of the data of a block of channels
    spill: int  # of a block that would else have short runs
    shared: int  # of inputs and output together, that the output may stay in the cache
    swept: int  # the same for a fused step
    ahead: bool  # whether the next block is fetched


def _size(index, usual):
    try:
        with open(SIZE.format(index)) as size:
            return 1024 * int(size.read().strip().removesuffix("K"))
    except (OSError, ValueError):  # another system
        return usual


@lru_cache(maxsize=1)  # which takes as long as to normalize a small image
def found():
    """Return what the steps of this CPU go by."""
    with compiler_lock:  # which a fork waits for: LLVM has a lock of its own
        name = llvm.get_host_cpu_name()
    half = _size(2, USUAL_L2) // 2
    if not name.startswith("znver"):
        return Caches(half, half, USUAL_SHARE, USUAL_SWEPT, ahead=False)
    block = ZEN_4_BLOCK if name in _ZEN_4 else half
    last = _size(3, USUAL_SHARE)
    return Caches(block, SPILL, last // 2 if name in _ZEN_3 else last, last // 2, ahead=True)
