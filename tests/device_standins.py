"""Arrays in host memory that say of themselves to be on a GPU, for Numba's simulator of one."""

import ctypes

import numpy as np
from device_arrays import Torch

from bnnumba.gpu import dlpack, simulator


class StandIn:
    """An array with ``__cuda_array_interface__``, and a namespace that makes such arrays."""

    device = "a device"
    stream = None

    def __init__(self, host, *, readonly=False):
        self.host, self.readonly = host, readonly

    @property
    def dtype(self):
        return self.host.dtype

    @property
    def __cuda_array_interface__(self):
        return {
            "shape": self.host.shape,
            "strides": self.host.strides,
            "typestr": self.host.dtype.str,
            "data": (simulator.register(self.host), self.readonly),
            "stream": self.stream,
            "version": 3,
        }

    def __array_namespace__(self):
        return Namespace

    def __getitem__(self, index):
        return type(self)(self.host[index])


class Namespace:
    float32, float64, float16 = np.float32, np.float64, np.float16

    @staticmethod
    def empty(shape, *, dtype, device):
        assert device == StandIn.device
        return StandIn(np.full(shape, np.nan, dtype))


class Nameless(StandIn):
    """One of a library without a namespace."""

    __array_namespace__ = None


class Capsule:
    """An array that speaks DLPack and nothing else."""

    def __init__(self, host, *, kind=dlpack.CUDA, code=2):
        self.kind, self.streams = kind, []
        steps = [s // host.itemsize for s in host.strides]
        extents = (ctypes.c_int64 * host.ndim)(*host.shape)
        tensor = dlpack._Tensor(
            simulator.register(host), kind, 0, host.ndim, code, 8 * host.itemsize, 1,
            extents, (ctypes.c_int64 * host.ndim)(*steps), 0,
        )  # fmt: skip
        self.kept = host, extents, tensor

    def __dlpack_device__(self):
        return self.kind, 0

    def __dlpack__(self, *, stream=None):
        self.streams.append(stream)
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = (
            ctypes.py_object,
            (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p),
        )
        return new(ctypes.addressof(self.kept[2]), b"dltensor", None)


class Named(Capsule):
    """One of a library with a namespace as well."""

    device = "a device"

    def __init__(self, host, **options):
        self.host = host
        super().__init__(host, **options)

    def __array_namespace__(self):
        return NamedNamespace

    def __getitem__(self, index):
        return type(self)(self.host[index])


class NamedNamespace(Namespace):
    @staticmethod
    def empty(shape, *, dtype, device):
        return Named(np.full(shape, np.nan, dtype))


class SimulatedTorch(Torch):
    """PyTorch's tensors on the CPU, which say that they are on a GPU from then on."""

    in_host_memory = True

    number = 0
    handle = 0

    def __init__(self):
        super().__init__()
        tensor, cuda = self.torch.Tensor, self.torch.cuda
        tensor.is_cuda = True
        tensor.get_device = lambda tensor: self.device_of(tensor)
        tensor.cuda = lambda tensor: tensor.clone()
        tensor.record_stream = lambda tensor, stream: None
        cuda.current_stream = lambda device: Stream(self.handle)
        cuda.synchronize = lambda: None

    def device_of(self, tensor):
        """The number of the pretended device; lets the simulator's kernels touch the tensor."""
        memory = tensor.untyped_storage()
        simulator.MEMORY[memory.data_ptr()] = memory.nbytes()
        return self.number


class Stream:
    def __init__(self, handle):
        self.cuda_stream = handle
