"""A fork waits for locks that other threads have, and Ctrl-C for the fork."""

import ctypes
import functools
import itertools
import os
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["fork_waits_for"]


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
    _raise = ctypes.pythonapi.PyThreadState_SetAsyncExc  # at the next instruction, after `os.fork`
    _forget = functools.partial(setattr, _raised_in, "value", 0)
    # Hooks run before the fork from the last to the first: this one when all waits are over.
    os.register_at_fork(
        before=_resume, after_in_parent=functools.partial(_raise, _raised_in, _raised)
    )
    os.register_at_fork(after_in_parent=_forget, after_in_child=_forget)
