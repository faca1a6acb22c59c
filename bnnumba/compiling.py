"""Who compiles, or loads compiled code: one thread at a time, and a fork waits for it."""

import contextlib
import ctypes
import functools
import itertools
import os
import threading
from collections.abc import Iterator
from typing import Any

from numba.core.compiler_lock import global_compiler_lock

from .errors import BackendError

__all__ = ["compiler_lock", "compiling", "fork_waits_for"]

# Numba's own. Its methods around it are written in Python: an interrupt there leaves it taken.
compiler_lock = global_compiler_lock._lock

# The thread that is at it.
_compiler: int | None = None


def fork_waits_for(lock: Any) -> None:
    """Have each fork wait until no other thread has a lock, an RLock of Python's.

    The child has only the thread that forked, and would wait for the locks of others for good.
    """
    if not hasattr(os, "register_at_fork"):
        return
    # An exception in a hook is only printed: with Ctrl-C in one, the fork would go on without the
    # lock. Handlers of signals run between the instructions of Python, and while `acquire` waits.
    # So there are no instructions here, `acquire` is never let wait, and a sleep of C's is none of
    # Python's.
    sleep = ctypes.CDLL(None).usleep
    sleep.restype = None
    attempts = map(lock.acquire, map(bool, map(sleep, itertools.repeat(50))))  # bool(None): False
    os.register_at_fork(
        before=functools.partial(any, attempts),
        after_in_parent=lock.release,
        after_in_child=lock.release,
    )


# The thread that waited while the handler of a signal raised an exception, or 0, and of what class.
_raised_in = ctypes.c_ulong(0)
_raised: Any = ctypes.py_object(KeyboardInterrupt)


def _keep_exception() -> Iterator[None]:
    """Keep the exception of a handler that runs when this is resumed.

    It would be lost in a later hook. A function may be interrupted before its first `try`; here the
    first instruction is inside one.
    """
    while True:
        try:
            yield
        except GeneratorExit:
            return
        except BaseException as error:
            _raised.value = type(error)
            _raised_in.value = threading.get_ident()


if hasattr(os, "register_at_fork"):
    _resume = functools.partial(next, _keep_exception(), None)
    _resume()
    # Hooks run before the fork from the last to the first: this one when the wait is over.
    os.register_at_fork(before=_resume)
# Who asks Numba for what it has further locks for takes this one, too.
fork_waits_for(compiler_lock)
if hasattr(os, "register_at_fork"):
    _raise = ctypes.pythonapi.PyThreadState_SetAsyncExc  # at the next instruction, after `os.fork`
    os.register_at_fork(
        before=functools.partial(setattr, _raised_in, "value", 0),
        after_in_parent=functools.partial(_raise, _raised_in, _raised),
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
    with compiler_lock:
        try:
            _compiler = threading.get_ident()
            yield
        finally:
            _compiler = None
