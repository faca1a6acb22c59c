"""More than 2**31 elements. Needs 10 GB; run by ``make test-large``."""

import numpy as np
import pytest
from support import assert_close, normal, parameters, relative_error

import bnnumba as bn
from bnnumba import reference

SIZE = 2**31 + 2**20
PERIOD = 2**20

# (shape, axis, how a pattern of one period per channel lies in memory)
CASES = {
    "ncs": ((2, 2, SIZE // 4), 1),
    "one_row": ((1, 1, SIZE), 1),
    "rc": ((SIZE // 1024, 1024), 1),
    "two_columns": ((SIZE // 2, 2), 1),
}


def fill(array, axis, block):
    """Repeat block (channels, period), rounded to the dtype of array, through the whole array."""
    channels = array.shape[axis]
    if array.ndim == 3:
        for n in range(array.shape[0]):
            for c in range(channels):
                array[n, c].reshape(-1, block.shape[1])[...] = block[c]
    else:
        array.reshape(-1, *block.T.shape)[...] = block.T


def check_periodic(array, expected):
    """Compare every period of array with the expected one."""
    if array.ndim == 3:
        rows = [array[n, c] for n in range(array.shape[0]) for c in range(array.shape[1])]
        channels = list(range(array.shape[1])) * array.shape[0]
        pieces = [
            (row.reshape(-1, expected.shape[1]), expected[c])
            for row, c in zip(rows, channels, strict=True)
        ]
    else:
        pieces = [(array.reshape(-1, expected.size), expected.T.ravel())]
    for periods, wanted in pieces:
        assert_close(periods[0], wanted)
        for period in periods:
            assert period.tobytes() == periods[0].tobytes()


@pytest.mark.large
@pytest.mark.parametrize("name", CASES)
def test_every_element_of_an_array_beyond_int32(name):
    shape, axis = CASES[name]
    channels = shape[axis]
    period = PERIOD // channels if len(shape) == 2 else 2**18
    assert (SIZE // channels) % period == 0
    # With whole periods only, the statistics are exactly those of one period.
    block_x = normal((channels, period), np.float16, loc=1)
    block_dy = normal((channels, period), np.float16, seed=1)
    weight, bias = parameters(channels)
    expected = reference.batch_norm_training(block_x, weight, bias, axis=0)
    x = np.empty(shape, np.float16)
    fill(x, axis, block_x)
    m = bn.moments(x)
    repeats = SIZE // channels // period
    assert m.count == SIZE // channels
    assert relative_error(m.m2, expected.moments.m2 * repeats) < 1e-12
    assert relative_error(m.mean, expected.moments.mean) < 1e-12
    y, saved = bn.batch_norm_training(x, weight, bias)
    assert relative_error(saved.moments.m2, m.m2) < 1e-12
    check_periodic(y, expected.y)

    bn.batch_norm_inference(x, expected.moments.mean, m.var(), weight, bias, out=y)
    check_periodic(y, expected.y)

    fill(y, axis, block_dy)
    gradients = bn.batch_norm_backward(y, saved, out=y)
    wanted = reference.batch_norm_backward(
        block_dy, block_x, expected.moments.mean, expected.invstd, weight, axis=0
    )
    check_periodic(gradients.x, wanted.x)
    assert_close(gradients.weight, wanted.weight * repeats, dtype=np.float32)
    assert_close(gradients.bias, wanted.bias * repeats, dtype=np.float32)
