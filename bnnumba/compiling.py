"""Who compiles, or loads compiled code: one thread at a time, and a fork waits for it."""

import atexit
import contextlib
import ctypes
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from numba.core import entrypoints
from numba.core.compiler_lock import global_compiler_lock

from .errors import BackendError
from .forking import fork_waits_for

__all__ = ["compiler_lock", "compiling", "uninterrupted"]

# Numba's own. Its methods around it are written in Python: an interrupt there leaves it taken.
compiler_lock = global_compiler_lock._lock

# The thread that is at it.
_compiler: int | None = None

# The threads that `uninterrupted` has started, and the stack that compiling may need.
_STACK = 2**23
_at_work: set[threading.Thread] = set()

# Who asks Numba for what it has further locks for takes this one, too.
fork_waits_for(compiler_lock)


def uninterrupted(function: Callable, *arguments: Any) -> Any:
    """Call what compiles, or loads compiled code, where no Ctrl-C can end it halfway.

    Numba does not recover from that: later compilations fail, or other threads wait for good.
    Python handles signals in the main thread, so that another one is started here. It goes on after
    an interrupt, and whoever compiles next waits for it. So may a handler that calls.
    """
    # Another thread would wait for the lock where this one has it, which is what is asked here.
    main = threading.current_thread() is threading.main_thread()
    if not main or global_compiler_lock.is_locked() or 0 < threading.stack_size() < _STACK:
        return function(*arguments)
    # Numba imports its extensions, and would there wait for one that this thread is importing.
    entrypoints.init_all()
    outcome: queue.SimpleQueue = queue.SimpleQueue()

    def work() -> None:
        thread = threading.current_thread()
        _at_work.add(thread)
        try:
            outcome.put((function(*arguments), None))
        except BaseException as error:
            outcome.put((None, error))
        finally:
            _at_work.discard(thread)

    thread = threading.Thread(target=work, name="bnnumba compiles", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # there are too many, or the interpreter is about to end
        return function(*arguments)
    # Unlike this, `join` may leave a thread that is at work marked as ended when interrupted.
    result, error = outcome.get()
    thread.join()
    if error is not None:
        raise error
    return result


@atexit.register
def _end() -> None:
    """End what an interrupt has left at work: LLVM must not be while the process ends."""
    threads = list(_at_work)
    for thread in threads:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)
        )
    for thread in threads:
        thread.join()


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
