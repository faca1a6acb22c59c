"""The Python side of libbnnumba_embed: it hands compiled kernels to C, by address.

C validates, threads and calls the kernels; Python runs when a kernel is needed for the first time,
and for tensors that C cannot reach. `register` is called by the library's start-up code.
"""

import threading
import traceback
from typing import Any

import numpy as np

from .. import __version__, moments
from ..dispatch import library_of
from ..errors import BackendError, BnnumbaTypeError, BnnumbaValueError

__all__ = ["register"]

_ARGUMENT, _DTYPE, _MEMORY, _UNSUPPORTED, _PYTHON = 1, 2, 4, 7, 8


class _Tensor:
    """A DLTensor of the caller, as far as dispatch looks at it."""

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._tensor.device.device_type, self._tensor.device.device_id

    def __dlpack__(self, **_options: Any) -> Any:
        msg = "a tensor of the C caller can be read on its own device only"
        raise BufferError(msg)


def _status(error: BaseException) -> int:
    if isinstance(error, BackendError):
        return _UNSUPPORTED
    if isinstance(error, BnnumbaTypeError):
        return _DTYPE
    if isinstance(error, BnnumbaValueError):
        return _ARGUMENT
    if isinstance(error, MemoryError):
        return _MEMORY
    return _PYTHON


def register(ffi: Any, lib: Any) -> None:
    """Define the entry points that C calls."""
    callbacks: dict[str, Any] = {}
    compiling = threading.Lock()

    def failed(_kind: type, error: BaseException, _traceback: Any) -> int | None:
        """Keep the error's text for bnnumba_last_error and return its status."""
        status = _status(error)
        text = str(error) if status != _PYTHON else traceback.format_exception_only(error)[-1]
        lib.bn_python_failed(status, text.strip().encode())
        return status

    def failed_without_status(*error: Any) -> None:
        failed(*error)

    @ffi.def_extern(error=0, onerror=failed_without_status)
    def bn_python_start(version, fields, cpu_out, capacity):
        from numba.core.registry import cpu_target

        from .entries import FIELDS

        built = ffi.string(version).decode(), ffi.string(fields).decode()
        found = __version__, " ".join(FIELDS)
        if built != found:
            msg = f"the library was built for bnnumba {built[0]}, and this is another {found[0]}"
            raise BackendError(msg)
        name = cpu_target.target_context.codegen()._get_host_cpu_name().encode()[: capacity - 1]
        ffi.memmove(cpu_out, name + b"\0", len(name) + 1)
        return 1

    @ffi.def_extern(error=0, onerror=failed_without_status)
    def bn_python_kernel(name):
        from .entries import entry

        key = ffi.string(name).decode()
        with compiling:
            if key not in callbacks:
                callbacks[key] = entry(key)
        return callbacks[key].address

    def take_moments(tensor, axis):
        value = _Tensor(tensor)
        library_of("x", value)
        return moments(value, axis=axis)

    @ffi.def_extern(error=_PYTHON, onerror=failed)
    def bn_python_moments_dl(x, axis, count_out, mean_out, m2_out):
        m = take_moments(x, axis)
        if count_out:
            count_out[0] = m.count
        for out, row in ((mean_out, m.mean), (m2_out, m.m2)):
            ffi.memmove(out, np.ascontiguousarray(row), row.nbytes)
        return 0

    @ffi.def_extern(error=_PYTHON, onerror=failed)
    def bn_python_running_update_dl(handle, x, axis):
        m = take_moments(x, axis)
        mean, m2 = (
            ffi.from_buffer("double[]", np.ascontiguousarray(row)) for row in (m.mean, m.m2)
        )
        return lib.bnnumba_running_add(handle, m.mean.size, m.count, mean, m2)

    def on_device(x, *_arguments):
        library_of("x", _Tensor(x))
        msg = "x: tensors on a GPU are not supported by this function"
        raise BackendError(msg)

    for name in ("forward", "backward"):
        for mode in ("training", "inference"):
            entry_point = ffi.def_extern(
                f"bn_python_{name}_{mode}_dl", error=_PYTHON, onerror=failed
            )
            entry_point(on_device)
