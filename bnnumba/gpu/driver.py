"""The CUDA driver: devices, machine code, launches. Nothing here waits for the device."""

import ctypes
import struct
import threading
from typing import Any

import numpy as np
from numba import cuda as numba_cuda

from ..compiling import compiling, uninterrupted
from ..errors import BackendError
from .jit import SIMULATED
from .plan import Traits

if SIMULATED:
    from .simulator import simulate
else:
    from cuda.bindings import driver as cuda

__all__ = ["Device", "device", "device_of", "new_array"]

# Shared memory that a block may use without asking for more.
_PLAIN_SHARED = 48 * 1024


def _check(found):
    """Return what a driver call returned, or raise if it failed."""
    status, *results = found
    if status != cuda.CUresult.CUDA_SUCCESS:
        _, text = cuda.cuGetErrorString(status)
        msg = f"CUDA: {text.decode() if text else status}"
        raise BackendError(msg)
    return results[0] if results else None


class _Packed:
    """Memory that the arguments of a launch are packed into."""

    def __init__(self, layout):
        self.layout = layout  # of `struct`
        self.buffer = ctypes.create_string_buffer(struct.calcsize(layout))
        first, offset = ctypes.addressof(self.buffer), 0
        places = []
        for code in layout:  # each argument at a multiple of its own size, as struct packs it
            size = struct.calcsize(code)
            offset = -(-offset // size) * size
            places.append(first + offset)
            offset += size
        self.pointers = (ctypes.c_void_p * len(places))(*places)
        self.address = ctypes.addressof(self.pointers)

    def pack(self, arguments):
        struct.pack_into(self.layout, self.buffer, 0, *arguments)


class _Loaded:
    """A kernel on a device."""

    def __init__(self, kernel, function):
        self.function = function
        self.layout = kernel.format
        self.most_shared = _PLAIN_SHARED
        # Without a lock, which a signal handler would wait for that launches in the same thread.
        self.unused = []

    def take(self):
        """Return memory for arguments that nobody else has."""
        try:
            return self.unused.pop()
        except IndexError:
            return _Packed(self.layout)


def _start():
    """Start the driver, unless that is done."""
    try:
        _check(cuda.cuInit(0))
    except RuntimeError as error:  # also what the bindings raise where there is no driver
        msg = f"x: is on a GPU, but the CUDA driver does not start: {error}"
        raise BackendError(msg) from error


class Device:
    """A GPU: what plans depend on, and the kernels that are loaded on it."""

    def __init__(self, number):
        self.number = number
        _start()
        self._handle = _check(cuda.cuDeviceGet(number))
        attribute = cuda.CUdevice_attribute

        def get(name):
            full = getattr(attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
            return _check(cuda.cuDeviceGetAttribute(full, self._handle))

        capability = get("COMPUTE_CAPABILITY_MAJOR"), get("COMPUTE_CAPABILITY_MINOR")
        if capability < (8, 0):  # what rounds to bfloat16, and to two float16 at once
            msg = f"x: expected a GPU of compute capability 8.0 or more, got {capability}"
            raise BackendError(msg)
        self.traits = Traits(
            capability,
            get("MULTIPROCESSOR_COUNT"),
            get("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
            get("L2_CACHE_SIZE"),
        )
        self._context = _check(cuda.cuDevicePrimaryCtxRetain(self._handle))
        self._address = int(self._context)
        self._loaded = {}

    def _load(self, kernel):
        """Compile a kernel for this device and load it, in whichever thread."""
        with compiling(), self:
            if kernel in self._loaded:
                return self._loaded[kernel]
            name, code = kernel.machine_code(self.traits.capability)
            module = _check(cuda.cuModuleLoadData(code))
            function = _check(cuda.cuModuleGetFunction(module, name.encode()))
            self._loaded[kernel] = loaded = _Loaded(kernel, function)
            return loaded

    def launch(self, kernel, stream, grid, threads, shared, *arguments):
        """Launch a kernel on a stream of this device."""
        loaded = self._loaded.get(kernel) or uninterrupted(self._load, kernel)
        if shared > loaded.most_shared:
            name = cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _check(cuda.cuFuncSetAttribute(loaded.function, name, self.traits.shared))
            loaded.most_shared = self.traits.shared
        packed = loaded.take()
        packed.pack(arguments)
        # The driver copies the arguments before it returns, but lets other threads run meanwhile.
        _check(
            cuda.cuLaunchKernel(
                loaded.function, grid, 1, 1, threads, 1, 1, shared, stream, packed.address, 0
            )
        )
        loaded.unused.append(packed)

    def clear(self, address, size, stream):
        """Set memory to zero."""
        _check(cuda.cuMemsetD8Async(address, 0, size, stream))

    def read(self, array, stream):
        """Wait for what a stream has to do, and return an array as one of NumPy."""
        found = np.empty(array.shape, array.dtype)
        if not found.size:
            return found
        _check(cuda.cuMemcpyDtoHAsync(found.ctypes.data, array.address, found.nbytes, stream))
        _check(cuda.cuStreamSynchronize(stream))
        return found

    def write(self, array, values, stream):
        """Copy a contiguous array of NumPy to the device, and wait until it may go."""
        _check(cuda.cuMemcpyHtoDAsync(array.address, values.ctypes.data, values.nbytes, stream))
        _check(cuda.cuStreamSynchronize(stream))

    def follow(self, stream, other):
        """Let what a stream does from now on wait for what another one has to do now."""
        with self:
            event = _check(cuda.cuEventCreate(cuda.CUevent_flags.CU_EVENT_DISABLE_TIMING))
            _check(cuda.cuEventRecord(event, other))
            _check(cuda.cuStreamWaitEvent(stream, event, 0))
            _check(cuda.cuEventDestroy(event))  # once it is over

    def __enter__(self):
        """Make this device's context the current one, unless it is."""
        current = int(_check(cuda.cuCtxGetCurrent()))
        if not current:
            # It stays, as with CUDA's runtime: results of Numba's could not be freed without one.
            _check(cuda.cuCtxSetCurrent(self._context))
        pushes = current not in (0, self._address)
        _entered.depth = [*getattr(_entered, "depth", []), pushes]
        if pushes:
            _check(cuda.cuCtxPushCurrent(self._context))
        return self

    def __exit__(self, *failure):
        """Make the context current again that was before."""
        if _entered.depth.pop():
            _check(cuda.cuCtxPopCurrent())


class _Simulated:
    """The device of Numba's CUDA simulator."""

    # Few and small, so that small arrays meet all kinds of kernels.
    traits = Traits((9, 0), 2, 32 * 1024, 256 * 1024)

    def launch(self, kernel, stream, grid, threads, shared, *arguments):
        simulate(kernel.function, grid, threads, shared, arguments)

    def clear(self, address, size, stream):
        ctypes.memset(address, 0, size)

    def read(self, array, stream):
        data = ctypes.string_at(array.address, array.size * array.itemsize)
        return np.frombuffer(data, array.dtype).reshape(array.shape).copy()

    def write(self, array, values, stream):
        ctypes.memmove(array.address, values.ctypes.data, values.nbytes)

    def follow(self, stream, other):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        pass


_entered = threading.local()
_devices: dict[int, Any] = {}


def device(number):
    """Return the device of a number."""
    found = _devices.get(number)
    if found is None:
        with compiling():
            if number not in _devices:
                _devices[number] = _Simulated() if SIMULATED else Device(number)
            found = _devices[number]
    return found


def device_of(address):
    """Return the number of the device that memory belongs to."""
    if SIMULATED:
        return 0
    _start()
    if not address:  # empty arrays have no memory
        return int(numba_cuda.get_current_device().id)
    name = cuda.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    return int(_check(cuda.cuPointerGetAttribute(name, address)))


def new_array(shape, dtype, number, stream=0):
    """Return a new array of Numba's on a device, which names the stream that it is made on."""
    if SIMULATED:
        return numba_cuda.to_device(np.full(shape, np.nan).astype(dtype))
    with numba_cuda.gpus[number]:
        on = numba_cuda.external_stream(stream) if stream else 0
        return numba_cuda.device_array(shape, dtype, stream=on)
