"""Who compiles, or loads compiled code: one thread at a time, and a fork waits for it."""

import contextlib
import os
import threading
from collections.abc import Iterator

from numba.core.compiler_lock import global_compiler_lock

from .errors import BackendError

__all__ = ["compiling"]

# The thread that is at it.
_compiler: int | None = None

if hasattr(os, "register_at_fork"):
    # A fork waits for whoever compiles, or asks Numba for what it has locks of its own for: the
    # child has only the thread that forked, and would wait for the locks of others for good.
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Keep other threads from compiling; raise where this one is at it already."""
    global _compiler
    if _compiler == threading.get_ident():
        msg = (
            "bnnumba was called by a signal handler or a finalizer while the same thread was "
            "compiling, or loading compiled code; make the first call of each kind before"
        )
        raise BackendError(msg)
    with global_compiler_lock:
        try:
            _compiler = threading.get_ident()
            yield
        finally:
            _compiler = None
