"""What libbnnumba_embed does with tensors on a GPU, whose arguments C has checked.

Arguments are numbers, pointers among them; 0 stands for NULL. All memory is the caller's and on the
GPU of x, but for the outputs of `moments`. Work is put on CUDA's default stream.
"""

import ctypes
from typing import Any, NamedTuple

import numpy as np

from .. import gpu, on_device
from ..errors import BackendError, BnnumbaValueError
from ..gpu import dlpack, driver
from ..gpu.arrays import DeviceArray, DeviceLibrary, aligned
from ..gpu.jit import SIMULATED
from ..gpu.launch import Call, real_of

__all__ = [
    "Params",
    "backward_inference",
    "backward_training",
    "forward_inference",
    "forward_training",
    "moments",
]

_DTYPES: dict[int, Any] = {1: np.dtype(np.float32), 2: np.dtype(np.float64)}  # enum bnnumba_dtype
_ROWS = 3  # of what a forward pass saves: mean, m2, invstd


class Params(NamedTuple):
    """A bnnumba_params."""

    dtype: int
    weight: int
    bias: int
    running_mean: int
    running_var: int
    momentum: float
    eps: float
    correction: float


class _Callers(DeviceLibrary):
    """The caller's memory, which comes as `DeviceArray` already."""

    def enter(self, argument, array):
        return array


_LIBRARY = _Callers(name="the caller")


def _made_known(array: DeviceArray) -> DeviceArray:
    if SIMULATED:
        from ..gpu.simulator import register

        register(array.shadow())
    return array


def _tensor(name: str, pointer: int) -> DeviceArray:
    """Return what a DLTensor describes."""
    return _made_known(aligned(name, DeviceArray(None, *dlpack.describe(name, pointer))))


def _row(name: str, address: int, shape: tuple, dtype: Any, x: DeviceArray) -> Any:
    """Return an array that is not described as a tensor; None for NULL."""
    if not address:
        return None
    try:
        number = driver.device_of(address)
    except BackendError:  # the driver does not know the address
        number = None
    if number != x.device:
        place = "of the host" if number is None else f"of GPU {number}"
        msg = f"{name}: expected memory of GPU {x.device}, as x, got an address {place}"
        raise BnnumbaValueError(msg)
    return _made_known(DeviceArray(None, address, shape, None, dtype, x.device))


class _Arguments:
    """The arguments of a call, as arrays."""

    def __init__(self, x: int, axis: int) -> None:
        self.x, self.axis = _tensor("x", x), axis
        self.channels = self.x.shape[axis]
        self.count = self.x.size // self.channels if self.channels else 0
        self.call = Call(driver.device(self.x.device), 0, _LIBRARY)

    def parameters(self, params: Params) -> list[Any]:
        """Return weight, bias and running statistics."""
        return [
            self.row(f"params.{name}", getattr(params, name), params.dtype)
            for name in ("weight", "bias", "running_mean", "running_var")
        ]

    def row(self, name: str, address: int, dtype: int) -> Any:
        """Return one value per channel."""
        return _row(name, address, (self.channels,), _DTYPES[dtype], self.x)

    def saved(self, name: str, address: int) -> Any:
        """Return what a forward pass saves."""
        return _row(name, address, (_ROWS, self.channels), _DTYPES[2], self.x)

    def stats(self) -> Any:
        """Return memory for the stats of the kernels."""
        return self.call.empty((4, self.channels), real_of(self.x.dtype.name), self.x)

    def differentiate(
        self, dy: int, scale: Any, stats: Any, training: bool, dx: int, dtype: int, dweight: int,
        dbias: int,
    ) -> None:  # fmt: skip
        """Write the gradients that are wanted."""
        rows = (
            self.row(name, address, dtype) for name, address in
            (("dweight_out", dweight), ("dbias_out", dbias))
        )  # fmt: skip
        with self.call.device:
            shape = (self.channels,)
            found = (
                self.call.empty(shape, _DTYPES[dtype], self.x) if r is None else r for r in rows
            )
            on_device.differentiate(
                self.call, self.x, _tensor("dy", dy), self.axis, scale, stats, training,
                _tensor("dx_out", dx) if dx else None, *found,
            )  # fmt: skip


def moments(x: int, axis: int, count_out: int, mean_out: int, m2_out: int) -> None:
    """Do bnnumba_moments_dl, whose outputs are on the host."""
    found = on_device.moments(_LIBRARY, _tensor("x", x), axis)
    if count_out:
        ctypes.c_int64.from_address(count_out).value = found.count
    for target, row in ((mean_out, found.mean), (m2_out, found.m2)):
        if row.size:
            ctypes.memmove(target, np.ascontiguousarray(row).ctypes.data, row.nbytes)


def forward_training(x: int, axis: int, params: Params, y_out: int, saved_out: int) -> None:
    """Do bnnumba_forward_training_dl."""
    a = _Arguments(x, axis)
    weight, bias, mean, var = a.parameters(params)
    rows = a.saved("saved_out", saved_out)
    _, saved = on_device.training(
        _LIBRARY, None, a.x, weight, bias, mean, var, None, a.count, params.momentum, params.eps,
        params.correction, axis, _tensor("y_out", y_out),
    )  # fmt: skip
    if rows is not None and a.channels:
        with a.call.device:
            gpu.pack_stats(a.call, saved._stats, rows)


def forward_inference(x: int, axis: int, params: Params, y_out: int) -> None:
    """Do bnnumba_forward_inference_dl."""
    a = _Arguments(x, axis)
    weight, bias, mean, var = a.parameters(params)
    on_device.inference(
        _LIBRARY, None, a.x, mean, var, weight, bias, params.eps, axis, _tensor("y_out", y_out),
        ("running_mean", "running_var"), False,
    )  # fmt: skip


def backward_training(
    x: int, dy: int, axis: int, params: Params, saved: int, dx_out: int, dweight_out: int,
    dbias_out: int,
) -> None:  # fmt: skip
    """Do bnnumba_backward_training_dl."""
    a = _Arguments(x, axis)
    weight, *_ = a.parameters(params)
    rows = a.saved("saved", saved)
    with a.call.device:
        stats = a.stats()
        if a.channels:
            gpu.unpack_stats(a.call, rows, stats)
    a.differentiate(dy, weight, stats, True, dx_out, params.dtype, dweight_out, dbias_out)


def backward_inference(
    x: int, dy: int, axis: int, params: Params, dx_out: int, dweight_out: int, dbias_out: int
) -> None:
    """Do bnnumba_backward_inference_dl."""
    a = _Arguments(x, axis)
    weight, _, mean, var = a.parameters(params)
    with a.call.device:
        stats = a.stats()
        if a.channels:
            gpu.constant_stats(a.call, mean, var, params.eps, stats)
    a.differentiate(dy, weight, stats, False, dx_out, params.dtype, dweight_out, dbias_out)
