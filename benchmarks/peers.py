"""Everyone who is timed: bnnumba, NumPy, PyTorch, oneDNN, scikit-learn, and plain memory traffic.

An entrant is a call and a function that turns what the call returned into results to compare with
the oracle. Every ``out=`` entrant writes to one output whose pages exist already; the others make
a new output in each call. Whoever is not installed, or cannot do a case, raises `Unavailable`.
"""

import functools
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import THREADS, capi, ceilings, onednn
from .cases import EPS, MOMENTUM, STEP, TRACKED


class Unavailable(Exception):
    """This entrant does not run here, and why."""


@dataclass
class Entrant:
    """A call to time, and how to read its results."""

    call: Callable[[], object]
    results: Callable[[object], dict]
    dtype: str = "float32"
    own: bool = False  # bnnumba itself, held to a stricter tolerance
    right: Callable[[], dict] | None = None  # where not the operation's expected results
    detail: str = ""


def load(name):
    """Import a module that may be missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(str(error)) from error


def load_torch():
    torch = load("torch")
    torch.set_num_threads(THREADS)
    return torch


def bnnumba(case, data, dtype="float32", reuse=True):
    bn = load("bnnumba")
    data = data.typed(dtype)
    parameters = data.weight, data.bias
    out = data.out if reuse and case.op != "moments" else None

    def moments(m):
        return {"mean": m.mean, "var": m.var()}

    def trained(returned):
        y, saved = returned
        return {"y": data.view(y), **moments(saved.moments)}

    def gradients(returned):
        dx, dweight, dbias = returned
        return {"dx": data.view(dx), "dweight": dweight, "dbias": dbias}

    def entrant(function, *args, results, **options):
        return Entrant(functools.partial(function, *args, **options), results, dtype, own=True)

    if case.op == "moments":
        return entrant(bn.moments, data.x, axis=data.axis, results=moments)
    if case.op == "inference":
        args = data.x, data.mean, data.var, *parameters
        return entrant(
            bn.batch_norm_inference, *args, eps=EPS, axis=data.axis, out=out,
            results=lambda y: {"y": data.view(y)},
        )  # fmt: skip
    train = functools.partial(bn.batch_norm_training, data.x, *parameters, eps=EPS, axis=data.axis)
    if case.op == "training":
        return entrant(train, out=out, results=trained)
    _, saved = train()
    return entrant(bn.batch_norm_backward, data.dy, saved, out=out, results=gradients)


def bnnumba_tracked(case, data, library="numpy"):
    """For arrays, or with ``library="torch"`` for tensors that share their memory."""
    bn, as_array = load("bnnumba"), load(library).asarray
    mean, var = data.mean.copy(), data.var.copy()
    x, *parameters = map(as_array, (data.x, mean, var, data.weight, data.bias))
    call = functools.partial(bn.batch_norm, x, *parameters, True, MOMENTUM, EPS)
    return Entrant(call, _tracked_results(data, mean, var), own=True)


def bnnumba_layer(case, data):
    layer = load("bnnumba").BatchNorm(case.shape[1], EPS, MOMENTUM)
    layer.weight, layer.bias = data.weight, data.bias
    layer.running_mean[:], layer.running_var[:] = data.mean, data.var
    results = _tracked_results(data, layer.running_mean, layer.running_var)
    return Entrant(functools.partial(layer, data.x), results, own=True)


def pytorch_tracked(case, data):
    torch = load_torch()
    x, weight, bias = (torch.from_numpy(a) for a in (data.x, data.weight, data.bias))
    mean, var = data.mean.copy(), data.var.copy()
    running = torch.from_numpy(mean), torch.from_numpy(var)
    call = functools.partial(
        torch.nn.functional.batch_norm, x, *running, weight, bias, True, MOMENTUM, EPS
    )
    return Entrant(call, _tracked_results(data, mean, var))


def pytorch_layer(case, data):
    layer = _module("torch.nn", case, data).requires_grad_(False)
    mean, var = layer.running_mean.numpy(), layer.running_var.numpy()
    call = functools.partial(layer, _torch_tensor(case, data.x))
    return Entrant(call, _tracked_results(data, mean, var))


def module_step(case, data, namespace):
    """Forward and backward of a module, as a training loop calls them."""
    layer = _module(namespace, case, data)
    x, dy = (_torch_tensor(case, a) for a in (data.x, data.dy))
    mean, var = layer.running_mean.numpy(), layer.running_var.numpy()

    def call():
        leaf = x.detach().requires_grad_()
        layer.zero_grad()
        y = layer(leaf)
        y.backward(dy)
        return y.detach(), leaf.grad

    def results(returned):
        y, dx = (data.view(_numpy_of(case, t)) for t in returned)
        weight, bias = (p.grad.numpy() for p in layer.parameters())
        moved = {"running_mean": mean.copy(), "running_var": var.copy()}
        return {"y": y, "dx": dx, "dweight": weight, "dbias": bias, **moved}

    return Entrant(call, results, own=namespace != "torch.nn")


def keras_step(case, data, namespace):
    """Forward and backward of a layer of Keras on PyTorch, whose running variance is biased."""
    torch = load_torch()
    os.environ.setdefault("KERAS_BACKEND", "torch")
    if load("keras").config.backend() != "torch":
        raise Unavailable("Keras has another backend than PyTorch")
    layer = load(namespace).BatchNormalization(data.axis, 1 - MOMENTUM, EPS)
    layer.build(data.x.shape)
    layer.set_weights([data.weight, data.bias, data.mean, data.var])
    x, dy = torch.from_numpy(data.x), torch.from_numpy(data.dy)

    def call():
        leaf = x.detach().requires_grad_()
        layer.zero_grad()
        y = layer(leaf, training=True)
        y.backward(dy)
        return y.detach(), leaf.grad

    def results(returned):
        y, dx = (data.view(t.numpy()) for t in returned)
        weight, bias = (v.value.grad.numpy() for v in layer.trainable_variables)
        moved = layer.moving_mean.value.numpy().copy()
        return {"y": y, "dx": dx, "dweight": weight, "dbias": bias, "running_mean": moved}

    return Entrant(call, results, own=namespace != "keras.layers")


def _module(namespace, case, data):
    load_torch()
    layer = load(namespace).BatchNorm2d(case.shape[1], EPS, MOMENTUM)
    values = {
        "weight": data.weight, "bias": data.bias, "running_mean": data.mean,
        "running_var": data.var,
    }  # fmt: skip
    layer.load_state_dict({k: load("torch").tensor(v) for k, v in values.items()}, strict=False)
    return layer


def _torch_tensor(case, array):
    held = load("torch").from_numpy(array)
    # N, H, W, C seen as N, C, H, W has PyTorch's channels_last strides.
    return held.movedim(-1, 1) if case.layout == "rc" else held


def _numpy_of(case, tensor):
    return (tensor.movedim(1, -1) if case.layout == "rc" else tensor).numpy()


def _tracked_results(data, mean, var):
    """What the first call returns and leaves; the race looks before there is a second one."""
    return lambda y: {
        "y": data.view(np.asarray(y)), "running_mean": mean.copy(), "running_var": var.copy()
    }  # fmt: skip


def c_library(case, data):
    """The same kernels from C, which writes to an output that exists already."""
    try:
        call, found = capi.prepare(case, data, EPS)
    except ImportError as error:
        raise Unavailable(str(error)) from error

    def results(_):
        named = {k: data.view(v) if k in ("y", "dx") else v for k, v in found.items()}
        if "m2" in named:
            named["var"] = named.pop("m2") * case.shape[1] / data.x.size
        return named

    return Entrant(call, results, own=True)


def bnnumba_streaming(case, data):
    bn = load("bnnumba")

    def call():
        running = bn.RunningMoments(case.shape[1])
        running.update(data.x, axis=data.axis)
        return running

    return Entrant(call, lambda r: {"mean": r.mean, "var": r.var()}, own=True)


def numpy(case, data):
    """What a careful user writes with NumPy alone."""
    x, dy, axes = data.x, data.dy, data.axes
    weight, bias = data.per_channel(data.weight), data.per_channel(data.bias)
    given_mean, given_var = data.per_channel(data.mean), data.per_channel(data.var)
    count = x.size // case.shape[1]
    statistics = {"axis": axes, "keepdims": True}

    def moments():
        mean = x.mean(**statistics)
        return mean, x.var(mean=mean, **statistics)

    def normalize(mean, var):
        scale = weight / np.sqrt(var + EPS)
        return x * scale + (bias - mean * scale)

    def training():
        mean, var = moments()
        return normalize(mean, var), mean, var

    mean, var = moments() if case.op == "backward" else (given_mean, given_var)
    invstd = 1 / np.sqrt(var + EPS)

    def backward():
        xmu = x - mean
        sum_dy = dy.sum(**statistics)
        sum_dy_xmu = (dy * xmu).sum(**statistics)
        slope = invstd * invstd * sum_dy_xmu / count
        dx = (dy - sum_dy / count - xmu * slope) * (invstd * weight)
        return dx, sum_dy_xmu * invstd, sum_dy

    def named(*names):
        whole = {"y", "dx"}
        return lambda values: {
            name: data.view(value) if name in whole else value.reshape(-1)
            for name, value in zip(names, values, strict=True)
        }

    return {
        "training": Entrant(training, named("y", "mean", "var")),
        "backward": Entrant(backward, named("dx", "dweight", "dbias")),
        "inference": Entrant(lambda: (normalize(given_mean, given_var),), named("y")),
        "moments": Entrant(moments, named("mean", "var")),
    }[case.op]


def pytorch(case, data, reuse=False):
    """Contiguous tensors for ``ncs``, channels_last (and 2-D) for ``rc``; no autograd."""
    torch = load_torch()

    tensor = functools.partial(_torch_tensor, case)

    def whole(t):
        return data.view(_numpy_of(case, t))

    def reads(*names):
        def results(values):
            named = dict(zip(names, values, strict=True))
            return {k: whole(v) if k in ("y", "dx") else v.numpy() for k, v in named.items()}

        return results

    def var(values):
        y, mean, invstd = values
        return {**reads("y", "mean")((y, mean)), "var": (invstd.double() ** -2 - EPS).numpy()}

    x, dy = tensor(data.x), tensor(data.dy)
    weight, bias, mean, variance = map(
        torch.from_numpy, (data.weight, data.bias, data.mean, data.var)
    )
    if case.op == "moments":
        axes = [i for i in range(x.ndim) if i != 1]
        call = functools.partial(torch.var_mean, x, axes, correction=0)
        return Entrant(call, reads("var", "mean"))

    training = case.op != "inference"
    statistics = (None, None) if training else (mean, variance)
    if case.op == "backward":
        saved = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, EPS)[1:]
        backward = torch.ops.aten.native_batch_norm_backward
        args = dy, x, weight, None, None, *saved, True, EPS, (True, True, True)
        if reuse:
            like = torch.empty_like(saved[0]), torch.empty_like(saved[0])
            outs = dict(zip(("out0", "out1", "out2"), (tensor(data.out), *like), strict=True))
            call = functools.partial(backward.out, *args, **outs)
        else:
            call = functools.partial(backward.default, *args)
        return Entrant(call, reads("dx", "dweight", "dbias"))

    if reuse:
        out = tensor(data.out), *(torch.empty(case.shape[1] if training else 0) for _ in "mv")
        args = x, weight, bias, *statistics, training, 0.0, EPS
        call = functools.partial(torch.native_batch_norm, *args, out=out)
        return Entrant(call, var if training else lambda v: reads("y")(v[:1]))
    call = functools.partial(
        torch.nn.functional.batch_norm, x, *statistics, weight, bias, training, 0.0, EPS
    )
    return Entrant(call, lambda y: {"y": whole(y)})


def one_dnn(case, data, layout):
    """Layouts ``nchw``, ``nhwc``, or ``blocked``: the nChw16c or nChw8c that oneDNN prefers."""
    try:
        onednn.version()
    except ImportError as error:
        raise Unavailable(str(error)) from error
    dims = case.shape if len(case.shape) == 4 else (*case.shape, 1, 1)
    channels, tag, block = dims[1], layout, None
    if layout == "blocked":
        block = onednn.block_size(channels)
        if block is None:
            msg = f"{channels} channels do not fill blocks"
            raise Unavailable(msg)
        tag = f"nChw{block}c"

    def held(array):
        return onednn.to_blocked(array, block) if block else array

    def whole(array):
        return data.view(onednn.from_blocked(array) if block else array)

    def vector():
        return np.zeros(channels, np.float32)

    x = held(data.x)
    out = np.ones_like(x) if block else data.out
    forward = functools.partial(
        onednn.forward, dims, tag, x, out, weight=data.weight, bias=data.bias, eps=EPS
    )
    if case.op == "inference":
        call = forward(mean=data.mean, var=data.var, training=False)
        results = {"y": out}
    else:
        mean, var = vector(), vector()
        call = forward(mean=mean, var=var, training=True)
        results = {"y": out, "mean": mean, "var": var}
    if case.op == "backward":
        call()
        dweight, dbias = vector(), vector()
        call = onednn.backward(
            dims, tag, x, held(data.dy), mean, var, data.weight, out, dweight, dbias, EPS
        )
        results = {"dx": out, "dweight": dweight, "dbias": dbias}
    return Entrant(
        call,
        lambda _: {k: whole(v) if k in ("y", "dx") else v for k, v in results.items()},
        detail=f"{tag}, {call.implementation}",
    )


def standard_scaler(case, data):
    preprocessing = load("sklearn.preprocessing")

    def call():
        return preprocessing.StandardScaler().partial_fit(data.x)

    return Entrant(call, lambda scaler: {"mean": scaler.mean_, "var": scaler.var_})


def copy(case, data, name):
    y = data.out
    call = ceilings.copies(data.x, y)[name]
    return Entrant(
        call, lambda _: {"y": data.view(y)}, own=True, right=lambda: {"y": data.view(data.x)}
    )


def read(case, data, name):
    call = ceilings.reads(data.x)[name]
    right = functools.partial(data.x.sum, dtype=np.float64)
    return Entrant(
        call, lambda total: {"sum": np.array([total])}, right=lambda: {"sum": np.array([right()])}
    )


OWN, OWN_NEW, OWN_C, OWN_KERAS = "bnnumba out=", "bnnumba", "bnnumba from C", "bnnumba in Keras"
COPIES = ("copy", "copy, streaming stores", "copy, one thread")
READS = ("read", "read, one thread")
HALVES = ("float16", "bfloat16")


def entrants(case):
    """All that fit the case, by name: functions of it and its data that make an `Entrant`."""
    make = functools.partial
    if case.op == TRACKED:
        return {
            OWN_NEW: bnnumba_tracked,
            "bnnumba on tensors": make(bnnumba_tracked, library="torch"),
            "bnnumba layer": bnnumba_layer,
            "PyTorch": pytorch_tracked,
            "PyTorch layer": pytorch_layer,
            **{name: make(copy, name=name) for name in COPIES},
        }
    if case.op == STEP:
        return {
            OWN_NEW: make(module_step, namespace="bnnumba.adapters.torch"),
            "PyTorch": make(module_step, namespace="torch.nn"),
            OWN_KERAS: make(keras_step, namespace="bnnumba.adapters.keras"),
            "Keras": make(keras_step, namespace="keras.layers"),
            **{name: make(copy, name=name) for name in COPIES},
        }
    found = {
        OWN_NEW: make(bnnumba, reuse=False),
        OWN_C: c_library,
        "NumPy": numpy,
        "PyTorch": pytorch,
    }
    if case.op == "moments":
        found |= {name: make(read, name=name) for name in READS}
        if len(case.shape) == 2:
            found |= {"bnnumba RunningMoments": bnnumba_streaming, "partial_fit": standard_scaler}
    else:
        layouts = ("nchw", "blocked") if case.layout == "ncs" else ("nhwc",)
        found |= {OWN: bnnumba, "PyTorch out=": make(pytorch, reuse=True)}
        found |= {f"oneDNN {layout}": make(one_dnn, layout=layout) for layout in layouts}
        found |= {name: make(copy, name=name) for name in COPIES}
    if case.halves:
        found |= {f"bnnumba {dtype}": make(bnnumba, dtype=dtype) for dtype in HALVES}
    return found
