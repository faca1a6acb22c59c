"""Each item is done once, by however many threads, and a part that fails is told of."""

import ctypes

import numba
import numpy as np
import pytest
from numba import njit

from bnnumba.cpu.worksharing import parallel_for, team


@parallel_for
def count(begin, end, done, parts):
    parts[begin] += 1
    for item in range(begin, end):
        done[item] += 1
    return True


@parallel_for
def fail_at(begin, end, item, raises, done):
    for i in range(begin, end):
        if i == item:
            if raises:  # as a check of an index may
                raise IndexError
            return False
        done[i] = 1
    return True


sleep = ctypes.CDLL(None).usleep
sleep.argtypes, sleep.restype = [ctypes.c_uint], ctypes.c_int


@parallel_for
def wait_at_first(begin, end, done):
    if begin == 0:
        others = done[done.size // 4 :]
        for _ in range(20_000):
            if others.sum() == others.size:
                break
            sleep(1000)
        else:
            return False
    for item in range(begin, end):
        done[item] += 1
    return True


@njit
def wait_once(address, done):
    return wait_at_first(address, done.size, done)


@njit
def count_all(address, done, parts):
    return count(address, done.size, done, parts)


@njit
def fail_once(address, item, raises, done):
    return fail_at(address, done.size, item, raises, done)


@pytest.fixture(params=[0, 1, 2])
def threads(request):
    if request.param > numba.config.NUMBA_NUM_THREADS:
        pytest.skip("one CPU")
    before = numba.get_num_threads()
    numba.set_num_threads(max(1, request.param))
    yield request.param
    numba.set_num_threads(before)


@pytest.mark.parametrize("items", [0, 1, 2, 3, 5, 64, 1001])
def test_each_item_is_done_once(threads, items):
    done, parts = np.zeros(items, int), np.zeros(items + 1, int)
    assert count_all(team() if threads else 0, done, parts)
    np.testing.assert_array_equal(done, 1)
    assert threads or parts[0] == parts.sum() == 1


@pytest.mark.parametrize("threads", [1], indirect=True)
def test_a_share_is_done_in_halves_of_what_is_left(threads):
    done, parts = np.zeros(16, int), np.zeros(17, int)
    count_all(team(), done, parts)
    np.testing.assert_array_equal(np.flatnonzero(parts), [0, 8, 12, 14, 15])


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_a_thread_that_is_done_takes_over_from_one_that_is_late(threads):
    done = np.zeros(16, int)
    assert wait_once(team(), done)  # unless nobody else does the second half of the share
    np.testing.assert_array_equal(done, 1)


@pytest.mark.parametrize("raises", [False, True])
def test_a_part_that_fails_is_told_of_and_others_are_done(threads, raises):
    done = np.zeros(1000, int)
    assert not fail_once(team() if threads else 0, 999, raises, done)
    np.testing.assert_array_equal(done, np.arange(1000) < 999)
    assert fail_once(team() if threads else 0, 1000, raises, done)
    np.testing.assert_array_equal(done, 1)
