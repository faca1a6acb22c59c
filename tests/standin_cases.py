"""How GPU arrays of any library are taken: dispatch, streams and errors, on Numba's simulator.

Not collected by itself: `test_gpu_dispatch.py` runs it in a process with the simulator.
"""

import copy
import gc
import inspect
import weakref

import numpy as np
import pytest
from device_standins import Capsule, Named, Nameless, StandIn
from numba import cuda
from support import BFLOAT16, assert_close, normal, parameters

import bnnumba as bn
from bnnumba import on_cpu, on_device, reference
from bnnumba.gpu import driver

Numba = type(cuda.to_device(np.zeros(1)))


def host(array):
    return array._ary if isinstance(array, Numba) else array.host


@pytest.fixture
def launches(monkeypatch):
    """The stream of every launch from now on."""
    found = []
    launch = driver._Simulated.launch

    def noting(self, kernel, stream, *arguments):
        found.append(stream)
        return launch(self, kernel, stream, *arguments)

    monkeypatch.setattr(driver._Simulated, "launch", noting)
    return found


@pytest.mark.parametrize(
    ("given", "kind"),
    [(StandIn, StandIn), (Nameless, Numba), (Capsule, Numba), (Named, Named)],
)
def test_results_are_made_by_the_namespace_of_the_input_or_else_by_numba(given, kind):
    x, dy, (weight, bias) = normal((4, 6, 6)), normal((4, 6, 6), seed=1), parameters(6)
    y, saved = bn.batch_norm_training(given(x), given(weight), given(bias))
    dx, dweight, dbias = bn.batch_norm_backward(given(dy), saved)
    expected, kept = bn.batch_norm_training(x, weight, bias)
    wanted = expected, *bn.batch_norm_backward(dy, kept), kept.mean, kept.invstd
    for got, right in zip((y, dx, dweight, dbias, saved.mean, saved.invstd), wanted, strict=True):
        assert type(got) is kind
        assert_close(host(got), right, limit=16)


def test_data_without_a_name_in_the_interface_is_bfloat16():
    x = normal((4, 6, 6), BFLOAT16)
    assert StandIn(x).__cuda_array_interface__["typestr"] == "<V2"
    assert_close(bn.moments(StandIn(x)).mean, reference.moments(x).mean, dtype=np.float32)


@pytest.mark.parametrize(("stream", "handle"), [(None, 0), (1, 1), (2, 2), (0x7F00, 0x7F00)])
def test_work_goes_to_the_stream_of_the_array(launches, stream, handle):
    x = StandIn(normal((4, 6, 6)))
    x.stream = stream
    _, saved = bn.batch_norm_training(x)
    bn.batch_norm_backward(x, saved)
    assert launches == [handle, handle]


def test_the_stream_of_x_waits_for_those_of_the_other_arrays_and_they_for_it(monkeypatch):
    followed = []
    monkeypatch.setattr(
        driver._Simulated, "follow", lambda self, stream, other: followed.append((stream, other))
    )
    x, dy, weight, out = (StandIn(normal((4, 6, 6))) for _ in range(4))
    weight = StandIn(np.ones(6, np.float32))
    x.stream, dy.stream, weight.stream, out.stream = 7, 8, 7, None
    _, saved = bn.batch_norm_training(x, weight, out=out)
    assert followed == []
    bn.batch_norm_backward(dy, saved)
    assert followed == [(7, 8), (8, 7)]  # which must not write over dy before it was read
    followed.clear()
    out.stream = 9
    bn.batch_norm_inference(x, weight, weight, out=out)
    assert followed == [(7, 9), (9, 7)]


def test_an_array_that_is_not_aligned_is_an_error():
    room = np.zeros(4 * 72 + 1, np.uint8)
    x = StandIn(room[1:].view(np.float32).reshape(4, 6, 3))
    with pytest.raises(bn.BnnumbaValueError, match="x: expected an array that is aligned"):
        bn.moments(x)


def test_a_capsule_is_asked_for_on_the_stream_that_is_worked_on(launches):
    x = Capsule(normal((4, 6, 6)))
    bn.batch_norm_training(x)
    assert set(x.streams) == {1}  # the legacy default stream, as DLPack calls it
    assert launches == [0]  # and as CUDA does


def test_nothing_waits_for_the_device_but_what_returns_numbers(monkeypatch):
    def waits(*arguments):
        raise AssertionError

    monkeypatch.setattr(driver._Simulated, "read", waits)
    x, mean, var = StandIn(normal((4, 3, 8))), StandIn(np.zeros(3)), StandIn(np.ones(3))
    _, saved = bn.batch_norm_training(x, running_mean=mean, running_var=var)
    bn.batch_norm_backward(x, saved)
    bn.batch_norm_inference(x, mean, var)
    assert isinstance(saved.mean, StandIn)
    for numbers in (lambda: saved.moments, lambda: bn.moments(x)):
        with pytest.raises(AssertionError):
            numbers()


@pytest.mark.parametrize("argument", ["weight", "bias", "running_mean", "running_var", "out"])
def test_an_argument_on_the_cpu_with_x_on_a_gpu_is_an_error_that_names_both(argument):
    x = StandIn(normal((4, 3, 8)))
    other = normal((4, 3, 8)) if argument == "out" else np.ones(3, np.float32)
    before = other.copy()
    message = rf"{argument}: .* on the GPU, as the first array is, got numpy.ndarray on the CPU"
    with pytest.raises(bn.BnnumbaTypeError, match=message):
        bn.batch_norm_training(x, **{argument: other})
    np.testing.assert_array_equal(other, before)


@pytest.mark.parametrize("argument", ["weight", "bias", "running_mean", "running_var", "out"])
def test_arguments_on_two_gpus_are_an_error_that_names_both(monkeypatch, argument):
    x, other = normal((4, 3, 8)), np.ones((4, 3, 8) if argument == "out" else 3, np.float32)
    monkeypatch.setattr(driver, "device_of", lambda address: int(address == other.ctypes.data))
    message = rf"{argument}: expected an array on GPU 0, as x, got one on GPU 1"
    with pytest.raises(bn.BnnumbaTypeError, match=message):
        bn.batch_norm_training(StandIn(x), **{argument: StandIn(other)})
    assert (other == 1).all()
    _, saved = bn.batch_norm_training(StandIn(x))
    dy = np.ones_like(x)
    monkeypatch.setattr(driver, "device_of", lambda address: int(address == dy.ctypes.data))
    with pytest.raises(bn.BnnumbaTypeError, match=r"grad_output: .*GPU 0.*GPU 1"):
        bn.batch_norm_backward(StandIn(dy), saved)


def test_what_cannot_be_written_to_is_an_error():
    x, mean = StandIn(normal((4, 3, 8))), StandIn(np.zeros(3), readonly=True)
    with pytest.raises(bn.BnnumbaValueError, match=r"running_mean: .*read-only"):
        bn.batch_norm_training(x, running_mean=mean)
    with pytest.raises(bn.BnnumbaValueError, match=r"out: .*read-only"):
        bn.batch_norm_training(x, out=StandIn(normal((4, 3, 8)), readonly=True))


def test_an_out_that_overlaps_x_is_an_error():
    memory = normal((5, 3, 8))
    with pytest.raises(bn.BnnumbaValueError, match="out: must not overlap x"):
        bn.batch_norm_training(StandIn(memory[:4]), out=StandIn(memory[1:]))


def test_running_statistics_that_overlap_are_an_error():
    x, both = StandIn(normal((4, 3, 8))), np.ones(4)
    mean, var = StandIn(both[:3]), StandIn(both[1:])
    with pytest.raises(bn.BnnumbaValueError, match="running_var: must not overlap running_mean"):
        bn.batch_norm_training(x, running_mean=mean, running_var=var)
    with pytest.raises(bn.BnnumbaValueError, match="running_var: must not overlap running_mean"):
        bn.update_running(mean, var, bn.Moments(2, np.zeros(3), np.zeros(3)))
    assert (both == 1).all()


def test_both_backends_have_the_same_functions():
    for name in on_cpu.__all__:
        here, there = (inspect.signature(getattr(m, name)) for m in (on_cpu, on_device))
        assert list(here.parameters) == list(there.parameters), name


@pytest.mark.parametrize("array", [StandIn(np.ones((2, 3), int)), StandIn(np.ones(3, np.float32))])
def test_data_of_another_dtype_or_rank_is_an_error(array):
    with pytest.raises(bn.BnnumbaError, match=r"x: expected (dtype|at least 2 dimensions)"):
        bn.moments(array)


def test_a_capsule_of_another_dtype_is_an_error():
    with pytest.raises(bn.BnnumbaTypeError, match=r"x: expected dtype .*type code 0 of 64 bits"):
        bn.moments(Capsule(np.ones((2, 3), int), code=0))


def test_a_capsule_of_another_kind_of_device_is_an_error():
    with pytest.raises(bn.BackendError, match=r"x: expected an array on the CPU.*type 10"):
        bn.moments(Capsule(normal((2, 3)), kind=10))


def test_a_parameter_of_another_dtype_is_named():
    with pytest.raises(bn.BnnumbaTypeError, match=r"weight: expected dtype .*type code 0 of 32"):
        bn.batch_norm_training(Capsule(normal((4, 3))), Capsule(np.ones(3, np.int32), code=0))


@pytest.mark.parametrize("step", [1, 2])
def test_strides_of_any_number_of_dimensions(step):
    shape, every = (2,) * 9, (slice(None, None, step),) * 9
    x, dy, out = (np.zeros([2 * step] * 9, np.float32)[every] for _ in range(3))
    x[...], dy[...] = normal(shape), normal(shape, seed=1)
    mean, var = StandIn(np.zeros(2)), StandIn(np.ones(2))
    _, saved = bn.batch_norm_training(
        StandIn(x), running_mean=mean, running_var=var, out=StandIn(out)
    )
    expected, kept = bn.batch_norm_training(x)
    assert_close(out, expected, limit=16)
    dx = bn.batch_norm_backward(StandIn(dy), saved, out=StandIn(out)).x
    assert_close(dx.host, bn.batch_norm_backward(dy, kept).x, limit=16)


def test_the_memory_of_both_passes_is_kept_for_a_graph_of_them():
    _, saved = bn.batch_norm_training(cuda.to_device(normal((1, 2, 9000))))
    work = weakref.ref(saved._work.owner)
    bn.batch_norm_backward(cuda.to_device(normal((1, 2, 9000))), saved)
    gc.collect()
    assert work() is not None


def test_what_a_forward_pass_saved_on_a_gpu_is_not_copied():
    _, saved = bn.batch_norm_training(StandIn(normal((4, 6, 6))))
    with pytest.raises(bn.BnnumbaTypeError, match=r"saved: .* on a GPU"):
        copy.deepcopy(saved)


def test_running_statistics_over_the_weight_are_an_error():
    memory = np.ones(3, np.float32)
    with pytest.raises(bn.BnnumbaValueError, match="running_var: must not overlap weight"):
        bn.batch_norm_training(
            StandIn(normal((4, 3, 8))), StandIn(memory), running_var=StandIn(memory)
        )
    assert (memory == 1).all()


def test_a_layer_whose_arrays_are_on_a_gpu_trains_and_counts():
    x, dy, layer = normal((4, 3, 8), loc=2), normal((4, 3, 8), seed=1), bn.BatchNorm(3)
    for name in ("weight", "bias", "running_mean", "running_var"):
        setattr(layer, name, StandIn(getattr(layer, name)))
    y = layer(StandIn(x))
    dx = layer.backward(StandIn(dy))
    expected = bn.BatchNorm(3)
    for got, right in ((y, expected(x)), (dx, expected.backward(dy))):
        assert_close(host(got), right, limit=16)
    assert_close(host(layer.running_mean), expected.running_mean)
    assert_close(host(layer.weight_grad), expected.weight_grad, limit=16)
    assert layer.num_batches_tracked == 1
    assert_close(host(layer.eval()(StandIn(x))), expected.eval()(x), limit=16)
