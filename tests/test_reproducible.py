"""The same bits from every run, number of threads, and driver."""

import numba
import numpy as np
import pytest
import workload
from support import THREADING_LAYERS, normal, run_python, run_with_layer, same_bits

from bnnumba import cpu
from bnnumba.cpu import caches, choices

DIGEST = "import workload; print(workload.digest())"


@pytest.fixture(scope="module")
def one_thread():
    """The digest of one process with one thread."""
    return run_python(DIGEST, env={"NUMBA_NUM_THREADS": 1}).stdout


@pytest.mark.slow
@pytest.mark.parametrize("threads", [2, 3, 8])
def test_bits_do_not_depend_on_the_number_of_threads(one_thread, threads):
    assert run_python(DIGEST, env={"NUMBA_NUM_THREADS": threads}).stdout == one_thread


@pytest.mark.slow
@pytest.mark.parametrize("layer", THREADING_LAYERS)
def test_bits_do_not_depend_on_the_threading_layer(one_thread, layer):
    assert run_with_layer(layer, DIGEST) == one_thread


@pytest.mark.parametrize(("shape", "axis"), workload.LARGE, ids=str)
def test_set_num_threads_changes_no_bit(shape, axis, dtype):
    arguments = workload.inputs(shape, axis, dtype)
    threads = numba.get_num_threads()
    try:
        expected = workload.compute(*arguments, axis)
        numba.set_num_threads(1)
        got = workload.compute(*arguments, axis)
    finally:
        numba.set_num_threads(threads)
    for a, b in zip(got, expected, strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize(
    ("block_bytes", "spill_bytes"), [(1, 1), (1, 1 << 40), (100_000, 400_000), (1 << 40, 1)]
)
@pytest.mark.parametrize("shape", [(4, 24, 64, 64), (20, 600, 20), (11, 12_345)], ids=str)
def test_bits_do_not_depend_on_the_caches(
    shape, block_bytes, spill_bytes, ahead, dtype, monkeypatch
):
    axis = 1
    arguments = workload.inputs(shape, axis, dtype)
    expected = workload.compute(*arguments, axis)
    found = caches.Caches(block_bytes, spill_bytes, 1 << 62, 1 << 62, ahead)
    monkeypatch.setattr(caches, "found", lambda: found)
    try:
        choices.choose.cache_clear()
        got = workload.compute(*arguments, axis)
    finally:
        choices.choose.cache_clear()
    for a, b in zip(got, expected, strict=True):
        assert same_bits(a, b)


@pytest.mark.slow
def test_a_forked_child_which_runs_serially_gets_the_same_bits():
    run_python(
        """
        import os
        import workload

        expected = workload.digest()
        child = os.fork()
        if child == 0:
            os._exit(0 if workload.digest() == expected else 3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """
    )


@pytest.mark.parametrize(("shape", "axis"), workload.SMALL + workload.LARGE[:4], ids=str)
def test_running_twice_gives_the_same_bits(shape, axis, dtype):
    arguments = workload.inputs(shape, axis, dtype)
    first, second = workload.compute(*arguments, axis), workload.compute(*arguments, axis)
    for a, b in zip(first, second, strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("shift", [1, 3, 15, 16])
@pytest.mark.parametrize(("shape", "axis"), [*workload.SMALL, workload.LARGE[1]], ids=str)
def test_bits_do_not_depend_on_where_in_memory_an_array_begins(shape, axis, shift, dtype):
    def moved(array):
        memory = np.empty(array.size + 64, array.dtype)
        view = memory[shift : shift + array.size].reshape(array.shape)
        view[...] = array
        return view

    x, dy, *rest = workload.inputs(shape, axis, dtype)
    expected = workload.compute(x, dy, *rest, axis)
    got = workload.compute(moved(x), moved(dy), *rest, axis)
    for a, b in zip(got, expected, strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("streaming", [False, True], ids=["cached", "streamed"])
@pytest.mark.parametrize(
    ("rows", "channels"), [(3, 2049), (9, 2500), (70, 4101), (37, 8192), (6, 20_005)]
)
def test_bits_of_wide_rows_are_those_of_narrow_ones(rows, channels, streaming, dtype, monkeypatch):
    limit = 0 if streaming else 1 << 62
    found = caches.Caches(1 << 19, 1 << 19, limit, limit, ahead=True)
    monkeypatch.setattr(caches, "found", lambda: found)
    x, dy, *parameters = workload.inputs((rows, channels), 1, dtype)
    try:
        choices.choose.cache_clear()
        whole = workload.compute(x, dy, *parameters, 1)
        for begin in range(0, channels, 1000):
            some = slice(begin, begin + 1000)
            got = workload.compute(
                x[:, some], dy[:, some], *(parameter[some] for parameter in parameters), 1
            )
            for a, b in zip(got, whole, strict=True):
                assert same_bits(a, b[..., some])
    finally:
        choices.choose.cache_clear()


@pytest.mark.parametrize("channels", [300, 150, 20])
def test_sums_do_not_depend_on_how_many_channels_are_taken_at_a_time(channels, monkeypatch):
    x, dy = (normal((30_000, 300), np.float64, seed=seed) for seed in (1, 2))
    found = []
    for block in (channels, channels // 3, channels // 19):
        monkeypatch.setattr(choices, "split_block", lambda *arguments, block=block: block)
        choices.choose.cache_clear()
        stats, sums = np.empty((4, channels)), np.empty((2, channels))
        cpu.collect_moments(x, 1e-5, stats)
        cpu.backward_reduce(x, dy, stats[0], stats[3], stats[2], sums, *np.empty((2, channels)))
        found.append(np.concatenate([stats, sums]))
    choices.choose.cache_clear()
    for sums in found[1:]:
        assert same_bits(sums, found[0])
