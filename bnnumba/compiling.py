"""Who compiles, or loads compiled code: one thread at a time, and a fork waits for it."""

import atexit
import contextlib
import ctypes
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

from numba.core import entrypoints
from numba.core.compiler_lock import global_compiler_lock

from .errors import BackendError

__all__ = ["apart", "compiler_lock", "compiling", "fork_waits_for"]

# Numba's own. Its methods around it are written in Python: an interrupt there leaves it taken.
compiler_lock = global_compiler_lock._lock

# The thread that is at it.
_compiler: int | None = None

# The threads that `apart` has started.
_apart: set[threading.Thread] = set()


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


def apart(function: Callable, *arguments: Any) -> Any:
    """Call what compiles, or loads compiled code, where no Ctrl-C can end it halfway.

    Numba does not recover from that: later compilations fail, or other threads wait for good.
    Python handles signals in the main thread, so that another one is started here. It goes on after
    an interrupt, and whoever compiles next waits for it. So may a handler that calls.
    """
    # Another thread would wait for the lock where this one has it, which is what is asked here.
    main = threading.current_thread() is threading.main_thread()
    if not main or global_compiler_lock.is_locked():
        return function(*arguments)
    # Numba imports its extensions, and would there wait for one that this thread is importing.
    entrypoints.init_all()
    outcome: SimpleQueue = SimpleQueue()

    def work() -> None:
        thread = threading.current_thread()
        _apart.add(thread)
        try:
            outcome.put((function(*arguments), None))
        except BaseException as error:
            outcome.put((None, error))
        finally:
            _apart.discard(thread)

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
    threads = list(_apart)
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
