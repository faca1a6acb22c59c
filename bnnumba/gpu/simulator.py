"""What kernels are made of, in Python, for the arrays of Numba's CUDA simulator.

The twin of `bnnumba.gpu.jit`, `simd` and `memory`: vectors are small NumPy arrays, addresses those
of host memory. Every access is checked to lie in memory that was registered, and every barrier to
be met by all threads of a block. Blocks run one after another, the threads of a block in turns,
each up to the next barrier.

Numba's own simulation of a launch has a thread of Python's for each, which takes far longer.
"""

import ctypes
import threading
from types import SimpleNamespace

import ml_dtypes
import numpy as np

from ..errors import BackendError

__all__ = ["MEMORY", "inlined", "machine", "register", "simulate"]

# Address and size of the arrays that kernels may touch.
MEMORY: dict[int, int] = {}
# Which thread of which block runs, what it shares with the others of its block, and who comes next.
_now = threading.local()
_DTYPES = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def inlined(function):
    return function


def thread():
    return _now.thread


def threads():
    return _now.threads


def block():
    return _now.block


def sync():
    _now.scheduler.switch()


def like(vector, scalar):
    return np.full_like(vector, scalar)


def fma(a, b, c):
    return a * b + c


def larger(a, b):
    return np.where(a > b, a, b)


def smaller(a, b):
    return np.where(a < b, a, b)


def inverse_root(vector):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(vector == 0, vector.dtype.type(0), 1 / np.sqrt(vector))


def _memory(address, dtype, count, alignment):
    """Return a view of memory, which must be aligned and belong to a registered array."""
    size = dtype.itemsize * count
    if address % alignment:
        msg = f"access to {address:#x} is not aligned to {alignment} bytes"
        raise ValueError(msg)
    if not any(start <= address and address + size <= start + n for start, n in MEMORY.items()):
        msg = f"access to {size} bytes at {address:#x}, which is in no array"
        raise ValueError(msg)
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype)


def atomic_add(address, index, value):
    # Blocks run one after another, and one thread of a block at most comes here at a time.
    place = _memory(address + 4 * index, np.dtype(np.int32), 1, 4)
    old = int(place[0])
    place[0] += value
    return old


def drawn(address, index):
    return atomic_add(address, index, 1)


def counted(address, index):
    return atomic_add(address, index, 0)


def pause():
    pass


def quotient(a, b):
    return a // b


def exponent(power):
    return power.bit_length() - 1


def _shared(offset, dtype, count):
    size = dtype.itemsize * count
    found = _now.shared[offset : offset + size]
    if found.size < size:
        msg = f"access to {size} bytes at {offset} of shared memory"
        raise ValueError(msg)
    return found.view(dtype)


def machine(kind, count, columns, parameter):
    """Return the typed operations of a kernel, see `bnnumba.gpu.memory.machine`."""
    stored = _DTYPES[kind]
    real = np.dtype(np.float64 if kind == "float64" else np.float32)
    param = _DTYPES[parameter]
    size, width = stored.itemsize, stored.itemsize * count

    def fetch(address, index):
        return _memory(address + index * size, stored, count, width).copy()

    def put(address, index, value):
        _memory(address + index * size, stored, count, width)[:] = value

    def row_pair(dtype, alignment):
        def read(address, index):
            at = address + index * dtype.itemsize
            return _memory(at, dtype, columns, alignment).astype(real)

        def write(address, index, value):
            at = address + index * dtype.itemsize
            _memory(at, dtype, columns, alignment)[:] = value

        return read, write

    def rotated(distance):
        return lambda value: np.roll(value, -distance)

    def keep(offset, value):
        _shared(offset, stored, count)[:] = value

    def leave(offset, value):
        _shared(offset, real, columns)[:] = value

    def leave_count(offset, value):
        _shared(offset, real, 1)[0] = value

    def leave_ticket(value):
        _shared(0, np.dtype(np.int64), 1)[0] = value

    read, write = row_pair(real, min(16, columns * real.itemsize))
    read_param, write_param = row_pair(param, param.itemsize)
    return SimpleNamespace(
        size=size, count=count, columns=columns, real=real.type,
        fetch=fetch, put=put, widen=lambda value: value.astype(real),
        narrow=lambda value: value.astype(stored),
        kept=lambda offset: _shared(offset, stored, count).copy(), keep=keep,
        take=lambda offset: _shared(offset, real, columns).copy(), leave=leave,
        take_count=lambda offset: _shared(offset, real, 1)[0], leave_count=leave_count,
        take_ticket=lambda: int(_shared(0, np.dtype(np.int64), 1)[0]), leave_ticket=leave_ticket,
        read=read, write=write, read_param=read_param, write_param=write_param,
        spread=lambda value: value if columns == count else np.full(count, value[0], real),
        head=lambda value: value if columns == count else value[:1],
        after=None, count_after=None,  # no warps
        rotate1=rotated(1), rotate2=rotated(2), rotate4=rotated(4),
        zero=lambda: np.zeros(count, real), zero_row=lambda: np.zeros(columns, real),
    )  # fmt: skip


def register(array):
    """Let kernels touch an array's memory from now on; return its address."""
    low, high = np.lib.array_utils.byte_bounds(array)
    MEMORY[low] = max(MEMORY.get(low, 0), high - low)
    return array.ctypes.data


def simulate(function, grid, threads, shared, arguments):
    """Run a kernel."""
    try:
        import greenlet
    except ImportError as error:
        msg = "bnnumba needs greenlet for Numba's CUDA simulator: pip install greenlet"
        raise BackendError(msg) from error

    def run():
        with np.errstate(over="ignore", invalid="ignore"):
            function(*arguments)

    _now.threads, _now.scheduler = threads, greenlet.getcurrent()
    for _now.block in range(grid):
        _now.shared = np.full(shared, 0xFF, np.uint8)  # NaN, whichever float is read
        team = [greenlet.greenlet(run) for _ in range(threads)]
        while team:
            for _now.thread, member in enumerate(team):
                member.switch()
            waiting = [member for member in team if not member.dead]
            if 0 < len(waiting) < threads:
                msg = f"a barrier that {len(waiting)} of {threads} threads come to"
                raise ValueError(msg)
            team = waiting
