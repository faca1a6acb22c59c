"""What only a GPU can show: more than 2^31 elements, CUDA graphs, streams; on PyTorch's tensors.

Not collected by itself: `make gpu-check` runs it. On the simulator, with small arrays, it shows
that the cases themselves work; those of streams and graphs need a GPU.
"""

import math
import os

import numpy as np
import pytest
import torch
from device_arrays import adapter

import bnnumba as bn
from bnnumba.adapters.torch import convert_batch_norm

on = adapter()
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
DEVICE = "cpu" if SIMULATED else "cuda"
MANY = 2**9 if SIMULATED else 2**31
EPS = 1e-5
needs_gpu = pytest.mark.skipif(SIMULATED, reason="the simulator has neither streams nor graphs")

# Each has more than MANY elements: in a row, in a channel, over rows, over channels.
HUGE = [
    ((1, 1, MANY + 8), 1), ((2, 3, MANY // 4 + 9), 1), ((MANY // 512 + 1, 8, 64), 1),
    ((MANY // 30, 33), 1), ((MANY // 64 + 5, 64), 1),
]  # fmt: skip


def _normal(shape, seed):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    made = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE)
    return made.normal_(3.0, 1.0, generator=generator)


def _parts(*arrays):
    """Pieces of arrays, along their longest axis, small enough to be converted to float64."""
    shape = arrays[0].shape
    axis = max((a for a in range(len(shape)) if a != 1), key=lambda a: shape[a])
    step = max(1, 2**26 * shape[axis] // math.prod(shape))
    return zip(*(array.split(step, axis) for array in arrays), strict=True)


def _sum(function, *arrays):
    """The sum over each channel of a function of float64 pieces."""
    others = [a for a in range(arrays[0].ndim) if a != 1]
    return sum(function(*(p.double() for p in piece)).sum(others) for piece in _parts(*arrays))


@pytest.mark.parametrize(("shape", "axis"), HUGE, ids=str)
def test_more_elements_than_32_bits_count(shape, axis):
    if DEVICE == "cuda" and torch.cuda.mem_get_info()[0] < 8 * math.prod(shape) + (4 << 30):
        pytest.skip("the GPU has not the memory")
    x, dy = _normal(shape, 1), _normal(shape, 2)
    assert x.numel() > MANY
    wide = [1, -1] + [1] * (x.ndim - 2)
    count = x.numel() // shape[1]
    y, saved = bn.batch_norm_training(x, axis=axis, eps=EPS)
    mean = _sum(lambda a: a, x) / count
    m2 = _sum(lambda a: (a - mean.view(wide)) ** 2, x)
    invstd = (m2 / count + EPS).rsqrt()
    m = saved.moments
    np.testing.assert_allclose(m.mean, mean.cpu(), rtol=1e-6)
    np.testing.assert_allclose(m.m2, m2.cpu(), rtol=1e-5)
    # A bfloat16 result may be half a unit off, and a little where the float32 was on the edge.
    unit = 0.51 * 2**-7
    for a, b in _parts(x, y):
        right = (a.double() - mean.view(wide)) * invstd.view(wide)
        assert (b.double() - right).abs().max() <= unit * right.abs().max()
    dx, dweight, dbias = bn.batch_norm_backward(dy, saved, out=y)
    sum_dy = _sum(lambda g: g, dy)
    product = _sum(lambda a, g: (a - mean.view(wide)) * g, x, dy)
    np.testing.assert_allclose(dbias.cpu(), sum_dy.cpu(), rtol=1e-5)
    np.testing.assert_allclose(
        dweight.cpu(), (product * invstd).cpu(), rtol=1e-4, atol=1e-5 * count**0.5
    )
    slope = (product * invstd**2 / count).view(wide)
    for a, g, d in _parts(x, dy, dx):
        xmu = a.double() - mean.view(wide)
        right = (g.double() - (sum_dy / count).view(wide) - xmu * slope) * invstd.view(wide)
        assert (d.double() - right).abs().max() <= unit * right.abs().max()


SHAPES = [(8, 4, 64), (128, 64, 56, 56), (1, 1, 5_000_001)]  # resident, swept, plain passes


@needs_gpu
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_captured_graph_replays_forward_and_backward(shape):
    x, dy = torch.randn(shape, device=DEVICE), torch.randn(shape, device=DEVICE)
    weight = torch.rand(shape[1], device=DEVICE)
    mean, var = torch.zeros(shape[1], device=DEVICE), torch.ones(shape[1], device=DEVICE)

    def step():
        y, saved = bn.batch_norm_training(x, weight, running_mean=mean, running_var=var)
        return y, *bn.batch_norm_backward(dy, saved)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # compiles and loads
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in range(3):
        torch.manual_seed(seed)
        x.normal_(seed, 2)
        dy.normal_()
        mean.zero_()
        graph.replay()
        moved = mean.clone()
        mean.zero_()
        for got, right in zip(captured, step(), strict=True):
            assert torch.equal(got, right)
        assert torch.equal(moved, mean)


@needs_gpu
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_work_follows_what_the_stream_has_to_do_and_nobody_waits_for_it(shape):
    source, x = torch.randn(shape, device=DEVICE), torch.zeros(shape, device=DEVICE)
    expected, saved = bn.batch_norm_training(source)  # compiles and loads
    wanted = bn.batch_norm_backward(source, saved).x
    torch.cuda.synchronize()
    stream, asleep = torch.cuda.Stream(), torch.cuda.Event()
    with torch.cuda.stream(stream):
        # Makes the memory of this stream, which may wait, as much as is held at a time below.
        y, saved = bn.batch_norm_training(x)
        dx = bn.batch_norm_backward(x, saved).x
        del y, saved, dx
        stream.synchronize()
        torch.cuda._sleep(2_000_000_000)  # about a second
        asleep.record()
        x.copy_(source)
        y, saved = bn.batch_norm_training(x)
        dx = bn.batch_norm_backward(x, saved).x
        assert not asleep.query()
    stream.synchronize()
    assert torch.equal(y, expected)
    assert torch.equal(dx, wanted)


@pytest.mark.parametrize("training", [True, False])
def test_autograd_goes_through_the_kernels(training):
    results = []
    for convert in (lambda model: model, convert_batch_norm):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(2, 6, 3), torch.nn.BatchNorm2d(6))
        model = convert(model.double().to(DEVICE)).train(training)
        x = torch.randn(5, 2, 7, 8, device=DEVICE, dtype=torch.float64, requires_grad=True)
        y = model(x)
        y.pow(3).sum().backward()
        results.append([y.detach(), x.grad, *[p.grad for p in model.parameters()]])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
