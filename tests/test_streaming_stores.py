"""Outputs wherever they begin, also those written past the caches, as many megabytes are."""

import platform

import numba
import numpy as np
import pytest
from support import normal, parameters, same_bits

import bnnumba as bn
from bnnumba.cpu import caches, choices, lanewise, memory, parallel, simd

# Of 1024 elements or more, as what is shorter is not written past the caches.
SHAPES = [
    (2, 3, 200),  # rows of several vectors, all of them aligned alike, or
    (2, 3, 197),  # each in another way
    (5, 5, 49),
    (9, 17, 7),  # rows shorter than a vector
    (2, 530, 1),
    (1, 1, 1029),
    (350, 3),
    (67, 16),
    (15, 70),
    (3, 2059),  # rows so wide that two are written at a time
    (1, 1, 5),
]
# Rows that do not follow on each other, and so are written one at a time.
GAPS = [(2, 3, 200), (3, 5, 49), (2, 3, 1030), (7, 70), (3, 2059)]
GUARD = 40


def _outputs(x, gap):
    """Yield arrays like x at each place relative to a cache line, and their surroundings."""
    shape = (*x.shape[:-1], x.shape[-1] + gap)
    size = int(np.prod(shape))
    for offset in range(64 // x.itemsize):
        buffer = np.full(size + 2 * GUARD + 64, 7, x.dtype)
        start = -(buffer.ctypes.data // x.itemsize) % (64 // x.itemsize) + offset
        inner = buffer[start + GUARD : start + GUARD + size]
        yield buffer, inner.reshape(shape)[..., : x.shape[-1]]


def _steps(x, dy, weight, bias, out):
    """Yield the results of each step that writes an array like x, written to `out`."""
    y, saved = bn.batch_norm_training(x, weight, bias, out=out)
    yield y
    mean, var = saved.mean, 1 / saved.invstd**2
    yield bn.batch_norm_inference(x, mean, var, weight, bias, out=out)
    yield bn.batch_norm_backward(dy, saved, out=out)[0]


@pytest.fixture
def streaming(monkeypatch):
    def switch(on, ahead=False):
        limit = 0 if on else 1 << 62
        found = caches.Caches(1 << 19, 1 << 19, limit, limit, ahead)
        monkeypatch.setattr(caches, "found", lambda: found)
        choices.choose.cache_clear()

    yield switch
    monkeypatch.undo()
    choices.choose.cache_clear()


@pytest.mark.parametrize("streamed", [False, True], ids=["cached", "streamed"])
@pytest.mark.parametrize("threads", [False, True], ids=["serial", "parallel"])
@pytest.mark.parametrize(
    ("shape", "gap"), [(shape, 0) for shape in SHAPES] + [(shape, 3) for shape in GAPS], ids=str
)
def test_outputs_are_the_same_wherever_they_begin(
    shape, gap, threads, streamed, dtype, streaming, monkeypatch
):
    if threads:
        monkeypatch.setattr(choices, "PARALLEL_SIZE", 0)
    x, dy = normal(shape, dtype), normal(shape, dtype, seed=1)
    weight, bias = parameters(shape[1])
    streaming(False, ahead=threads)
    expected = [step.copy() for step in _steps(x, dy, weight, bias, np.empty_like(x))]
    streaming(streamed, ahead=threads)
    for buffer, out in _outputs(x, gap):
        for got, right in zip(_steps(x, dy, weight, bias, out), expected, strict=True):
            assert got is out
            assert same_bits(got, right)
            out[...] = 7
            assert np.all(buffer == 7), "written outside the output"


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="needs the compiler")
@pytest.mark.parametrize("element", [np.float32, np.float64, np.int16, np.uint16])
def test_coefficients_stand_as_far_from_a_cache_line_as_their_output(element):
    @numba.njit
    def lanes_to_a_line(out):
        coefs = parallel.room(out, 5, 2, 3, 3)[2]
        count = simd.lanes(out)
        return memory.unaligned(coefs, 0) % count, memory.unaligned(out, 0) % count

    for offset in range(64):
        out = np.zeros((64 + offset) * 5, element)[offset : offset + 60].reshape(4, 5, 3)
        coefs, output = lanes_to_a_line(out)
        assert coefs == output


@pytest.mark.skipif(platform.machine() != "x86_64", reason="looks for instructions of x86-64")
@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="needs the compiler")
@pytest.mark.parametrize("element", [np.float32, np.float64, np.int16, np.uint16])
def test_the_compiler_keeps_every_store_past_the_caches(element):
    @numba.njit
    def square(x, y):
        v = memory.load(x, 0)
        memory.stream(y, 0, lanewise.fma(v, v, v))

    x = np.zeros(64, element)
    square.compile((numba.typeof(x), numba.typeof(x)))
    (code,) = square.inspect_asm().values()
    assert "movnt" in code
