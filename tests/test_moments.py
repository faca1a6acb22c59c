"""Moments: accuracy on hard data in every path, merging, and streaming in any order."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import BFLOAT16, LAYOUTS, normal, parameters, relative_error, same_bits

import bnnumba as bn
from bnnumba import reference

DATA = {
    "standard": normal,
    "offset_1e4": lambda shape: normal(shape, loc=1e4),
    "offset_1e6": lambda shape: normal(shape, loc=1e6),
    "first_is_1e4": lambda shape: _first_is_1e4(shape),
    "one_outlier_1e4": lambda shape: _one_outlier(shape, 1e4),
    "one_outlier_1e9": lambda shape: _one_outlier(shape, 1e9),
    "first_around_0_then_1e6": lambda shape: _first_around_0(shape, 1e6),
    "alternating_1e7": lambda shape: _alternating(shape, 1e7, np.float32),
    "alternating_1e8": lambda shape: _alternating(shape, 1e8, np.float64),
    "standard_float64": lambda shape: normal(shape, np.float64),
    "offset_100_float16": lambda shape: normal(shape, np.float16, loc=100),
    "offset_100_bfloat16": lambda shape: normal(shape, BFLOAT16, loc=100),
}


def _first_is_1e4(shape):
    x = normal(shape)
    x[:, :, 0] = 1e4
    return x


def _first_around_0(shape, value):
    x = normal(shape, loc=value)
    x[:16, :, :64] = normal(x[:16, :, :64].shape)
    return x


def _one_outlier(shape, value):
    x = normal(shape)
    x[0, :, 0] = value
    return x


def _alternating(shape, centre, dtype):
    values = centre + np.resize([1.0, -1.0], shape[2])
    return np.broadcast_to(values, shape).astype(dtype)


# (N, C, S) for the ways of cutting work: a channel over threads, threads over channels, short
# rows, rows shorter than a vector, one long row, blocks of channels that do and do not divide.
SHAPES = [
    (64, 1, 20_011),
    (64, 2, 20_011),
    (64, 3, 20_011),
    (1, 1, 2_000_003),
    (8, 4, 12_544),
    (32, 64, 49),
    (32, 301, 49),
    (5, 70, 7),
    (30_000, 5, 1),
    (30_000, 5, 3),
    (90, 301, 31),
    (9, 3000, 4),
    (1, 40, 9),
    (40_000, 2, 5),
    (100_003, 31, 1),
    (3, 5, 1000),
    (500, 33, 100),
]
LAYOUTS_3D = {"ncs": (1, lambda x: x), "rc": (-1, lambda x: np.ascontiguousarray(x.swapaxes(1, 2)))}


@pytest.mark.parametrize("layout", LAYOUTS_3D)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("data", DATA)
def test_variance_is_right_to_1e_12_alone_and_fused_with_normalization(data, shape, layout):
    axis, arrange = LAYOUTS_3D[layout]
    x = arrange(DATA[data](shape))
    expected = reference.moments(x, axis=axis)
    saved = bn.batch_norm_training(x, *parameters(shape[1]), axis=axis)[1]
    for m in (bn.moments(x, axis=axis), saved.moments):
        assert m.count == expected.count
        assert m.mean.dtype == m.m2.dtype == np.float64
        assert m.mean.shape == m.m2.shape == (shape[1],)
        assert relative_error(m.var(), expected.m2 / expected.count) <= 1e-12
        scale = np.abs(np.moveaxis(x, axis, 0).astype(np.float64).reshape(shape[1], -1)).max(axis=1)
        assert (np.abs(m.mean - expected.mean) <= 1e-15 * scale).all()


@pytest.mark.parametrize("samples", [1, 2, 8, 15, 23])
def test_an_outlier_at_the_beginning_of_short_rows_costs_no_digits(samples):
    for s in (2, 3, 16, 25, 32, 33):
        x = normal((samples, 16, s), np.float64)
        x[0, :, 0] = 100
        assert relative_error(bn.moments(x).m2, reference.moments(x).m2) < 1e-14


# By the number of first values that a pivot is the mean of, which is 16 to 128.
@pytest.mark.parametrize("few", [3, 16, 64, 128, 512])
@pytest.mark.parametrize(("dtype", "limit"), [(np.float32, 6e-13), (np.float64, 3e-12)])
@pytest.mark.parametrize(
    "shape", [(500, 4, 32), (2000, 4, 16), (2**18, 4), (2**15, 40), (4096, 300), (3, 4, 40000)]
)
def test_the_hardest_variance_is_of_a_channel_that_is_constant_after_a_few_values(
    shape, dtype, limit, few
):
    rng = np.random.default_rng(few)
    x = np.empty(shape, dtype)
    channels, count = shape[1], x.size // shape[1]
    expected = []
    for c in range(channels):
        constant = dtype(rng.uniform(0.5, 4))
        # Spread about it, or their mean just below their deviation, so that the pivot is 0.
        spread = rng.standard_normal(few) if c % 2 else np.resize([-1.0001, 0.0001], few)
        first = (constant * (1 + spread * (1 + 1e-6 * rng.random(few)))).astype(dtype)
        values = np.full(count, constant)
        values[:few] = first
        x[:, c] = values.reshape(x[:, c].shape)
        if c < 4:
            numbers = [*map(Fraction, map(float, first)), Fraction(float(constant))]
            times = [1] * few + [count - few]
            mean = sum(v * n for v, n in zip(numbers, times, strict=True)) / count
            m2 = sum(n * (v - mean) ** 2 for v, n in zip(numbers, times, strict=True))
            expected.append(m2)
    for m2, exact in zip(bn.moments(x).m2, expected, strict=False):
        assert abs(Fraction(float(m2)) / exact - 1) < Fraction(limit)


# NIST StRD univariate summary statistics, from their definitions: name, values, certified mean
# and standard deviation (ddof 1), digits that float64 input allows.
# https://www.itl.nist.gov/div898/strd/univ/homepage.html
NIST = [
    ("NumAcc1", [10000001.0, 10000003.0, 10000002.0], 10000002.0, 1.0, 14),
    ("NumAcc2", [1.2] + [1.1, 1.3] * 500, 1.2, 0.1, 14),
    ("NumAcc3", [1000000.2] + [1000000.1, 1000000.3] * 500, 1000000.2, 0.1, 9),
    ("NumAcc4", [10000000.2] + [10000000.1, 10000000.3] * 500, 10000000.2, 0.1, 8),
]


@pytest.mark.parametrize("copies", [1, 9])
@pytest.mark.parametrize("layout", ["ncs", "rc", "chunks"])
@pytest.mark.parametrize(
    ("name", "values", "mean", "std", "digits"), NIST, ids=[n[0] for n in NIST]
)
def test_nist_strd(name, values, mean, std, digits, layout, copies):
    x = np.repeat(np.array(values)[:, None], copies, axis=1)
    if layout == "ncs":
        m = bn.moments(np.ascontiguousarray(x.T)[None])
    elif layout == "rc":
        m = bn.moments(x)
    else:
        running = bn.RunningMoments(copies)
        for chunk in np.array_split(x, 2 if len(x) < 10 else 13):
            running.update(chunk)
        m = running
    got = np.sqrt(m.var(correction=1))
    assert relative_error(got, np.full(copies, std)) <= 10.0**-digits
    assert relative_error(m.mean, np.full(copies, mean)) <= 1e-15


def test_std_is_the_root_of_var_and_both_take_a_correction():
    x = normal((5, 3, 7))
    m = bn.moments(x)
    flat = x.astype(np.float64).swapaxes(0, 1).reshape(3, -1)
    for correction in (0, 1, 0.5):
        expected = flat.var(axis=1, ddof=correction)
        assert relative_error(m.var(correction=correction), expected) < 1e-13
        assert relative_error(m.std(correction=correction), np.sqrt(expected)) < 1e-13
    assert same_bits(m.var(), m.var(correction=0))


@pytest.mark.parametrize("layout", LAYOUTS_3D)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4, 16777216.0, -3.3333333e30])
@pytest.mark.parametrize("size", [1, 2, 7, 64, 4097, 300_001])
def test_a_constant_channel_has_variance_exactly_zero_and_its_value_as_mean(value, size, layout):
    axis, arrange = LAYOUTS_3D[layout]
    x = arrange(np.full((3, 2, size), value, np.float32))
    m = bn.moments(x, axis=axis)
    assert (m.m2 == 0).all()
    assert (m.mean == np.float64(np.float32(value))).all()


@pytest.mark.parametrize("shape", [(1000, 1), (50, 3, 7), (50, 2, 200)])
def test_a_constant_channel_too_small_to_be_squared_is_its_mean(shape):
    x = np.full(shape, 1e-200 / 3)
    m = bn.moments(x)
    assert (m.m2 == 0).all()
    assert (m.mean == x.flat[0]).all()
    assert not bn.batch_norm_training(x, eps=1e-300)[0].any()


@pytest.mark.parametrize("name", LAYOUTS)
def test_moments_of_every_layout(name, dtype):
    x = normal((6, 5, 4, 9), dtype, loc=2)
    expected = reference.moments(x)
    m = bn.moments(LAYOUTS[name](x))
    assert relative_error(m.mean, expected.mean) < 1e-13
    assert relative_error(m.m2, expected.m2) < 1e-12


@pytest.mark.parametrize("cut", [0, 1, 3, 500, 999, 1000])
def test_merging_is_having_seen_both(cut):
    x = normal((1000, 7), loc=1e4)
    x[0] = 1e6
    m = bn.moments(x[:cut]).merge(bn.moments(x[cut:]))
    expected = reference.moments(x)
    assert m.count == 1000
    assert relative_error(m.mean, expected.mean) < 1e-14
    assert relative_error(m.m2, expected.m2) < 1e-12


def test_merging_returns_new_moments_and_changes_neither():
    a, b = bn.moments(normal((9, 3))), bn.moments(normal((4, 3), seed=1))
    before = [(m.count, m.mean.copy(), m.m2.copy()) for m in (a, b)]
    a.merge(b)
    for m, (count, mean, m2) in zip((a, b), before, strict=True):
        assert m.count == count
        assert same_bits(m.mean, mean)
        assert same_bits(m.m2, m2)


def test_merging_a_constant_with_itself_keeps_variance_exactly_zero():
    a = bn.moments(np.full((7, 2), 0.1))
    merged = a.merge(bn.moments(np.full((3, 2), 0.1))).merge(a)
    assert (merged.m2 == 0).all()
    assert (merged.mean == 0.1).all()


def test_merging_does_not_let_nan_cross_channels():
    x = normal((9, 3))
    x[2, 1] = np.nan
    m = bn.moments(x).merge(bn.moments(normal((4, 3))))
    assert np.isnan(m.mean[1])
    assert np.isnan(m.m2[1])
    assert np.isfinite(m.mean[[0, 2]]).all()
    assert np.isfinite(m.m2[[0, 2]]).all()


def test_counts_beyond_int32_do_not_overflow():
    m = bn.moments(np.array([[1.0], [3.0]]))
    for _ in range(40):
        m = m.merge(m)
    assert m.count == 2**41
    assert relative_error(m.mean, [2.0]) < 1e-14
    assert relative_error(m.var(), [1.0]) < 1e-12


@pytest.mark.parametrize(("count", "correction"), [(0, 0), (0, 1), (1, 1), (3, 3), (3, 4)])
def test_a_variance_of_too_few_values_is_not_a_number_rather_than_an_error(count, correction):
    x = normal((count, 4))
    running = bn.RunningMoments(4)
    running.update(x)
    for m in (bn.moments(x), running):
        assert np.isnan(m.var(correction=correction)).all()
        assert np.isnan(m.std(correction=correction)).all()


def test_update_running_is_what_training_does():
    x = normal((5, 4, 9), loc=3)
    one, two = [np.zeros(4), np.ones(4)], [np.zeros(4), np.ones(4)]
    bn.batch_norm_training(x, running_mean=one[0], running_var=one[1], momentum=0.3)
    bn.update_running(*two, bn.moments(x), momentum=0.3)
    for a, b in zip(one, two, strict=True):
        assert relative_error(a, b) < 1e-15


def check_running(running, x):
    expected = reference.moments(x)
    assert running.count == len(x)
    if len(x) == 0:
        return
    # A part's mean is rounded to float64, so what a merge can know is bounded by mean / std.
    std = np.sqrt(expected.m2 / len(x))
    ratio = np.max(np.abs(expected.mean) / std, initial=0.0, where=std > 0)
    assert relative_error(running.var(), expected.m2 / len(x)) < 1e-12 + 2.0**-50 * ratio
    scale = np.maximum(np.abs(expected.mean), np.sqrt(expected.m2 / len(x)))
    assert (np.abs(running.mean - expected.mean) <= 1e-14 * scale).all()


@given(
    sizes=st.lists(st.integers(0, 40), max_size=12),
    merges=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=12),
    owners=st.lists(st.integers(0, 3), min_size=12, max_size=12),
    offset=st.sampled_from([0.0, 1e4, 1e6]),
)
def test_running_moments_take_updates_and_merges_in_any_order(sizes, merges, owners, offset):
    chunks = [normal((n, 3), seed=i, loc=offset) for i, n in enumerate(sizes)]
    parts = [(bn.RunningMoments(3), []) for _ in range(4)]
    for i, chunk in enumerate(chunks):
        running, seen = parts[owners[i]]
        running.update(chunk)
        seen.append(chunk)
        if i < len(merges):
            a, b = (m % len(parts) for m in merges[i])
            if a != b:
                parts[a][0].merge(parts[b][0])
                parts[a][1].extend(parts[b][1])
                parts[b] = (bn.RunningMoments(3), [])
    for running, seen in parts:
        check_running(running, np.concatenate(seen) if seen else np.empty((0, 3), np.float32))


def test_running_moments_take_any_rank_axis_and_dtype(dtype):
    running = bn.RunningMoments(5)
    blocks = [
        normal((4, 5, 3, 2), dtype),
        normal((7, 5), dtype, seed=1),
        normal((5, 11), dtype, seed=2),
    ]
    for x, axis in zip(blocks, (1, -1, 0), strict=True):
        running.update(x, axis=axis)
    assert running.mean.dtype == running.var().dtype == np.float64
    rows = [np.moveaxis(x, a, -1).reshape(-1, 5) for x, a in zip(blocks, (1, -1, 0), strict=True)]
    check_running(running, np.concatenate(rows))


def test_a_state_dict_restores_running_moments_exactly():
    running = bn.RunningMoments(3)
    running.update(normal((9, 3)))
    state = running.state_dict()
    copy = bn.RunningMoments(3)
    copy.load_state_dict(pickle.loads(pickle.dumps(state)))
    running.update(normal((4, 3), seed=1))
    assert copy.count == 9, "a state dict is a snapshot"
    copy.update(normal((4, 3), seed=1))
    assert copy.count == running.count == 13
    assert same_bits(copy.mean, running.mean)
    assert same_bits(copy.var(), running.var())


def test_running_moments_survive_pickling():
    running = bn.RunningMoments(3)
    running.update(normal((9, 3)))
    copy = pickle.loads(pickle.dumps(running))
    assert copy.count == 9
    assert same_bits(copy.mean, running.mean)
    assert same_bits(copy.var(), running.var())


def test_a_failed_update_leaves_running_moments_as_they_were():
    running = bn.RunningMoments(3)
    running.update(normal((9, 3)))
    mean, var = running.mean.copy(), running.var()
    with pytest.raises(bn.BnnumbaError):
        running.update(normal((9, 4)))
    assert running.count == 9
    assert same_bits(running.mean, mean)
    assert same_bits(running.var(), var)


def test_running_moments_agree_with_scikit_learn():
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    scaler, running = preprocessing.StandardScaler(), bn.RunningMoments(6)
    for seed, rows in enumerate([10, 1, 500, 33]):
        chunk = normal((rows, 6), np.float64, seed=seed, loc=5)
        scaler.partial_fit(chunk)
        running.update(chunk)
    assert relative_error(running.mean, scaler.mean_) < 1e-12
    assert relative_error(running.var(), scaler.var_) < 1e-12


@pytest.mark.parametrize(
    ("name", "value"),
    [("count", 2.5), ("count", "3"), ("count", True), ("count", None), ("mean", [1j]),
     ("mean", "a"), ("m2", [[1], [1, 2]])],
)  # fmt: skip
def test_moments_of_what_is_no_number_are_an_error(name, value):
    arguments = {"count": 3, "mean": np.zeros(1), "m2": np.ones(1), name: value}
    with pytest.raises(bn.BnnumbaTypeError, match=f"{name}: expected"):
        bn.Moments(**arguments)
    running = bn.RunningMoments(1)
    with pytest.raises(bn.BnnumbaTypeError, match=f"{name}: expected"):
        running.load_state_dict(arguments)
    assert running.count == 0


def test_a_negative_m2_is_not_taken():
    with pytest.raises(bn.BnnumbaValueError, match=r"m2: expected .* not negative, got -1"):
        bn.Moments(3, [0], [-1])
    with pytest.raises(bn.BnnumbaValueError, match=r"m2: expected .* not negative, got -1"):
        bn.RunningMoments(1).load_state_dict({"count": 3, "mean": [0], "m2": [-1]})


def test_more_values_than_an_integer_counts_are_an_error():
    with pytest.raises(bn.BnnumbaValueError, match=r"count: .* 2\*\*63 - 1, got 9223372"):
        bn.Moments(2**63, [0], [0])
    half = bn.Moments(2**62, [1], [0])
    with pytest.raises(bn.BnnumbaValueError, match=r"other: expected fewer than 2\*\*63 values"):
        half.merge(half)
    almost = half.merge(bn.Moments(2**62 - 1, [3], [0]))
    assert almost.count == 2**63 - 1
    assert almost.mean == pytest.approx(2)


def test_moments_are_a_value_whatever_becomes_of_the_arrays_they_were_made_of():
    mean, m2 = np.zeros(2), np.ones(2)
    m = bn.Moments(3, mean, m2)
    mean[:] = m2[:] = 7
    assert (m.mean == 0).all()
    assert (m.m2 == 1).all()


def test_threads_may_update_one_stream():
    running, piece = bn.RunningMoments(2), np.array([[1.0, 2.0], [3.0, 4.0]])

    def work(_):
        for _ in range(500):
            running.update(piece)
            running.merge(bn.Moments(1, [2, 3], [0, 0]))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert running.count == 4 * 500 * 3
    np.testing.assert_allclose(running.mean, [2, 3], rtol=1e-15)


def test_a_state_is_loaded_from_a_file_of_arrays(tmp_path):
    running, other = bn.RunningMoments(3), bn.RunningMoments(3)
    running.update(normal((50, 3), loc=1e6))
    np.savez(tmp_path / "state.npz", **running.state_dict())
    with np.load(tmp_path / "state.npz") as state:
        other.load_state_dict(state)
    assert other.count == 50
    for name, value in running.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], value)


STREAMS = {
    "1e7 +- 1": lambda n: 1e7 + np.where(np.arange(n) % 3 == 0, 1.0, -1.0),
    "timestamps": lambda n: 1.7e9 + np.arange(n) * 1e-3,
    "100 +- 1e-9": lambda n: 100 + 1e-9 * normal((n,), np.float64, seed=5),
}


@pytest.mark.parametrize("pieces", [7, 200, 2000])
@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_far_from_zero_keeps_its_variance(kind, pieces):
    x = STREAMS[kind](4000)
    values = [Fraction(float(value)) for value in x]
    mean = sum(values) / len(values)
    expected = float(sum((value - mean) ** 2 for value in values) / len(values))
    updated, loaded = bn.RunningMoments(1), bn.RunningMoments(1)
    merged = bn.Moments(0, np.zeros(1), np.zeros(1))
    for piece in np.array_split(x, pieces):
        updated.update(piece[:, None])
        resumed = bn.RunningMoments(1)
        resumed.load_state_dict(loaded.state_dict())
        resumed.merge(bn.moments(piece[:, None]))
        loaded = resumed
        merged = merged.merge(pickle.loads(pickle.dumps(bn.moments(piece[:, None]))))
    for got in (updated, loaded, merged):
        assert abs(got.var()[0] / expected - 1) < 1e-13
        assert got.mean[0] == float(mean)


@pytest.mark.parametrize(
    ("shape", "first"),
    [((5461, 2, 3), 22), ((8192, 2, 2), 32), ((131_072, 2), 16), ((1, 2, 16_000), 64),
     ((511, 2), 16), ((334, 2, 49), 2), ((84, 2, 196), 3), ((5, 2, 3136), 1), ((2, 70_001), 1)],
)  # fmt: skip
def test_a_channel_that_is_constant_but_for_its_first_values(shape, first, dtype):
    # Zeros, as padding is, then one value: whatever is added up is the same each time, and rounds
    # the same way, while the pivot is as far off as it can be.
    level = np.array(0.1, dtype)
    x = np.full(shape, level)
    if shape[0] == 1:
        x[..., :first] = 0
        zeros = first
    else:
        x[:first] = 0
        zeros = first * x[0, 0].size
    n = x.size // shape[1]
    expected = Fraction(float(level)) ** 2 * zeros * (n - zeros) / n
    for m2 in bn.moments(x).m2[:: shape[1] - 1]:
        assert abs(Fraction(m2) / expected - 1) < Fraction(1, 10**12)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_moments_survive_every_pickle(protocol):
    m = bn.moments(normal((9, 3), np.float64, loc=1e8))
    assert m._rest.any()
    copied = pickle.loads(pickle.dumps(m, protocol))
    assert copied == m
    assert same_bits(copied._rest, m._rest)


@pytest.mark.parametrize("name", ["count", "mean", "m2"])
def test_moments_keep_their_arrays(name):
    m = bn.moments(normal((9, 3)))
    with pytest.raises(AttributeError):
        setattr(m, name, np.ones(1))


@pytest.mark.parametrize("rest", [[np.nan, 0.0, 0.0], [1e300, 0.0, 0.0], [0.0, 1e-3, 0.0]])
def test_a_rest_that_no_rounding_left_is_refused(rest):
    running = bn.RunningMoments(3)
    running.update(normal((9, 3)))
    state = running.state_dict()
    with pytest.raises(bn.BnnumbaValueError, match="rest: expected what rounding leaves"):
        running.load_state_dict({**state, "rest": np.array(rest)})
    assert running.count == 9


def test_a_number_of_channels_beyond_any_array_is_named():
    for make in (bn.RunningMoments, bn.BatchNorm):
        with pytest.raises(bn.BnnumbaValueError, match="num_features: expected a number from 0"):
            make(10**30)
