"""Arrays on a GPU, or on Numba's simulator of one, made from NumPy's and back.

``BNNUMBA_TEST_DEVICE`` names the library: cupy, torch, numba, or simulator; or simulated_torch, the
tensors that PyTorch has on the CPU, on the simulator; or interpreted, arrays in host memory that
kernels compiled to PTX are interpreted on.
"""

import os

import ml_dtypes
import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def _memory(array):
    """The memory that a view lies in as a flat array, and the view's offset in elements."""
    low, high = np.lib.array_utils.byte_bounds(array)
    count = (high - low) // array.itemsize
    first = array.__array_interface__["data"][0]
    flat = np.lib.stride_tricks.as_strided(
        array[tuple(slice(-1, None) if s < 0 else slice(0, 1) for s in array.strides)],
        (count,), (array.itemsize,),
    ) if array.size else array.reshape(-1)  # fmt: skip
    return flat, (first - low) // array.itemsize


class Adapter:
    """To a library and back, strides and all."""

    negative_strides = True
    in_host_memory = False  # and so known to `bnnumba.gpu.simulator`
    dtypes = ("float32", "float64", "float16", "bfloat16")

    def __call__(self, array):
        """The array on the device, with the same strides; None stays None."""
        if array is None:
            return None
        flat, offset = _memory(array)
        if not self.negative_strides and any(s < 0 for s in array.strides):
            pytest.skip("the library has no negative strides, or cannot copy them to the host")
        steps = [s // array.itemsize for s in array.strides]
        return self.view(self.flat(np.ascontiguousarray(flat)), array.shape, steps, offset)

    def back(self, array):
        """The array as one of NumPy, None for None."""
        return None if array is None else self.host(array)

    def wait(self):
        """Wait for the device."""


class Simulator(Adapter):
    in_host_memory = True

    def __init__(self):
        from numba import cuda

        self.kind = type(cuda.to_device(np.zeros(1)))

    def flat(self, array):
        from numba import cuda

        return cuda.to_device(array)

    def view(self, flat, shape, steps, offset):
        host = flat._ary
        strides = [s * host.itemsize for s in steps]
        return self.kind(as_strided(host[offset:], shape, strides))

    def host(self, array):
        return np.array(getattr(array, "_ary", array))


class CuPy(Adapter):
    def __init__(self):
        import cupy

        self.cupy, self.kind = cupy, cupy.ndarray
        try:
            cupy.asarray(np.zeros(1, BFLOAT16))  # zeros() of CuPy 13 takes any dtype
        except (TypeError, ValueError):
            self.dtypes = self.dtypes[:3]

    def flat(self, array):
        return self.cupy.asarray(array)

    def view(self, flat, shape, steps, offset):
        strides = [s * flat.itemsize for s in steps]
        memory = self.cupy.cuda.MemoryPointer(flat.data.mem, flat.data.ptr - flat.data.mem.ptr)
        return self.cupy.ndarray(shape, flat.dtype, memory + offset * flat.itemsize, strides)

    def host(self, array):
        return self.cupy.asnumpy(array)

    def wait(self):
        self.cupy.cuda.Device().synchronize()


class Torch(Adapter):
    negative_strides = False

    def __init__(self):
        import torch

        self.torch, self.kind = torch, torch.Tensor

    def flat(self, array):
        torch = self.torch
        if array.dtype == BFLOAT16:
            return torch.from_numpy(array.view(np.int16)).cuda().view(torch.bfloat16)
        return torch.from_numpy(array).cuda()

    def view(self, flat, shape, steps, offset):
        return flat.as_strided(tuple(shape), tuple(steps), offset)

    def host(self, array):
        if array.dtype == self.torch.bfloat16:
            return array.view(self.torch.int16).cpu().numpy().view(BFLOAT16)
        return array.cpu().numpy()

    def wait(self):
        self.torch.cuda.synchronize()


class Numba(Adapter):
    negative_strides = False
    dtypes = ("float32", "float64", "float16")

    def __init__(self):
        from numba import cuda

        self.cuda, self.kind = cuda, type(cuda.to_device(np.zeros(1)))

    def flat(self, array):
        return self.cuda.to_device(array)

    def view(self, flat, shape, steps, offset):
        size = flat.dtype.itemsize
        strides = tuple(s * size for s in steps)
        part = flat[offset:] if flat.size else flat
        return self.cuda.from_cuda_array_interface(
            {**part.__cuda_array_interface__, "shape": tuple(shape), "strides": strides}, owner=part
        )

    def host(self, array):
        return array.copy_to_host()

    def wait(self):
        self.cuda.synchronize()


def adapter():
    """The library that the environment names; tests are skipped where it names none."""
    name = os.environ.get("BNNUMBA_TEST_DEVICE")
    if not name:
        pytest.skip("BNNUMBA_TEST_DEVICE names no library", allow_module_level=True)
    if name == "simulated_torch":
        from device_standins import SimulatedTorch

        return SimulatedTorch()
    if name == "interpreted":
        from device_interpreted import Interpreted

        return Interpreted()
    return {"cupy": CuPy, "torch": Torch, "numba": Numba, "simulator": Simulator}[name]()
