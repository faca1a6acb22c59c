"""Arrays on a GPU: what each library says of its own, and how it makes new ones.

Looks only at libraries that the process has already loaded, as `bnnumba.dispatch` does.
"""

import math
import sys
from typing import Any

import ml_dtypes
import numpy as np

from ..errors import BnnumbaTypeError, BnnumbaValueError
from . import dlpack, driver
from .jit import SIMULATED

__all__ = ["CUPY", "NUMBA", "TORCH", "DeviceArray", "DeviceLibrary", "aligned", "library_of"]

Array = Any
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class DeviceArray:
    """Memory of a GPU: an address, a shape, strides in bytes and a dtype, and whose it is."""

    __slots__ = (
        "_shadow", "address", "capsule", "device", "dtype", "owner", "shape", "stream", "strides",
        "writeable",
    )  # fmt: skip

    def __init__(self, owner, address, shape, strides, dtype, device, writeable=True, stream=None):
        self.owner = owner
        self.address = address
        self.shape = tuple(shape)
        self.dtype = dtype
        self.strides = contiguous(self.shape, dtype.itemsize) if strides is None else strides
        self.device = device
        self.writeable = writeable
        self.stream = stream
        self._shadow = None
        self.capsule = None  # of DLPack, which nobody takes over: with it the memory may go

    @property
    def ndim(self):
        return len(self.shape)

    @property
    def size(self):
        return math.prod(self.shape)

    @property
    def itemsize(self):
        return self.dtype.itemsize

    @property
    def flags(self):
        return self

    @property
    def aligned(self):
        return not any(n % self.dtype.itemsize for n in (self.address, *self.strides))

    @property
    def c_contiguous(self):
        return self.strides == contiguous(self.shape, self.dtype.itemsize)

    def shadow(self):
        """Return a NumPy array of the same address and strides, not to be read or written."""
        if self._shadow is None:
            kind = f"<V{self.dtype.itemsize}"
            # An empty array may stand at 0, where NumPy 2.0 sees no array.
            address = self.address or self.itemsize
            self._shadow = np.asarray(_Shadow(self.shape, self.strides, kind, address))
        return self._shadow

    def transposed(self, order):
        """Return the array with its axes in another order; its owner keeps theirs."""
        shape = tuple(self.shape[a] for a in order)
        strides = tuple(self.strides[a] for a in order)
        found = DeviceArray(
            self.owner, self.address, shape, strides, self.dtype, self.device, stream=self.stream
        )
        found.capsule = self.capsule
        return found

    def row(self, number):
        """Return a row of a contiguous array of two dimensions."""
        address = self.address + number * self.strides[0]
        owner = self.owner[number]
        return DeviceArray(
            owner, address, self.shape[1:], self.strides[1:], self.dtype, self.device,
            stream=self.stream,
        )  # fmt: skip


def aligned(argument, array):
    """Return an array whose elements a GPU can read; to read others stops all of the process."""
    if not array.aligned and array.size:
        msg = (
            f"{argument}: expected an array that is aligned to its elements of {array.itemsize} "
            "bytes; make a copy of it"
        )
        raise BnnumbaValueError(msg)
    return array


class _Shadow:
    def __init__(self, shape, strides, typestr, address):
        self.__array_interface__ = {
            "shape": shape, "strides": strides, "typestr": typestr, "data": (address, True),
            "version": 3,
        }  # fmt: skip


def contiguous(shape, itemsize):
    """Return the strides in bytes of a contiguous array."""
    strides, step = [], itemsize
    for extent in reversed(shape):
        strides.append(step)
        step *= max(1, extent)
    return tuple(reversed(strides))


class DeviceLibrary:
    """A library of GPU arrays, here any that speaks the CUDA array interface or DLPack.

    Results are made by the array API functions of the library, where it has them, else by Numba.
    """

    on_device = True
    read_only = ""

    def __init__(self, namespace=None, name="Numba"):
        self.namespace = namespace
        self.name = name

    def enter(self, argument, array):
        """Return what an array of this library is, or raise."""
        if hasattr(array, "__cuda_array_interface__"):
            return aligned(argument, self._interface(array))
        if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
            kind, device = (int(n) for n in array.__dlpack_device__())
            if kind == dlpack.CUDA:
                capsule, *described = dlpack.look(argument, array)
                found = DeviceArray(array, *described, device)
                found.capsule = capsule
                return aligned(argument, found)
        raise self.foreign(argument, array)

    def _interface(self, array):
        found = array.__cuda_array_interface__
        address, readonly = found["data"]
        strides = found.get("strides")
        dtype = np.dtype(found["typestr"])
        if dtype.kind == "V":  # the interface has no name for bfloat16
            dtype = np.dtype(array.dtype)
        return DeviceArray(
            array, address, found["shape"], strides and tuple(strides), dtype,
            driver.device_of(address), not readonly, found.get("stream"),
        )  # fmt: skip

    def foreign(self, argument, array):
        """Return the error for an array of another library or device."""
        where = "the CPU" if isinstance(array, np.ndarray) else _place(array)
        msg = (
            f"{argument}: expected an array of {self.name} on the GPU, as the first array is, "
            f"got {_kind(array)}{where and f' on {where}'}"
        )
        return BnnumbaTypeError(msg)

    def stream(self, array):
        """Return the handle of the stream to work on: what the array names, or the default."""
        return array.stream or 0

    def empty(self, shape, dtype, like):
        """Return a new contiguous array on the device of `like`."""
        if self.namespace is None:
            made = driver.new_array(shape, dtype, like.device, like.stream or 0)
            return NUMBA.enter("out", made)
        wanted = getattr(self.namespace, dtype.name)
        made = self.namespace.empty(shape, dtype=wanted, device=like.owner.device)
        return self.enter("out", made)

    def empty_like(self, array):
        """Return a new array of the shape and dtype of `array`, dense in its order of axes."""
        return self.empty(array.shape, array.dtype, array)

    def keep_for_stream(self, *arrays):
        """Have memory kept until the stream to work on is done with it, where a library can."""

    def wrote(self, *arrays):
        """Let the library know that the caller's arrays were written to."""


class _CuPy(DeviceLibrary):
    def enter(self, argument, array):
        cupy = sys.modules["cupy"]
        if not isinstance(array, cupy.ndarray):
            raise self.foreign(argument, array)
        found = DeviceArray(
            array, array.data.ptr, array.shape, array.strides, array.dtype, array.data.device_id
        )
        return aligned(argument, found)

    def stream(self, array):
        return sys.modules["cupy"].cuda.get_current_stream(array.device).ptr

    def empty(self, shape, dtype, like):
        cupy = sys.modules["cupy"]
        with cupy.cuda.Device(like.device):
            return self.enter("out", cupy.empty(shape, dtype))

    def empty_like(self, array):
        cupy = sys.modules["cupy"]
        with cupy.cuda.Device(array.device):
            return self.enter("out", cupy.empty_like(array.owner))


class _Torch(DeviceLibrary):
    def __init__(self):
        super().__init__(name="PyTorch")
        self.dtypes = {}

    def _dtypes(self):
        torch = sys.modules["torch"]
        names = ("float32", "float64", "float16")
        known = {getattr(torch, name): np.dtype(name) for name in names}
        return {**known, torch.bfloat16: _BFLOAT16}

    def enter(self, argument, array):
        torch = sys.modules["torch"]
        if not isinstance(array, torch.Tensor) or not array.is_cuda:
            raise self.foreign(argument, array)
        if array.requires_grad and torch.is_grad_enabled():
            msg = (
                f"{argument}: expected a tensor outside of autograd, got one that requires a "
                "gradient; pass tensor.detach()"
            )
            raise BnnumbaTypeError(msg)
        if array.layout != torch.strided:
            msg = f"{argument}: expected a dense tensor, got layout {array.layout}"
            raise BnnumbaTypeError(msg)
        if array.is_neg():
            msg = f"{argument}: expected a tensor as it stands; pass tensor.resolve_neg()"
            raise BnnumbaTypeError(msg)
        if not self.dtypes:
            self.dtypes = self._dtypes()
        dtype = self.dtypes.get(array.dtype)
        if dtype is None:
            msg = (
                f"{argument}: expected dtype float32, float64, float16 or bfloat16, "
                f"got {array.dtype}"
            )
            raise BnnumbaTypeError(msg)
        size = dtype.itemsize
        strides = tuple(step * size for step in array.stride())
        number = array.get_device()
        return DeviceArray(array, array.data_ptr(), array.shape, strides, dtype, number)

    def stream(self, array):
        return sys.modules["torch"].cuda.current_stream(array.device).cuda_stream

    def empty(self, shape, dtype, like):
        torch = sys.modules["torch"]
        wanted = next(ours for ours, theirs in self.dtypes.items() if theirs == dtype)
        made = torch.empty(shape, dtype=wanted, device=like.owner.device)
        return self.enter("out", made)

    def empty_like(self, array):
        return self.enter("out", sys.modules["torch"].empty_like(array.owner))

    def keep_for_stream(self, *arrays):
        for array in arrays:
            if array is not None:
                owner = array.owner
                owner.record_stream(sys.modules["torch"].cuda.current_stream(owner.device))

    def wrote(self, *arrays):
        for array in arrays:
            if array is not None and not array.is_inference():
                sys.modules["torch"].autograd.graph.increment_version(array)


class _Simulated(DeviceLibrary):
    """The arrays of Numba's CUDA simulator, which stand in host memory."""

    def enter(self, argument, array):
        host = getattr(array, "_ary", None)
        if host is None:
            raise self.foreign(argument, array)
        from .simulator import register

        return DeviceArray(array, register(host), host.shape, host.strides, host.dtype, 0)


CUPY, TORCH = _CuPy(name="CuPy"), _Torch()
NUMBA = _Simulated() if SIMULATED else DeviceLibrary()


def library_of(array):
    """Return the library of an array that is on a GPU."""
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    if torch is not None and isinstance(array, getattr(torch, "Tensor", ())):
        return TORCH
    if cupy is not None and isinstance(array, getattr(cupy, "ndarray", ())):
        return CUPY
    package = type(array).__module__.partition(".")[0]
    if package in ("numba", "numba_cuda"):
        return NUMBA
    try:
        namespace = array.__array_namespace__()
    except Exception:
        namespace = None
    return DeviceLibrary(namespace, "Numba" if namespace is None else _kind(array))


def _kind(array):
    kind = type(array)
    return f"{kind.__module__}.{kind.__qualname__}"


def _place(array):
    device = getattr(array, "device", None)
    return "" if device is None or callable(device) else str(device)
