"""Kernels read and write their arrays and nothing beside them."""

import sys

import numba
import numpy as np
import pytest
from support import run_python, same_bits

from bnnumba.cpu import memory

# Every array ends, or begins, at a page that may not be touched: one element too far is a crash.
GUARDED = """
import ctypes
import mmap
import sys

import numpy as np
from support import DTYPES, assert_close, normal, parameters

import bnnumba as bn
from bnnumba import reference

libc = ctypes.CDLL(None, use_errno=True)
kept = []

def guarded(array):
    page = mmap.PAGESIZE
    pages = -(-array.nbytes // page)
    memory = mmap.mmap(-1, (pages + 2) * page)
    kept.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for at in (start, start + (pages + 1) * page):
        assert libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(page), 0) == 0
    at = page if sys.argv[1] == "before" else (pages + 1) * page - array.nbytes
    view = np.frombuffer(memory, np.uint8, array.nbytes, at).view(array.dtype)
    view = view.reshape(array.shape)
    view[...] = array
    return view

for extent in [*range(1, 36), 63, 64, 65, 127, 128, 129, 1000]:
    for shape in [(3, 2, extent), (2, extent, 3), (5, extent), (extent, 5), (1, 1, extent)]:
        for dtype in DTYPES[int(sys.argv[2])::2]:
            channels = shape[1]
            x, dy = guarded(normal(shape, dtype)), guarded(normal(shape, dtype, seed=1))
            weight, bias = map(guarded, parameters(channels))
            out, dx = guarded(np.zeros_like(x)), guarded(np.zeros_like(x))
            mean, var = guarded(np.zeros(channels)), guarded(np.ones(channels))
            bn.moments(x)
            saved = bn.batch_norm_training(x, weight, bias, out=out)[1]
            bn.batch_norm_backward(dy, saved, out=dx)
            assert_close(out, reference.batch_norm_training(x, weight, bias).y)
            bn.batch_norm_inference(x, mean, var, weight, bias, out=out)
            assert_close(out, reference.batch_norm_inference(x, mean, var, weight, bias))
            if x.size > channels:
                bn.batch_norm_training(x, running_mean=mean, running_var=var, out=out)
print("done", flush=True)
import os
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.skipif(sys.platform == "win32", reason="mprotect")
def test_nothing_beside_an_array_is_touched(side, half):
    assert "done" in run_python(GUARDED, side, half).stdout


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="needs the compiler")
@pytest.mark.parametrize("element", [np.float32, np.float64, np.int16, np.uint16])
def test_parts_of_vectors_are_loaded_and_stored_and_nothing_else(element):
    load_part, store, store_part = memory.load_part, memory.store, memory.store_part

    @numba.njit
    def moved(source, target, live, loads):
        if loads:
            store(target, 0, load_part(source, 0, live))
        else:
            store_part(target, 0, live, memory.load(source, 0))

    # As bits that are numbers to float16 and bfloat16 alike, and that rounding leaves.
    source = np.arange(0x3C00, 0x3C00 + 40).astype(element)
    lanes = 8 if element is np.float64 else 16
    for live in range(lanes + 1):
        for loads in (True, False):
            target = np.full(40, 0x3000, element)
            expected = target.copy()
            if loads:
                expected[:lanes] = 0
            expected[:live] = source[:live]
            moved(source, target, live, loads)
            assert same_bits(target, expected)


@pytest.mark.slow
@pytest.mark.parametrize("axis", [1, -1])
def test_no_temporary_grows_with_the_input(axis):
    # The peak of the process, so that memory of compiled code is counted too.
    run_python(
        f"""
        import resource
        import numpy as np
        import bnnumba as bn

        axis = {axis}
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

        def calls(x, out):
            bn.moments(x, axis=axis)
            saved = bn.batch_norm_training(x, axis=axis, out=out)[1]
            bn.batch_norm_backward(x, saved, out=out)
            c = x.shape[axis]
            bn.batch_norm_inference(x, np.zeros(c), np.ones(c), axis=axis, out=out)

        big = (64, 64, 150, 150) if axis == 1 else (64, 150, 150, 64)
        x = np.ones(big, np.float32)
        out = np.ones(big, np.float32)
        calls(x[:8], out[:8])
        before = peak()
        calls(x, out)
        assert peak() - before < x.nbytes / 20, (peak() - before) / x.nbytes
        """
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process")
def test_a_call_without_memory_raises_and_lets_go_of_its_arrays():
    run_python(
        """
        import gc, resource, weakref
        import numpy as np
        import bnnumba as bn

        channels = 262144
        weight = np.ones(channels, np.float32)

        def make():
            return np.ones((8, channels), np.float32)

        def training(x):
            bn.batch_norm_training(x, weight, weight, out=x)

        def backward(x):
            bn.batch_norm_backward(x, saved, out=x)

        def inference(x):
            bn.batch_norm_inference(x, weight, weight, out=x)

        def size():
            return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

        saved = bn.batch_norm_training(make(), weight, weight)[1]
        for call in (bn.moments, training, backward, inference):
            call(make())
            refused = 0
            for room in range(0, 60_000_000, 1_000_000):
                x = make()
                alive = weakref.ref(x)
                before = size()
                resource.setrlimit(resource.RLIMIT_AS, (before + room, -1))
                try:
                    call(x)
                except MemoryError as error:
                    refused += "workspace" in str(error)
                resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
                assert size() < before + 1e6, (call, room)
                del x
                gc.collect()
                assert alive() is None, (call, room)
            assert refused, call
        """,
        # Other arenas of the C library have memory in reserve, which the limit does not see.
        env={"MALLOC_ARENA_MAX": 1, "MALLOC_MMAP_THRESHOLD_": 65536, "MALLOC_TRIM_THRESHOLD_": 0},
    )
