"""Whether a call may use threads: one parallel region at a time, and none after a fork.

Numba's workqueue layer aborts the process on concurrent use, GNU OpenMP kills a forked child that
uses it, and two regions at once only compete. As results do not depend on it, a call that comes
while another runs in parallel, say from a worker of someone else's pool, runs serially.
"""

import os
import threading

import numba
from numba.np.ufunc import parallel as numba_parallel

from ..compiling import compiler_lock
from ..errors import BackendError
from .worksharing import team

_region = threading.Lock()
_forked = False


def _after_fork():
    global _region, _forked
    _region = threading.Lock()
    # A child of a process that never started Numba's threads may start its own.
    _forked = getattr(numba_parallel, "_is_initialized", True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _nested():
    """Return whether this is a workqueue thread, say of a caller's own prange.

    Python did not start those. One that would start a parallel region would abort the process.
    """
    return sleep() and isinstance(threading.current_thread(), threading._DummyThread)


def run(driver, shared, *arguments):
    """Run a driver, by threads if it is to be shared and this process and moment allow it.

    MemoryError is raised where there is not enough.
    """
    if shared and not _forked and not _nested() and not _region.locked():
        # An interrupt between `acquire` and a `try` would keep the lock taken for good; entering a
        # `with` is not interrupted. Of two threads that come at once one waits for the other.
        with _region:
            enough = driver(team(), *arguments)
    else:
        enough = driver(0, *arguments)
    if not enough:
        msg = "there is no memory for the workspace of a kernel"
        raise MemoryError(msg)


def count():
    """Return how many threads a parallel region would use.

    Numba asks two locks whether its threads were started before it answers. Between calls on large
    arrays, which leave nothing of Python in the caches, that took 16 us.
    """
    if _forked:
        return 1
    if getattr(numba_parallel, "_is_initialized", False):
        return numba_parallel._get_num_threads()
    with compiler_lock:  # which a fork waits for: this starts threads
        try:
            return numba.get_num_threads()
        except ValueError as error:  # NUMBA_THREADING_LAYER names none that is here
            msg = f"Numba has no threads to start: {error}"
            raise BackendError(msg) from error


def sleep():
    """Return whether threads sleep between parallel regions, so that waking them takes a while.

    Those of the workqueue layer do. Others are busy waiting for the next region for some time.
    """
    try:
        return numba.threading_layer() == "workqueue"
    except ValueError:  # there are no threads yet
        return False
