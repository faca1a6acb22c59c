"""The C library as one more backend: the Python functions' signatures over cffi's ABI mode.

Arrays of any strides go in as DLPack tensors. Results are those of the Python package, so that its
tests can run on them.
"""

from __future__ import annotations

import functools
import re
import weakref

import cffi
import numpy as np
from capi_support import HEADER, build

import bnnumba as bn

DTYPES = {
    "float32": (1, 2, 32),
    "float64": (2, 2, 64),
    "float16": (3, 2, 16),
    "bfloat16": (4, 4, 16),
}

ffi = cffi.FFI()
_REGIONS = re.findall(r"/\* cffi: [\w ]+ \*/\n(.*?)/\* cffi: end \*/", HEADER.read_text(), re.S)
ffi.cdef("\n".join(_REGIONS))


class CapiError(bn.BnnumbaTypeError, bn.BnnumbaValueError):
    """A C function returned an error."""


@functools.cache
def library():
    """Return the loaded library."""
    return ffi.dlopen(str(build()))


def call(name, *arguments):
    """Call a function of the library and raise if it fails."""
    if getattr(library(), name)(*arguments):
        raise CapiError(ffi.string(library().bnnumba_last_error()).decode())


def pointer(array):
    """Return the address of an array's data; None is NULL."""
    return ffi.NULL if array is None else ffi.cast("void *", array.ctypes.data)


def doubles(array):
    """Return the address of float64 numbers."""
    return ffi.cast("double *", pointer(array))


def tensor(array):
    """Return a DLTensor over an array, and what must stay alive as long as it is used."""
    shape = ffi.new("int64_t[]", list(array.shape))
    # A stride of part of an element cannot be said: DLPack counts elements.
    strides = ffi.new("int64_t[]", [stride // array.itemsize for stride in array.strides])
    _, code, bits = DTYPES[array.dtype.name]
    one = ffi.new("DLTensor *")
    one.data = pointer(array)
    one.device.device_type = 1
    one.ndim = array.ndim
    one.dtype.code, one.dtype.bits, one.dtype.lanes = code, bits, 1
    one.shape, one.strides = shape, strides
    _alive[one] = (shape, strides, array)
    return one


# What C only borrows, for as long as the cffi object that points to it lives.
_alive: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _params(x, weight, bias, mean=None, var=None, **numbers):
    """Return a bnnumba_params; arrays of two dtypes are all taken as float64."""
    given = [array for array in (weight, bias, mean, var) if array is not None]
    default = np.float64 if x.dtype == np.float64 else np.float32
    kinds = {array.dtype for array in given} or {np.dtype(default)}
    dtype = kinds.pop() if len(kinds) == 1 else np.dtype(np.float64)
    arrays = [
        None if a is None else np.ascontiguousarray(a, dtype) for a in (weight, bias, mean, var)
    ]
    params = ffi.new("bnnumba_params *")
    params.struct_size = ffi.sizeof("bnnumba_params")
    params.dtype = DTYPES[dtype.name][0]
    params.momentum, params.eps, params.correction = 0.1, 1e-5, 1
    params.weight, params.bias, params.running_mean, params.running_var = map(pointer, arrays)
    for name, value in numbers.items():
        setattr(params, name, value)
    _alive[params] = arrays
    return params, arrays


class Saved:
    """What a forward pass keeps."""

    def __init__(self, x, weight, rows, count, axis, rest):
        self.x, self.weight, self.count, self.axis = x, weight, count, axis
        self.rows, self.rest = rows, rest

    def _statistic(self, row):
        return self.rows[row].astype(np.float64 if self.x.dtype == np.float64 else np.float32)

    mean = property(lambda self: self._statistic(0))
    invstd = property(lambda self: self._statistic(2))
    moments = property(
        lambda self: bn.Moments(self.count, self.rows[0].copy(), self.rows[1].copy())
    )


def batch_norm_training(
    x, weight=None, bias=None, *, running_mean=None, running_var=None, momentum=0.1, eps=1e-5,
    correction=1, axis=1, out=None,
):  # fmt: skip
    """As bnnumba.batch_norm_training."""
    y = np.empty_like(x) if out is None else out
    rows, rest = np.empty((3, x.shape[axis])), np.empty(x.shape[axis])
    params, arrays = _params(
        x, weight, bias, running_mean, running_var,
        momentum=momentum, eps=eps, correction=correction, mean_rest=doubles(rest),
    )  # fmt: skip
    call("bnnumba_forward_training_dl", tensor(x), axis, params, tensor(y), doubles(rows))
    for running, moved in zip((running_mean, running_var), arrays[2:], strict=True):
        if running is not None and moved is not running:
            running[...] = moved
    count = x.size // x.shape[axis] if x.size else 0
    return y, Saved(x, weight, rows, count, axis, rest)


def batch_norm_inference(x, mean, var, weight=None, bias=None, *, eps=1e-5, axis=1, out=None):
    """As bnnumba.batch_norm_inference."""
    y = np.empty_like(x) if out is None else out
    params, _ = _params(x, weight, bias, mean, var, eps=eps)
    call("bnnumba_forward_inference_dl", tensor(x), axis, params, tensor(y))
    return y


def batch_norm_backward(dy, saved, *, out=None):
    """As bnnumba.batch_norm_backward."""
    x = saved.x
    dx = np.empty_like(x) if out is None else out
    params, _ = _params(x, saved.weight, None, mean_rest=doubles(saved.rest))
    default = np.float64 if x.dtype == np.float64 else np.float32
    dtype = default if saved.weight is None else saved.weight.dtype
    dweight, dbias = (np.empty(x.shape[saved.axis], dtype) for _ in range(2))
    call(
        "bnnumba_backward_training_dl", tensor(x), tensor(dy), saved.axis, params,
        doubles(saved.rows), tensor(dx), pointer(dweight), pointer(dbias),
    )  # fmt: skip
    return bn.Gradients(dx, dweight, dbias)


def moments(x, *, axis=1):
    """As bnnumba.moments."""
    mean, m2 = np.empty((2, x.shape[axis]))
    count = ffi.new("int64_t *")
    call("bnnumba_moments_dl", tensor(x), axis, count, doubles(mean), doubles(m2))
    return bn.Moments(count[0] if x.size else 0, mean, m2)


def update_running(running_mean, running_var, m, *, momentum=0.1, correction=1):
    """As bnnumba.update_running."""
    params, arrays = _params(
        running_mean,
        None,
        None,
        running_mean,
        running_var,
        momentum=momentum,
        correction=correction,
    )
    call("bnnumba_update_running", m.mean.size, m.count, doubles(m.mean), doubles(m.m2), params)
    running_mean[...], running_var[...] = arrays[2:]


def fold_batch_norm(conv_weight, conv_bias, mean, var, weight, bias, eps=1e-5):
    """As bnnumba.fold_batch_norm."""
    kernel = np.ascontiguousarray(conv_weight)
    shift = None if conv_bias is None else np.ascontiguousarray(conv_bias, kernel.dtype)
    out, shift_out = np.empty_like(kernel), np.empty(kernel.shape[0], kernel.dtype)
    params, _ = _params(kernel, weight, bias, mean, var, eps=eps)
    channels = kernel.shape[0]
    call(
        "bnnumba_fold", DTYPES[kernel.dtype.name][0], channels, kernel.size // max(1, channels),
        pointer(kernel), pointer(shift), params, pointer(out), pointer(shift_out),
    )  # fmt: skip
    return out, shift_out


class RunningMoments:
    """As bnnumba.RunningMoments, on a handle."""

    def __init__(self, num_features):
        handle = ffi.new("bnnumba_running **")
        call("bnnumba_running_create", num_features, handle)
        self._handle = ffi.gc(handle[0], library().bnnumba_running_destroy)
        self._channels = num_features

    def update(self, x, axis=1):
        """Take in a batch."""
        call("bnnumba_running_update_dl", self._handle, tensor(x), axis)

    def merge(self, other):
        """Take in another stream, or moments."""
        if isinstance(other, RunningMoments):
            call("bnnumba_running_merge", self._handle, other._handle)
        else:
            call(
                "bnnumba_running_add", self._handle, other.mean.size, other.count,
                doubles(other.mean), doubles(other.m2),
            )  # fmt: skip

    @property
    def moments(self):
        """The moments so far."""
        mean, m2 = np.empty((2, self._channels))
        count = ffi.new("int64_t *")
        call("bnnumba_running_read", self._handle, ffi.NULL, count, doubles(mean), doubles(m2))
        return bn.Moments(count[0], mean, m2)

    count = property(lambda self: self.moments.count)
    mean = property(lambda self: self.moments.mean)

    def var(self, correction=0):
        """Return the variance."""
        return self.moments.var(correction)

    def std(self, correction=0):
        """Return the standard deviation."""
        return self.moments.std(correction)


PUBLIC = [
    RunningMoments, batch_norm_training, batch_norm_inference, batch_norm_backward, moments,
    update_running, fold_batch_norm,
]  # fmt: skip
