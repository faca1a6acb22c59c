"""From the caller's arrays to those of a backend, and results back to the caller's library.

Looks only at libraries that the process has already loaded: whoever holds a PyTorch tensor has
imported torch.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from .errors import BackendError, BnnumbaTypeError, BnnumbaValueError

__all__ = ["NUMPY", "ArrayT", "Library", "library_of", "overlap", "share"]

Array = Any
ArrayT = TypeVar("ArrayT")  # of what comes out as it went in
Viewed = Any  # an ndarray, or the DeviceArray of one on a GPU
_CPU_DEVICES = (1, 3, 11, 13)  # DLPack's kDLCPU, kDLCUDAHost, kDLROCMHost, kDLCUDAManaged
_CUDA_DEVICE = 2
# What NumPy may try before two arrays are said to overlap; its newer types know -1 and 0 alone.
_MOST_WORK: Any = 100_000


class Library:
    """An array library whose CPU arrays can be read and made without a copy."""

    name = "NumPy"
    on_device = False  # whether its arrays are on a GPU, and entered as a `DeviceArray`
    read_only = ""  # what to say where its arrays never are writable

    def enter(self, argument: str, array: Array) -> np.ndarray:
        """Return `array` as a NumPy array over the same memory, or raise."""
        if isinstance(array, np.ndarray):
            if isinstance(array, np.ma.MaskedArray):
                msg = f"{argument}: masked arrays are not supported, got a mask; fill or drop it"
                raise BnnumbaTypeError(msg)
            return np.asarray(array)  # a subclass, such as memmap, as the array that it is
        if isinstance(array, np.generic):
            return np.asarray(array)
        raise _not_of(self, argument, array)

    def leave(self, array: np.ndarray) -> Array:
        """Return a NumPy array of ours as an array of this library."""
        return array

    def wrote(self, *arrays: Array | None) -> None:
        """Let the library know that the caller's arrays were written to."""


class _Torch(Library):
    name = "PyTorch"

    def __init__(self, torch: Any) -> None:
        self.torch = torch

    def enter(self, argument: str, array: Array) -> np.ndarray:
        torch = self.torch
        if not isinstance(array, torch.Tensor):
            raise _not_of(self, argument, array)
        seen = array
        if array.requires_grad and not torch.is_grad_enabled():
            seen = array.detach()
        if not seen.requires_grad and seen.dtype != torch.bfloat16:
            try:
                return seen.numpy()
            except (RuntimeError, TypeError):
                pass
        return self._enter(argument, array)

    def _enter(self, argument: str, array: Array) -> np.ndarray:
        """Return a tensor that is not NumPy's as it is, or say why that cannot be."""
        torch = self.torch
        if array.device.type != "cpu":
            raise _wrong_device(argument, f"device {array.device}")
        if array.requires_grad and torch.is_grad_enabled():
            msg = (
                f"{argument}: expected a tensor outside of autograd, got one that requires a "
                "gradient; pass tensor.detach()"
            )
            raise BnnumbaTypeError(msg)
        if array.layout != torch.strided:
            msg = f"{argument}: expected a dense tensor, got layout {array.layout}"
            raise BnnumbaTypeError(msg)
        try:
            if array.dtype == torch.bfloat16:
                import ml_dtypes

                return array.detach().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
            return array.detach().numpy()
        except (RuntimeError, TypeError) as error:  # an unusual dtype, a view not yet conjugated
            msg = f"{argument}: NumPy cannot see this tensor of {array.dtype}: {error}"
            raise BnnumbaTypeError(msg) from error

    def leave(self, array: np.ndarray) -> Array:
        torch = self.torch
        if array.dtype.kind == "f":
            return torch.from_numpy(array)
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)

    def wrote(self, *arrays: Array | None) -> None:
        for array in arrays:
            if array is not None and not array.is_inference():
                self.torch.autograd.graph.increment_version(array)


class _Jax(Library):
    name = "JAX"
    read_only = ": arrays of JAX cannot be changed; leave it out, and see saved.moments"

    def enter(self, argument: str, array: Array) -> np.ndarray:
        import jax

        if not isinstance(array, jax.Array):
            raise _not_of(self, argument, array)
        if isinstance(array, jax.core.Tracer):
            msg = f"{argument}: expected a concrete array, got a JAX tracer; call outside of jit"
            raise BnnumbaTypeError(msg)
        try:
            device = next(iter(array.devices()))
            if device.platform == "cpu":
                return np.asarray(array)  # shares memory, read-only
        except (RuntimeError, TypeError) as error:  # a deleted array, a key of random numbers
            msg = f"{argument}: NumPy cannot see this array of JAX: {error}"
            raise BnnumbaTypeError(msg) from error
        msg = (
            f"{argument}: expected an array of JAX on the CPU, got one on device {device}; pass it "
            "through DLPack to CuPy or PyTorch"
        )
        raise BackendError(msg)

    def leave(self, array: np.ndarray) -> Array:
        import jax

        if array.dtype != np.float64 or jax.config.jax_enable_x64:
            return jax.numpy.asarray(array)
        # What came in was float64 all the same, made where the caller had enabled that.
        enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
        with enable(True):
            return jax.numpy.asarray(array)


class _DLPack(Library):
    """Any other library whose arrays speak DLPack, known by the type of its arrays."""

    def __init__(self, array: Array) -> None:
        self.kind = type(array)
        self.name = f"{self.kind.__module__}.{self.kind.__qualname__}"
        try:
            self.namespace = array.__array_namespace__()
        except Exception:
            self.namespace = None

    def enter(self, argument: str, array: Array) -> np.ndarray:
        if isinstance(array, np.ndarray):
            return NUMPY.enter(argument, array)
        if not hasattr(array, "__dlpack__"):
            raise _not_of(self, argument, array)
        device = _dlpack_device(argument, array)
        if device not in _CPU_DEVICES:
            raise _wrong_device(argument, f"DLPack device type {device}")
        try:
            return np.from_dlpack(array)
        except Exception as error:
            msg = f"{argument}: NumPy cannot take this {self.name} through DLPack: {error}"
            raise BnnumbaTypeError(msg) from error

    def leave(self, array: np.ndarray) -> Array:
        if self.namespace is None or not hasattr(self.namespace, "from_dlpack"):
            return array
        return self.namespace.from_dlpack(array)


NUMPY = Library()
_JAX = _Jax()


@functools.cache
def _torch() -> Library:
    import torch

    return _Torch(torch)


@functools.cache
def _tests() -> tuple[Callable[[Array], bool], Callable[[Array], bool]]:
    """Return what tells tensors of PyTorch and arrays of JAX, loaded only where it is needed."""
    from array_api_compat import is_jax_array, is_torch_array

    return is_torch_array, is_jax_array


def _kind(value: Array) -> str:
    kind = type(value)
    if value is None or kind.__module__ == "builtins":
        return repr(value) if value is None else kind.__name__
    return f"{kind.__module__}.{kind.__qualname__}"


def _to_numpy(argument: str, value: Array) -> str:
    """Say how what is like an array becomes one: a data frame, or a data set in a file."""
    kind = type(value)
    if hasattr(kind, "to_numpy"):
        return f"; use {argument}.to_numpy()"
    if hasattr(kind, "__array__"):
        return f"; use np.asarray({argument}), or of a part of it"
    return ""


def _no_array(argument: str, value: Array) -> BnnumbaTypeError:
    wanted, hint = "an array (NumPy, or one that speaks DLPack)", _to_numpy(argument, value)
    return BnnumbaTypeError(f"{argument}: expected {wanted}, got {_kind(value)}{hint}")


def _not_of(library: Library, argument: str, value: Array) -> BnnumbaTypeError:
    if isinstance(value, (list, tuple)):
        hint = "; use np.asarray(...)" if library is NUMPY else ""
        return BnnumbaTypeError(f"{argument}: expected an array, got a {_kind(value)}{hint}")
    like = f"an array of {library.name}, as the first array is"
    wanted = "a numpy.ndarray" if library is NUMPY else like
    found = _kind(value)
    if _on_gpu(value):
        wanted, found = f"{wanted}, on the CPU", f"{found} on a GPU"
    hint = _to_numpy(argument, value) if library is NUMPY else ""
    return BnnumbaTypeError(f"{argument}: expected {wanted}, got {found}{hint}")


def _on_gpu(value: Array) -> bool:
    try:
        return int(value.__dlpack_device__()[0]) == _CUDA_DEVICE
    except Exception:
        # Asked of the class: for a tensor that is not on a GPU the property raises.
        return hasattr(type(value), "__cuda_array_interface__")


def _wrong_device(argument: str, found: str) -> BackendError:
    like_x = "" if argument == "x" else ", as the first array is"
    return BackendError(f"{argument}: expected an array on the CPU{like_x}, got one on {found}")


def _dlpack_device(argument: str, array: Array) -> int:
    try:
        return int(array.__dlpack_device__()[0])
    except Exception as error:
        msg = f"{argument}: {_kind(array)} does not tell its DLPack device: {error}"
        raise BnnumbaTypeError(msg) from error


def _device_library(argument: str, array: Array) -> Library:
    """Return the library of an array on a GPU, or raise if the backend cannot be loaded."""
    try:
        from .gpu.arrays import library_of as device_library_of
    except ImportError as error:
        msg = (
            f"{argument}: {_kind(array)} is on a GPU, which needs numba-cuda: "
            "pip install 'bnnumba[cu13]', or 'bnnumba[cu12]' for CUDA 12; "
            f"it could not be imported: {error}"
        )
        raise BackendError(msg) from error
    return device_library_of(array)


def _has(array: Array, name: str) -> bool:
    """Return whether an array has what it says that it has: some objects answer to every name."""
    return hasattr(type(array), name) or name in getattr(array, "__dict__", ())


def library_of(argument: str, array: Array) -> Any:
    """Return the library of an array that decides where a call runs, or raise."""
    if isinstance(array, (np.ndarray, np.generic)):  # a scalar is as good as an array of rank 0
        return NUMPY
    if isinstance(array, type):  # has the methods of an array, but is none
        raise _no_array(argument, array)
    is_torch_array, is_jax_array = _tests()
    if is_torch_array(array):
        return _device_library(argument, array) if getattr(array, "is_cuda", False) else _torch()
    if is_jax_array(array):
        return _JAX
    simulated = type(array).__module__.startswith("numba.cuda.simulator")
    if simulated or _has(array, "__cuda_array_interface__"):
        return _device_library(argument, array)
    if _has(array, "__dlpack__") and _has(array, "__dlpack_device__"):
        if _dlpack_device(argument, array) == _CUDA_DEVICE:
            return _device_library(argument, array)
        return _DLPack(array)
    if isinstance(array, (list, tuple)):
        msg = f"{argument}: expected an array, got a {_kind(array)}; use np.asarray({argument})"
        raise BnnumbaTypeError(msg)
    raise _no_array(argument, array)


def share(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether two arrays have an element's memory in common."""
    if a.base is None and b.base is None and a.flags.owndata and b.flags.owndata:
        return a is b and a.size > 0  # each has its own, which is seen quickly
    if not np.may_share_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, max_work=_MOST_WORK)
    except np.exceptions.TooHardError:  # undecided: as if they did
        return True


def overlap(
    argument: str, out: np.ndarray, other: str, array: np.ndarray, in_place: bool = True
) -> None:
    """Raise if two arrays share memory, unless they are the same view and may be, `in_place`."""
    if share(out, array) and not (in_place and _same_view(out, array)):
        unless = " unless it is the same array" if in_place else ""
        msg = f"{argument}: must not overlap {other}{unless}, got an overlap"
        raise BnnumbaValueError(msg)


def _same_view(a: np.ndarray, b: np.ndarray) -> bool:
    return a is b or (
        a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
        and a.shape == b.shape
        and all(
            extent == 1 or p == q
            for extent, p, q in zip(a.shape, a.strides, b.strides, strict=True)
        )
    )
