"""The Python side of libbnnumba_embed: it hands compiled kernels to C, by address.

C validates, threads and calls the kernels; Python runs when a kernel is needed for the first time,
and for tensors on a GPU. `register` is called by the library's start-up code.
"""

import traceback
from typing import Any

from .. import __version__
from ..errors import BackendError, BnnumbaTypeError, BnnumbaValueError

__all__ = ["register"]

_ARGUMENT, _DTYPE, _MEMORY, _UNSUPPORTED, _PYTHON = 1, 2, 4, 7, 8


def _gpu() -> Any:
    """Return the entry points for tensors on a GPU, or raise if the backend cannot be loaded."""
    try:
        from . import on_device
    except ImportError as error:
        msg = (
            "x: is on a GPU, which needs numba-cuda: pip install 'bnnumba[cu13]', "
            f"or 'bnnumba[cu12]' for CUDA 12; it could not be imported: {error}"
        )
        raise BackendError(msg) from error
    return on_device


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

    def failed(_kind: type, error: BaseException, _traceback: Any) -> int | None:
        """Keep the error's text for bnnumba_last_error and return its status."""
        status = _status(error)
        text = str(error) if status != _PYTHON else traceback.format_exception_only(error)[-1]
        lib.bn_python_failed(status, text.strip().encode())
        return status

    def failed_without_status(*error: Any) -> None:
        failed(*error)

    @ffi.def_extern(error=0, onerror=failed_without_status)
    def bn_python_start(version, agreed, cpu_out, capacity):
        import llvmlite.binding as llvm
        from numba import config

        from .job import agreement

        built = ffi.string(version).decode(), ffi.string(agreed).decode()
        found = __version__, agreement()
        if built != found:
            msg = f"the library was built for bnnumba {built[0]}, and this is another {found[0]}"
            raise BackendError(msg)
        name = (config.CPU_NAME or llvm.get_host_cpu_name()).encode()[: capacity - 1]
        ffi.memmove(cpu_out, name + b"\0", len(name) + 1)
        return 1

    @ffi.def_extern(error=0, onerror=failed_without_status)
    def bn_python_kernel(name):
        from numba.core.compiler_lock import global_compiler_lock

        key = ffi.string(name).decode()
        with global_compiler_lock:  # which os.fork waits for
            from .entries import entry

            if key not in callbacks:
                callbacks[key] = entry(key)
        return callbacks[key].address

    def plain(value):
        """Return an argument of C as a number, parameters as several."""
        if isinstance(value, (int, float)):
            return value
        if ffi.typeof(value) is not params_type:
            return int(ffi.cast("intptr_t", value))
        params = _gpu().Params
        return params(*(plain(getattr(value, name)) for name in params._fields))

    def entry_point(function):
        """Let C call a function of `on_device`."""

        def call(*arguments):
            getattr(_gpu(), function)(*map(plain, arguments))
            return 0

        ffi.def_extern(f"bn_python_{function}_dl", error=_PYTHON, onerror=failed)(call)

    params_type = ffi.typeof("bnnumba_params *")
    for function in (
        "moments",
        "forward_training",
        "forward_inference",
        "backward_training",
        "backward_inference",
    ):
        entry_point(function)
