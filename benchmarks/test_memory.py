"""Temporary memory: with ``out=`` given, no call may need memory that grows with x."""

import gc
import tracemalloc

import numpy as np
import pytest

from .cases import Data
from .peers import load
from .race import Replay, replayed

_SIZES = (4_000_000, 64_000_000)  # bytes of x
_ALLOWED = 0.02  # of x, for the difference of the two: partial sums, not copies


def _resident(field):
    """A field of this process's memory status, in bytes."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(field))
    return 1024 * int(line.split()[1])


def _peak(call):
    """Most bytes that the call held, by NumPy's count and by the operating system's."""
    call()
    gc.collect()
    with open("/proc/self/clear_refs", "w") as control:
        control.write("5")  # the high-water mark starts anew
    before = _resident("VmRSS")
    call()
    resident = _resident("VmHWM") - before
    tracemalloc.start()
    try:
        call()
        allocated = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return max(resident, allocated)


def _calls(bn, data):
    parameters = data.weight, data.bias
    out, axis = data.out, data.axis
    _, saved = bn.batch_norm_training(data.x, *parameters, axis=axis)
    return {
        "training": lambda: bn.batch_norm_training(data.x, *parameters, axis=axis, out=out),
        "backward": lambda: bn.batch_norm_backward(data.dy, saved, out=out),
        "inference": lambda: bn.batch_norm_inference(
            data.x, data.mean, data.var, *parameters, axis=axis, out=out
        ),
        "moments": lambda: bn.moments(data.x, axis=axis),
    }


@replayed
@pytest.mark.parametrize("layout", ["ncs", "rc"])
@pytest.mark.parametrize("op", ["training", "backward", "inference", "moments"])
def test_memory(benchmark, op, layout):
    bn = load("bnnumba")
    peaks = {}
    for size in _SIZES:
        n, channels, side = size // (4 * 64 * 28 * 28), 64, 28
        held = (n, channels, side, side) if layout == "ncs" else (n, side, side, channels)
        x, dy = (np.full(held, value, np.float32) for value in (1, 2))
        weight, bias, mean, var = np.ones((4, channels), np.float32)
        data = Data(layout, (n, channels, side, side), x, dy, weight, bias, mean, var)
        peaks[size] = _peak(_calls(bn, data)[op])
    small, large = peaks.values()
    assert large - small < _ALLOWED * (_SIZES[1] - _SIZES[0])
    benchmark.group = "memory"
    benchmark.extra_info.update(memory=op, layout=layout, sizes=_SIZES, peaks=[small, large])
    Replay.into(benchmark, [0.0])
