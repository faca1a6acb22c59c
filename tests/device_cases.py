"""Every public function on arrays of a GPU, against the oracle.

Not collected by itself: `test_gpu_simulated.py` runs it on Numba's simulator, `make gpu-check` on a
GPU, through each library. The simulator takes small shapes, and a device so small that these meet
all three kinds of kernels.
"""

import os

import numpy as np
import pytest
from device_arrays import BFLOAT16, adapter
from support import LAYOUTS, assert_close, normal, parameters, relative_error, same_bits, scales

import bnnumba as bn
from bnnumba import reference

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
on = adapter()
DTYPES = [np.dtype(name) if name != "bfloat16" else BFLOAT16 for name in on.dtypes]
# x[n, c, s] and x[r, c]: rows of whole accesses, odd ones, one channel, one value, ...
SHAPES = [
    ((4, 3, 8, 2), 1), ((3, 5, 7), 1), ((2, 2, 130), 1), ((40, 6), 1), ((9, 4, 16), -1),
    ((50, 3), 1), ((3, 1, 9), 1), ((1, 4), 1), ((6, 17), 1), ((1, 2, 257), 1),
]  # fmt: skip
LARGE = [
    ((128, 64, 56, 56), 1), ((128, 512, 7, 7), 1), ((32, 256, 14, 14), 1), ((128, 3, 64, 63), 1),
    ((64, 28, 28, 512), -1), ((64, 7, 7, 2048), -1), ((1_000_003, 5), 1), ((70_000, 130), 1),
    ((1, 1, 5_000_001), 1), ((2, 3001, 50), 1), ((300, 4096), 1), ((16, 100_000, 3), 1),
]  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_registered():
    """Let kernels in host memory touch what a test makes, and not what earlier tests made."""
    if on.in_host_memory:
        from bnnumba.gpu import simulator

        simulator.MEMORY.clear()


@pytest.fixture(params=["resident", "swept", "passes"])
def regime(request, monkeypatch):
    """Devices that differ in their caches, so that one shape meets all kinds of kernels."""
    from bnnumba.gpu import driver, plan

    real = driver.device(0)
    shared, l2 = {"resident": (None, 1 << 20), "swept": (0, 1 << 40), "passes": (0, 0)}[
        request.param
    ]
    traits = real.traits._replace(l2=l2)
    if shared is None:
        traits = traits._replace(multiprocessors=2)  # few channels are enough for all of them
    else:
        traits = traits._replace(shared=shared)
    monkeypatch.setattr(real, "traits", traits, raising=False)
    if SIMULATED:
        small = {"LEAST_THREADS": 8, "THREADS": 16, "MOST_THREADS": 16, "LEAST_JOB_BYTES": 128}
        for name, value in {**small, "PASS_BYTES": 512, "SWEEP_BYTES": 512}.items():
            monkeypatch.setattr(plan, name, value)
    for function in (plan.plan_passes, plan.plan_sweeps, plan.plan_merge):
        function.cache_clear()
    yield request.param
    for function in (plan.plan_passes, plan.plan_sweeps, plan.plan_merge):
        function.cache_clear()


def launched(monkeypatch):
    """The names of the kernels that are launched from now on."""
    from bnnumba.gpu import driver

    names = []
    cls = type(driver.device(0))
    launch = cls.launch

    def noting(self, kernel, *arguments):
        names.append(kernel.name)
        return launch(self, kernel, *arguments)

    monkeypatch.setattr(cls, "launch", noting)
    return names


def check(x, weight=None, bias=None, *, axis=1, eps=1e-5):
    """Forward and backward in training, and moments: every number that comes out."""
    dy = normal(x.shape, x.dtype, seed=1000)
    given, grad = on(x), on(dy)
    y, saved = bn.batch_norm_training(given, on(weight), on(bias), axis=axis, eps=eps)
    assert isinstance(y, on.kind)
    assert isinstance(saved.mean, on.kind)
    expected = reference.batch_norm_training(x, weight, bias, axis=axis, eps=eps)
    double = x.dtype == np.float64
    unit = 1e-12 if double else 1e-5
    scale = scales(x, dy, saved.count, expected.invstd, weight)
    wanted = reference.batch_norm_backward(
        dy, x, expected.moments.mean, expected.invstd, weight, axis=axis
    )
    # float32 sums are good to a few units in the last place, not to two as float64 sums are.
    limit = {"float64": 64, "float32": 8}.get(x.dtype.name, 0.6)
    assert_close(on.back(y), expected.y, limit=limit, scale=scale.y)
    m = saved.moments
    assert m.count == saved.count == expected.moments.count
    assert relative_error(m.m2, expected.moments.m2) < unit
    largest = float(np.max(np.abs(x.astype(np.float64))))
    assert_close(
        m.mean, expected.moments.mean, dtype=np.float64 if double else np.float32, scale=largest,
        limit=4,
    )  # fmt: skip
    assert relative_error(on.back(saved.invstd), expected.invstd) < unit
    collected = bn.moments(given, axis=axis)
    assert relative_error(collected.m2, expected.moments.m2) < unit
    gradients = bn.batch_norm_backward(grad, saved)
    assert_close(on.back(gradients.x), wanted.x, limit=limit, scale=scale.dx)
    kind = (np.float64 if double else np.float32) if weight is None else weight.dtype
    # What a sum of random numbers comes to; one may be small by chance.
    sums = max(scale.sums, saved.count**0.5)
    for got, right in ((gradients.weight, wanted.weight), (gradients.bias, wanted.bias)):
        assert on.back(got).dtype == kind
        assert_close(on.back(got), right, limit=64, scale=sums)
    return y, saved, gradients


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_training_and_its_gradients(regime, shape, axis, dtype):
    weight, bias = parameters(shape[axis])
    check(normal(shape, dtype, loc=0.5), weight, bias, axis=axis)


def test_each_regime_has_its_kernels(regime, monkeypatch):
    names = launched(monkeypatch)
    check(normal((4, 3, 600)))
    kinds = {
        "resident": ["forward_resident", "backward_resident"],
        "swept": ["forward_swept", "backward_swept"],
        "passes": ["apply", "backward_input"],
    }[regime]
    assert set(kinds) <= set(names)
    others = {"forward_resident", "backward_resident", "forward_swept", "backward_swept"}
    assert not (others - set(kinds)) & set(names)


def test_a_small_call_is_one_launch(monkeypatch):
    x, weight = on(normal((4, 3, 8))), on(parameters(3)[0])
    mean, var = on(np.zeros(3, np.float32)), on(np.ones(3, np.float32))
    names = launched(monkeypatch)
    _, saved = bn.batch_norm_training(x, weight, weight, running_mean=mean, running_var=var)
    assert names == ["forward_resident"]
    bn.batch_norm_backward(x, saved)
    assert names == ["forward_resident", "backward_resident"]
    bn.batch_norm_inference(x, mean, var, weight)
    assert names[2:] == ["infer"]


# Unaligned arrays are refused.
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "unaligned"])
def test_every_layout(regime, layout):
    x = normal((4, 5, 6, 4), loc=1)
    arranged = LAYOUTS[layout](x)
    y, _, _ = check(arranged, *parameters(5))
    assert tuple(y.shape) == x.shape


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "offset", "every_second_value"])
def test_out_of_another_layout_is_written_and_returned(regime, layout):
    x = normal((4, 5, 6, 4), loc=1)
    out = on(LAYOUTS[layout](np.full_like(x, np.nan)))
    y, saved = bn.batch_norm_training(on(x), out=out)
    assert y is out
    assert_close(on.back(out), reference.batch_norm_training(x).y, limit=8)
    dx = bn.batch_norm_backward(on(x), saved, out=out).x
    assert dx is out
    m = reference.moments(x)
    invstd = reference.invstd(m.m2 / m.count, 1e-5)
    wanted = reference.batch_norm_backward(x, x, m.mean, invstd)
    assert_close(on.back(dx), wanted.x, limit=8, scale=1)


def test_out_may_be_the_input_and_then_has_no_backward(regime):
    x = normal((4, 3, 40))
    given = on(x)
    y, saved = bn.batch_norm_training(given, out=given)
    assert y is given
    assert_close(on.back(y), reference.batch_norm_training(x).y, limit=8)
    with pytest.raises(bn.BnnumbaValueError, match="was written over"):
        bn.batch_norm_backward(on(x), saved)


@pytest.mark.parametrize("training", [True, False])
def test_a_pass_saved_without_its_input_takes_one(training):
    given, grad = on(normal((4, 3, 40))), on(normal((4, 3, 40), seed=1))
    layer = bn.BatchNorm(3)
    for name in ("weight", "bias", "running_mean", "running_var"):
        setattr(layer, name, on(getattr(layer, name)))
    layer.train(training)(given)
    saved, weight = layer._saved, layer.weight
    expected = [on.back(gradient) for gradient in bn.batch_norm_backward(grad, saved)]
    saved._forget_inputs()
    assert saved.x is saved._array is saved.weight is saved._scale is None
    for _ in range(2):
        other = bn.batch_norm_backward(grad, saved._with_inputs(given, weight))
        for got, right in zip(other, expected, strict=True):
            assert same_bits(on.back(got), right)


@pytest.mark.parametrize("kinds", ["ff", "dd", "fd", "df"])
def test_running_statistics_of_any_dtype_are_updated_in_place(regime, kinds):
    names = {"f": np.float32, "d": np.float64}
    x = normal((6, 4, 20), loc=3, scale=2)
    mean, var = np.full(4, 0.5, names[kinds[0]]), np.full(4, 2.0, names[kinds[1]])
    given = on(mean), on(var)
    weight = on(parameters(4)[0])
    bn.batch_norm_training(
        on(x), weight, running_mean=given[0], running_var=given[1], momentum=0.3, correction=1
    )
    wanted = reference.update_running(mean, var, reference.moments(x), momentum=0.3)
    for got, right, kind in zip(given, wanted, kinds, strict=True):
        assert_close(on.back(got), right, dtype=np.float32, limit=4)
        assert on.back(got).dtype == names[kind]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("param_dtype", [np.float32, np.float64])
def test_inference_and_its_gradients(dtype, param_dtype):
    x, dy = normal((3, 5, 11), dtype), normal((3, 5, 11), dtype, seed=7)
    weight, bias = parameters(5, np.float32)
    mean, var = normal(5, param_dtype, seed=3), np.abs(normal(5, param_dtype, seed=4)) + 0.5
    layer_x, arrays = on(x), [on(a) for a in (mean, var, weight, bias)]
    expected = reference.batch_norm_inference(x, mean, var, weight, bias)
    limit = {"float64": 64, "float32": 8}.get(dtype.name, 0.6)
    assert_close(on.back(bn.batch_norm_inference(layer_x, *arrays)), expected, limit=limit)
    y, saved = bn.functional.evaluate(layer_x, *arrays, 1e-5, 1, None, saves=True)
    assert_close(on.back(y), expected, limit=limit)
    got = bn.batch_norm_backward(on(dy), saved)
    invstd = reference.invstd(var, 1e-5)
    wanted = reference.batch_norm_backward(dy, x, mean, invstd, weight, training=False)
    assert_close(on.back(got.x), wanted.x, limit=limit)
    for result, right in ((got.weight, wanted.weight), (got.bias, wanted.bias)):
        assert on.back(result).dtype == weight.dtype
        assert_close(on.back(result), right, limit=64)


def test_parameters_of_two_dtypes(regime):
    weight, bias = parameters(4)
    x = normal((5, 4, 30))
    y, _ = bn.batch_norm_training(on(x), on(weight), on(bias.astype(np.float64)))
    assert_close(on.back(y), reference.batch_norm_training(x, weight, bias).y, limit=8)


def _hard(case):
    """float32 data of shape (16, 3, 64) whose variance is easily lost."""
    x = normal((16, 3, 64), np.float64)
    if case.startswith("offset"):
        x += float(case.split()[1])
    elif case == "float32 steps of 8":
        x = x * 100 + 1e8
    elif case == "tiny":
        x = x * 1e-15 + 1e-12
    elif case == "an outlier first":
        x[0, :, 0] = 1e4
    elif case == "an outlier in each row":
        x[:, :, 0] = 1e4
    elif case == "a trend":
        x += np.linspace(0, 1e4, 16)[:, None, None]
    elif case == "two levels":
        x[:, :, ::2] += 1e5
    return x.astype(np.float32)


HARD = [
    "offset 1e4", "offset 1e6", "float32 steps of 8", "tiny", "an outlier first",
    "an outlier in each row", "a trend", "two levels",
]  # fmt: skip


@pytest.mark.parametrize("columns", [False, True], ids=["ncs", "rc"])
@pytest.mark.parametrize("case", HARD)
def test_the_variance_of_hard_data_is_right_to_1e_5(regime, case, columns):
    x = _hard(case)
    axis = 1
    if columns:
        x = np.ascontiguousarray(x.transpose(0, 2, 1)).reshape(-1, x.shape[1])
    expected = reference.moments(x, axis=axis)
    y, saved = bn.batch_norm_training(on(x), axis=axis, eps=0)
    for m in (saved.moments, bn.moments(on(x), axis=axis)):
        assert relative_error(m.m2, expected.m2) < 1e-5
        # Of the mean, two floats hold more digits than one.
        spread = np.sqrt(expected.m2 / expected.count)
        assert np.max(np.abs(m.mean - expected.mean) / spread) < 1e-5
    assert_close(on.back(y), reference.batch_norm_training(x, axis=axis, eps=0).y, limit=64)


@pytest.mark.parametrize("value", [0.0, 3.3, -1e6, 1e-30, 1e20])
def test_a_constant_channel_has_no_variance_and_becomes_its_bias(regime, value):
    x = np.full((7, 3, 33), value, np.float32)
    bias = np.array([1.0, 2.0, 3.0], np.float32)
    y, saved = bn.batch_norm_training(on(x), None, on(bias), eps=0)
    assert not saved.moments.m2.any()
    assert same_bits(saved.moments.mean, np.full(3, np.float32(value), np.float64))
    assert same_bits(on.back(y), np.broadcast_to(bias[:, None], x.shape).copy())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("axis", [1, -1])
def test_what_is_not_finite_spoils_its_channel_alone(regime, value, axis):
    x = normal((6, 8, 8))
    clean, _ = bn.batch_norm_training(on(x), axis=axis)
    index = (2, 3, 1) if axis == 1 else (2, 1, 3)
    x[index] = value
    y, saved = bn.batch_norm_training(on(x), axis=axis)
    dx = bn.batch_norm_backward(on(np.ones_like(x)), saved).x
    channel = [slice(None)] * 3
    channel[axis] = 3
    for got in (y, dx):
        spoiled = np.isnan(np.moveaxis(on.back(got), axis, 0)).all(axis=(1, 2))
        assert spoiled.tolist() == [c == 3 for c in range(8)]
    for numbers in (saved.moments.mean, saved.moments.m2, on.back(saved.invstd)):
        assert np.isnan(numbers).tolist() == [c == 3 for c in range(8)]
    rest = np.delete(on.back(y), 3, axis)
    assert same_bits(rest, np.delete(on.back(clean), 3, axis))


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (2, 3, 0)])
def test_empty_input(shape):
    mean, var = on(np.zeros(shape[1], np.float32)), on(np.ones(shape[1], np.float32))
    y, saved = bn.batch_norm_training(on(np.zeros(shape, np.float32)), running_mean=mean)
    assert tuple(y.shape) == shape
    assert saved.count == 0
    got = bn.batch_norm_backward(on(np.zeros(shape, np.float32)), saved)
    assert not on.back(got.weight).any()
    assert not on.back(mean).any()
    y = bn.batch_norm_inference(on(np.zeros(shape, np.float32)), mean, var)
    assert tuple(y.shape) == shape
    assert bn.moments(on(np.zeros(shape, np.float32))).count == 0


def test_two_runs_have_the_same_bits(regime):
    x, dy = on(normal((8, 5, 70))), on(normal((8, 5, 70), seed=2))
    runs = []
    for _ in range(2):
        y, saved = bn.batch_norm_training(x)
        runs.append([y, saved.mean, saved.invstd, *bn.batch_norm_backward(dy, saved)])
    for a, b in zip(*runs, strict=True):
        assert same_bits(on.back(a), on.back(b))


def test_fold_batch_norm():
    kernel, start = normal((6, 4, 3, 3)), normal(6, seed=5)
    mean, var = normal(6, seed=6), np.abs(normal(6, seed=7)) + 0.1
    weight, bias = parameters(6)
    for conv_bias in (start, None):
        given = (kernel, conv_bias, mean, var, weight, bias)
        wanted = bn.fold_batch_norm(*given)
        got = bn.fold_batch_norm(*(on(a) for a in given))
        for a, b in zip(got, wanted, strict=True):
            assert_close(on.back(a), b.astype(np.float64), limit=8)


def test_update_running_and_running_moments():
    x = normal((5, 3, 8), loc=2)
    running = bn.RunningMoments(3)
    running.update(on(x[:2]))
    running.update(on(x[2:]))
    expected = reference.moments(x)
    assert relative_error(running.var(), expected.m2 / expected.count) < 1e-5
    mean, var = np.zeros(3, np.float32), np.ones(3, np.float64)
    given = on(mean), on(var)
    bn.update_running(*given, running.moments, momentum=0.25)
    wanted = reference.update_running(mean, var, expected, momentum=0.25)
    for got, right in zip(given, wanted, strict=True):
        assert_close(on.back(got), right, dtype=np.float32, limit=8)


def test_batch_norm_with_the_signature_of_pytorch():
    x = normal((5, 3, 8))
    mean, var = on(np.zeros(3, np.float32)), on(np.ones(3, np.float32))
    y = bn.batch_norm(on(x), mean, var, training=True)
    assert_close(on.back(y), reference.batch_norm_training(x).y, limit=8)
    y = bn.batch_norm(on(x), mean, var)
    right = reference.batch_norm_inference(x, on.back(mean), on.back(var))
    assert_close(on.back(y), right, limit=8)


def test_bad_arguments_name_themselves_and_leave_everything_alone():
    x = on(normal((4, 3, 5)))
    mean = on(np.zeros(3, np.float32))
    host = np.ones(3, np.float32)
    with pytest.raises(bn.BnnumbaTypeError, match=r"weight: .*GPU.*numpy"):
        bn.batch_norm_training(x, host, running_mean=mean)
    with pytest.raises(bn.BnnumbaError, match="weight"):
        bn.batch_norm_training(normal((4, 3, 5)), on(host))
    with pytest.raises(bn.BnnumbaValueError, match=r"weight: expected shape \(3,\)"):
        bn.batch_norm_training(x, on(np.ones(4, np.float32)), running_mean=mean)
    with pytest.raises(bn.BnnumbaValueError, match="eps"):
        bn.batch_norm_training(x, eps=-1, running_mean=mean)
    with pytest.raises(bn.BnnumbaValueError, match="out: expected shape"):
        bn.batch_norm_training(x, out=on(normal((4, 3, 6))), running_mean=mean)
    with pytest.raises(bn.BnnumbaTypeError, match="out: expected dtype"):
        bn.batch_norm_training(x, out=on(normal((4, 3, 5), np.float64)), running_mean=mean)
    _, saved = bn.batch_norm_training(x)
    with pytest.raises(bn.BnnumbaValueError, match="grad_output: expected shape"):
        bn.batch_norm_backward(on(normal((4, 3, 6))), saved)
    assert not on.back(mean).any()


@pytest.mark.skipif(SIMULATED, reason="too large to simulate")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "axis"), LARGE, ids=str)
def test_large_arrays(shape, axis, dtype):
    check(normal(shape, dtype, loc=0.5), *parameters(shape[axis]), axis=axis)
