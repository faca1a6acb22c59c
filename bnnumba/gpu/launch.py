"""From arrays to launches: the canonical view that arrays share, the kernels, their arguments."""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from . import copy, kernels
from .arrays import DeviceArray
from .jit import SIMULATED
from .plan import plan_merge, plan_passes, plan_sweeps, widest
from .simd import KINDS

__all__ = [
    "Call",
    "View",
    "canonical",
    "copy_array",
    "kernels_of",
    "merging",
    "passes",
    "real_of",
    "sweeps",
    "widest_of",
    "workspace",
]

WARPS = not SIMULATED


class Call(NamedTuple):
    """Where a call runs: its device, the handle of its stream, the library that makes arrays."""

    device: Any
    stream: int
    library: Any

    def launch(self, kernel, grid, threads, shared, *arguments):
        """Launch a kernel."""
        self.device.launch(kernel, self.stream, grid, threads, shared, *arguments)

    def empty(self, shape, dtype, like):
        """Return a new array."""
        return self.library.empty(shape, dtype, like)

    def zeros(self, shape, dtype, like):
        """Return a new array of zeros."""
        array = self.empty(shape, dtype, like)
        self.clear(array)
        return array

    def clear(self, array):
        """Set a contiguous array to zeros."""
        if array.size:
            self.device.clear(array.address, array.size * array.itemsize, self.stream)


class View(NamedTuple):
    """How arrays are seen alike: the extents of accesses, and two strides for each array."""

    kind: str
    elements: int  # per access
    columns: int  # channels per access
    rows: bool  # x[r, c], an access to a row
    channels: int
    groups: int  # of channels, as many as an access has
    steps: int  # accesses per group
    per_row: int  # accesses per row
    strides: tuple  # from n to n + 1 and from c to c + 1 in elements, for one array after another

    @property
    def size(self):
        """Values of a channel."""
        return self.steps * (self.elements // self.columns)


@lru_cache(maxsize=4096)
def canonical(layout, kind, widest_access, shape, strides, places):
    """Return the view of arrays in a layout that they share.

    Parameters
    ----------
    layout : Layout
        Of `bnnumba.layout`.
    kind : str
        A key of `simd.KINDS`.
    widest_access : tuple of int
        Most elements per access: of x[n, c, s] and of x[r, c].
    shape : tuple of int
        That of the arrays.
    strides : tuple of tuple of int
        Strides in bytes, for each array.
    places : tuple of int
        Address of each array, modulo 16.
    """
    itemsize = KINDS[kind]
    seen = []
    for own, place in zip(strides, places, strict=True):
        array = DeviceArray(None, (1 << 40) + place, shape, own, np.dtype(f"V{itemsize}"), 0)
        seen.append(layout.views(None, [array.shadow()])[0].strides)
    extents = layout.shape
    rows = len(extents) == 2
    # What an access must not straddle: the end of a row, and 16 bytes anywhere.
    inner = extents[-1]
    outer = range(len(extents) - 1)
    count = widest_access[1] if rows else widest_access[0]
    while count > 1:
        width = count * itemsize
        aligned = inner % count == 0 and all(place % width == 0 for place in places)
        if aligned and all(own[i] % width == 0 for own in seen for i in outer if extents[i] > 1):
            break
        count //= 2
    pairs = tuple(
        step // itemsize
        for own in seen
        for step in ((own[0], itemsize) if rows else (own[0], own[1]))
    )
    if rows:
        n, channels = extents
        return View(kind, count, count, True, channels, channels // count, n, 1, pairs)
    n, channels, s = extents
    per_row = s // count
    return View(kind, count, 1, False, channels, channels, n * per_row, per_row, pairs)


@lru_cache(maxsize=256)
def kernels_of(kind, count, columns, parameter):
    """Return the kernels for one kind of data, access and parameter."""
    return kernels.build(kind, count, columns, parameter)


@lru_cache(maxsize=64)
def _copies(kind, parameter):
    return copy.build(kind, parameter)


def real_of(kind):
    """Return the dtype that data of a kind is computed in."""
    return np.dtype(np.float64 if kind == "float64" else np.float32)


def _plan(function, view, arrays, traits):
    real = real_of(view.kind).itemsize
    width = view.elements * KINDS[view.kind]
    return function(
        view.groups, view.steps, view.rows, view.columns, width, real, arrays, traits, WARPS
    )


def passes(view, arrays, traits):
    """Return the plan of a single sweep over `arrays` arrays."""
    return _plan(plan_passes, view, arrays, traits)


def merging(view, plan):
    """Return the threads and the bytes of shared memory that merge a group's partial results."""
    return plan_merge(plan.parts, view.columns, real_of(view.kind).itemsize, WARPS)


def sweeps(view, arrays, traits):
    """Return the plan of two sweeps in one launch, or None."""
    return _plan(plan_sweeps, view, arrays, traits)


def widest_of(kind, traits):
    """Return the most elements per access of x[n, c, s] and of x[r, c]."""
    size = KINDS[kind]
    return widest(size, False, traits.capability), widest(size, True, traits.capability)


def partial_bytes(view, plan, fields):
    """Return how many bytes the partial results of all parts take."""
    each = fields * plan.lanes * view.columns * real_of(view.kind).itemsize
    return plan.tiles * plan.parts * each


def workspace(call, view, plan, fields, like):
    """Return memory for counters, set to 0, and partial results: the array and two addresses."""
    counters = -(-4 * (1 + plan.tiles) // 16) * 16 if plan.group else 0
    size = counters + partial_bytes(view, plan, fields)
    work = call.empty((-(-size // 4),), np.dtype(np.float32), like)
    if counters:
        call.device.clear(work.address, counters, call.stream)
    return work, work.address, work.address + counters


def copy_array(call, source, target):
    """Copy, converting where the dtypes differ."""
    if not source.size:
        return
    a = tuple(s // source.dtype.itemsize for s in source.strides)
    b = tuple(s // target.dtype.itemsize for s in target.strides)
    dimensions = copy.merged(source.shape, a, b)
    inner, outer = dimensions[: copy.DIMENSIONS], dimensions[copy.DIMENSIONS :]
    same = source.dtype == target.dtype
    found = _copies(source.dtype.name, "float32" if same else target.dtype.name)
    kernel = found.copy if same else found.convert
    threads = 32 if SIMULATED else 256
    extents, a, b = zip(*inner, strict=True)
    size = math.prod(extents)
    for index in np.ndindex(*(extent for extent, _, _ in outer)):
        from_, to = source.address, target.address
        for i, (_, source_step, target_step) in zip(index, outer, strict=True):
            from_ += i * source_step * source.dtype.itemsize
            to += i * target_step * target.dtype.itemsize
        call.launch(kernel, -(-size // threads), threads, 0, from_, to, size, *extents[:-1], *a, *b)
