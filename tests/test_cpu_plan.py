"""The cut of work: every value in exactly one slab, by shape alone, in pieces of bounded size."""

from itertools import pairwise

import numba
import numpy as np
import pytest

from bnnumba.cpu import choices, plan, sums

EXTENTS = [1, 2, 3, 7, 63, 64, 65, 100, 128, 129, 1000, 2048, 2049, 4097, 16_384, 16_385, 131_073]


@numba.njit
def bounds(n, s, whole, slab):
    return plan.slab_bounds(n, s, whole, slab)


def slabs(n, s, cut):
    whole = plan.Plan(*cut, block=1, ahead=0, streaming=0)
    return [bounds(n, s, whole, slab) for slab in range(whole.slabs)]


@pytest.mark.parametrize("s", EXTENTS)
def test_slabs_cover_every_value_once(s):
    for n in EXTENTS:
        if n * s > 3e8:
            continue
        found = slabs(n, s, plan.cut_ncs(n, s))
        rows = sorted({(n0, n1) for n0, n1, _, _ in found})
        columns = sorted({(s0, s1) for _, _, s0, s1 in found})
        assert len(found) == len(rows) * len(columns) == len(set(found))
        for parts, extent in ((rows, n), (columns, s)):
            assert parts[0][0] == 0
            assert parts[-1][1] == extent
            assert all(a < b for a, b in parts)
            assert all(a[1] == b[0] for a, b in pairwise(parts))


@pytest.mark.parametrize("columns", [2, 62, 6200])
@pytest.mark.parametrize("s", [1, 2, 31])
@pytest.mark.parametrize("r", [*EXTENTS, 2**31 + 5, 2**40])
def test_rows_are_covered_once(r, s, columns):
    cut = plan.cut_rc(r, s, columns)
    found = slabs(r, s, cut)
    assert found[0][0] == 0
    assert found[-1][1] == r
    assert all(a[1] == b[0] for a, b in pairwise(found))
    assert {(s0, s1) for _, _, s0, s1 in found} == {(0, s)}
    assert cut[4] * s <= plan.CHUNK


@pytest.mark.parametrize(("n", "s"), [(2**31 + 5, 1), (1, 2**31 + 5), (2**20, 2**20), (3, 2**33)])
def test_large_shapes_do_not_overflow(n, s):
    found = slabs(n, s, plan.cut_ncs(n, s))
    assert sum((n1 - n0) * (s1 - s0) for n0, n1, s0, s1 in found) == n * s
    assert len(found) <= plan.SLABS


def extents(n, channels, s):
    if s == 1:
        return choices.Extents((n, channels), 2, n * channels, 4)
    return choices.Extents((n, channels, s), 3, n * channels * s, 4)


@pytest.mark.parametrize("workers", [1, 2, 3, 16, 128])
@pytest.mark.parametrize("channels", [1, 2, 64, 1000, 5000])
@pytest.mark.parametrize("s", [1, 63, 784, 131_073])
def test_a_step_that_only_writes_gives_all_threads_alike(workers, channels, s):
    for n in EXTENTS:
        x = extents(n, channels, s)
        cut = choices.cut(x, channels, choices.WRITES, workers)
        block = choices.split_block(x, channels, choices.WRITES, cut[0], workers)
        sizes = [
            (n1 - n0) * (s1 - s0) * min(block, channels - c0)
            for n0, n1, s0, s1 in slabs(n, s, cut)
            for c0 in range(0, channels, block)
        ]
        assert sum(sizes) == x.size
        if x.size >= max(choices.PARALLEL_SIZE, 16384 * workers):
            shares = [sum(part) for part in np.array_split(sizes, workers)]
            assert max(shares) <= 1.25 * x.size / workers


@pytest.mark.parametrize("channels", [64, 256, 5000])
@pytest.mark.parametrize("r", [333, 1000, 2001, 5001, 10_007, 65_537, 1_000_003])
def test_rows_stay_whole_however_many_there_are(r, channels):
    # In blocks of channels, each row would be read in pieces, short ones where there are few.
    x = extents(r, channels, 1)
    for kind in [choices.WRITES, *([choices.SUMS] if r >= 512 else [])]:
        for workers in (2, 4):
            cut = choices.cut(x, channels, kind, workers)
            if cut[0] >= workers:
                assert choices.split_block(x, channels, kind, cut[0], workers) == channels


@pytest.mark.parametrize("columns", range(100))  # 0 of a step that is not fused
def test_rows_taken_together_fill_vectors(columns):
    rows = sums.rows_in_one(columns)
    assert rows == 1 if columns >= sums.NARROW else rows * columns % 16 == 0
    assert rows * columns < 64 * sums.NARROW or columns >= sums.NARROW


def test_there_are_enough_slabs_for_many_threads_and_no_more():
    for n, s in [(1, 10_000_000), (10_000_000, 1), (1000, 10_000)]:
        assert 32 <= plan.cut_ncs(n, s)[0] <= plan.SLABS
    assert plan.cut_rc(10_000_000, 1, 100)[0] == plan.SLABS
    assert plan.cut_ncs(4, 16)[0] == 1


def test_a_chunk_is_short_enough_to_be_summed_against_one_pivot():
    for n in EXTENTS:
        for s in EXTENTS:
            *_, rows, columns = plan.cut_ncs(n, s)
            assert rows * columns <= plan.CHUNK
            assert rows <= n
            assert columns <= s


@pytest.mark.parametrize("sleep", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_threads_that_must_be_woken_share_only_what_is_worth_it(monkeypatch, count, sleep):
    monkeypatch.setattr(choices.threads, "count", lambda: count)
    monkeypatch.setattr(choices.threads, "sleep", lambda: sleep)
    fewest = choices.SLEEPERS_SIZE if sleep else choices.PARALLEL_SIZE
    for size in (fewest - 2, fewest):
        shared, _ = choices.plan_step(np.empty((size // 2, 2)), 2, choices.SUMS, 1)
        assert shared == (count > 1 and size >= fewest)
