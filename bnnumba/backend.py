"""Which backend does the work of a call."""

from __future__ import annotations

from typing import Any

from . import on_cpu
from .dispatch import Library

__all__ = ["backend_of"]


def backend_of(library: Library) -> Any:
    """Return the module that works on the arrays of a library: `on_cpu`, or `on_device`.

    Both have the same functions. The one for GPUs is loaded when it is first needed.
    """
    if not library.on_device:
        return on_cpu
    from . import on_device

    return on_device
