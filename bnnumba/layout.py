"""From shape and strides to a canonical view, without a copy where the strides allow it.

Two views are canonical, because kernels run through contiguous runs of memory:

* ``ncs``: x[n, c, s], each row x[n, c, :] contiguous, as a contiguous (N, C, H, W) array has it;
* ``rc``: x[r, c], the channels of a row contiguous, as a table or a channels-last image has it.

Where the rows of ncs are short, and those of all channels stand side by side, they are one row of
the rc view to kernels that take several columns x[r, q] for each channel.

Statistics do not depend on the order of the values of a channel, so that the other axes may be
taken in any order, as long as all arrays of a call are taken in the same one.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Layout", "candidates", "fits", "nearest", "shared_layout"]


class Layout(NamedTuple):
    """A way to see an array as a canonical view: an order of its axes, then a shape."""

    order: tuple[int, ...] | None
    shape: tuple[int, ...]

    def views(self, kind: Any, arrays: Iterable[np.ndarray]) -> list[np.ndarray]:
        """Return the canonical views of arrays that this layout fits, seen as another dtype."""
        order, shape = self
        found = []
        if order is None and kind is None:  # the usual case
            for array in arrays:  # a comprehension would be another call
                found.append(array.reshape(shape))
            return found
        for array in arrays:
            view = array.reshape(shape) if order is None else array.transpose(order).reshape(shape)
            found.append(view if kind is None else view.view(kind))
        return found

    def empty(self, array: np.ndarray) -> np.ndarray:
        """Return a new array of the shape and dtype of `array` that this layout sees."""
        if self.order is None:
            return np.empty(array.shape, array.dtype)
        stored = np.empty([array.shape[a] for a in self.order], array.dtype)
        return stored.transpose(np.argsort(self.order))


def _merges(shape: tuple[int, ...], strides: tuple[int, ...], axes: list[int]) -> bool:
    """Whether axes, from the outermost in, are one axis with a single stride."""
    return all(strides[a] == strides[b] * shape[b] for a, b in pairwise(axes))


def _extent(shape: tuple[int, ...], axes: Iterable[int]) -> int:
    return math.prod(shape[axis] for axis in axes)


@lru_cache(maxsize=4096)
def candidates(
    shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int, axis: int, short: int = 0
) -> tuple[Layout, ...]:
    """Return the layouts that need no copy, the fastest first; `axis` is not negative.

    Axes of extent 1 are moved to the front, where their strides do not matter. Rows of up to
    `short` values are one with those of the other channels.
    """
    ndim = len(shape)
    ones = [a for a in range(ndim) if shape[a] == 1 and a != axis]
    others = [a for a in range(ndim) if shape[a] != 1 and a != axis]
    others.sort(key=lambda a: -abs(strides[a]))
    found = []
    channels = shape[axis]

    def add(order: list[int], view_shape: tuple[int, ...]) -> None:
        plain = order == list(range(ndim))
        found.append(Layout(None if plain else tuple(order), view_shape))

    # The longest inner run of axes that is contiguous makes s; the outer rest must merge to n.
    for cut in range(len(others) + 1):
        outer, inner = others[:cut], others[cut:]
        unit = not inner or (strides[inner[-1]] == itemsize and _merges(shape, strides, inner))
        if unit and _merges(shape, strides, outer):
            n, s = _extent(shape, outer), _extent(shape, inner)
            order = ones + outer + [axis] + inner
            if channels > 1 and 1 < s <= short and _merges(shape, strides, [axis, *inner]):
                add(order, (n, channels * s))
            add(order, (n, channels, s))
            break
    if (channels == 1 or strides[axis] == itemsize) and _merges(shape, strides, others):
        rows = _extent(shape, others)
        add([*ones, *others, axis], (rows, channels))
        # Rows of one value would waste the vectors: there the channels are the better direction.
        if len(found) == 2 and s < channels:
            found.reverse()
    elif len(found) == 1 and s == 1 and channels > 1:
        found.clear()  # one value per row, and the channels not contiguous: better copied
    return tuple(found)


def shared_layout(axis: int, arrays: Sequence[Any], short: int = 0) -> Layout | None:
    """Return a layout that all arrays, of one shape and dtype, have without a copy, or None.

    See `candidates` for `short`.
    """
    contiguous = True
    for array in arrays:
        flags = array.flags
        if not flags.aligned:
            return None
        contiguous = contiguous and flags.c_contiguous
    if contiguous:  # which is sooner known than the strides are compared
        return _contiguous(axis, short, array.shape)
    strides = tuple([array.strides for array in arrays])
    return _shared(axis, short, array.shape, array.itemsize, strides)


@lru_cache(maxsize=4096)
def _contiguous(axis: int, short: int, shape: tuple[int, ...]) -> Layout | None:
    strides = tuple([math.prod(shape[a + 1 :]) for a in range(len(shape))])
    return _shared(axis, short, shape, 1, (strides,))


@lru_cache(maxsize=4096)
def _shared(
    axis: int, short: int, shape: tuple[int, ...], itemsize: int, strides: Sequence[tuple[int, ...]]
) -> Layout | None:
    found = candidates(shape, strides[0], itemsize, axis, short)
    for others in strides[1:]:
        also = candidates(shape, others, itemsize, axis, short)
        found = tuple(layout for layout in found if layout in also)
    return found[0] if found else None


def fits(array: np.ndarray, layout: Layout, axis: int, short: int = 0) -> bool:
    """Whether `layout` sees an array without a copy."""
    return array.flags.aligned and layout in candidates(
        array.shape, array.strides, array.itemsize, axis, short
    )


def nearest(array: np.ndarray, axis: int, short: int = 0) -> Layout:
    """Return the layout for a copy of an array that has none of its own."""
    shape = array.shape
    others = [a for a in range(array.ndim) if a != axis]
    innermost = min(map(abs, array.strides))
    if axis == array.ndim - 1 or abs(array.strides[axis]) == innermost:
        return Layout((*others, axis), (_extent(shape, others), shape[axis]))
    n, channels, s = _extent(shape, others[:axis]), shape[axis], _extent(shape, others[axis:])
    together = channels > 1 and 1 < s <= short
    return Layout(None, (n, channels * s) if together else (n, channels, s))
