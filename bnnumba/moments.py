"""Moments of channels: count, mean and the sum of squared deviations, exact to merge."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from .backend import backend_of
from .dispatch import Array
from .errors import BnnumbaTypeError, BnnumbaValueError
from .forking import fork_waits_for
from .results import Moments, check_moments
from .validation import check_integer, check_numbers, check_size, open_data

__all__ = ["Moments", "RunningMoments", "check_features", "moments"]

# Merges are short: one lock for all streams, which a fork can wait for. A signal handler may merge
# while its own thread does.
_lock = threading.RLock()
fork_waits_for(_lock)


class _Locked(contextlib.ContextDecorator):
    """Keeps other threads out of a function, in no instruction of ours that Ctrl-C could hit."""

    __enter__ = staticmethod(_lock.acquire)
    __exit__ = staticmethod(_lock.__exit__)


def moments(x: Array, *, axis: int = 1) -> Moments:
    """Return the moments of each channel in float64, from one sweep over the data.

    Parameters
    ----------
    x : array, rank >= 2
        float32, float64, float16 or bfloat16, with any strides, of any library.
    axis : int
        The axis of the channels; the moments go over all others.

    Returns
    -------
    Moments
        With NumPy arrays of float64, whatever the library and dtype of `x`.

    Raises
    ------
    BnnumbaTypeError, BnnumbaValueError
        If `x` is not an array, of another dtype, of rank below 2, or has no such axis.

    Notes
    -----
    The data is cut into chunks by its shape alone. Each is summed about a pivot close to its mean,
    and chunks are merged in a fixed order [1]_, so that the result is accurate to the last digits
    for data of any offset and does not depend on the number of threads.

    References
    ----------
    .. [1] T. F. Chan, G. H. Golub and R. J. LeVeque, "Algorithms for Computing the Sample
       Variance", The American Statistician 37(3), 1983.

    Examples
    --------
    >>> import numpy as np
    >>> import bnnumba as bn
    >>> m = bn.moments(np.array([[1.0, 1e8], [3.0, 1e8 + 2]]))
    >>> m.mean, m.var()
    (array([2.00000000e+00, 1.00000001e+08]), array([1., 1.]))
    """
    library, array, axis = open_data(x, axis)
    return backend_of(library).moments(library, array, axis)


class RunningMoments:
    """Mean and variance of a stream: any number of updates and merges, in any order.

    Every value weighs the same, whichever batch it came with. The result is that of one pass over
    all values, to rounding. Threads may update and merge into the same object.

    Parameters
    ----------
    num_features : int
        The number of channels, C.

    Attributes
    ----------
    num_features : int
        The number of channels, C.
    count : int
        Values per channel so far.
    mean : ndarray, shape (C,), float64
        The mean of each channel; 0 before the first value.
    moments : Moments
        A copy of what has been seen so far.

    Raises
    ------
    BnnumbaTypeError, BnnumbaValueError
        If `num_features` is not a non-negative integer.

    See Also
    --------
    sklearn.preprocessing.StandardScaler.partial_fit : the same statistics of a
        table, except that it leaves out NaN; slower.

    Examples
    --------
    >>> import numpy as np
    >>> import bnnumba as bn
    >>> running = bn.RunningMoments(2)
    >>> for chunk in np.arange(12.0).reshape(3, 2, 2):
    ...     running.update(chunk)
    >>> running.count, running.mean, running.var()
    (6, array([5., 6.]), array([11.66666667, 11.66666667]))
    """

    def __init__(self, num_features: int) -> None:
        channels = check_features(num_features)
        # One attribute, replaced as a whole: an interrupt leaves the old moments or the new.
        self._moments = Moments(0, np.zeros(channels), np.zeros(channels))

    @property
    def num_features(self) -> int:
        """The number of channels."""
        return self._moments.mean.size

    @property
    def count(self) -> int:
        """Values per channel so far."""
        return self._moments.count

    @property
    def mean(self) -> np.ndarray:
        """The mean of each channel, a copy."""
        return self._moments.mean.copy()

    @property
    def moments(self) -> Moments:
        """The moments so far, a copy."""
        return self._moments.copy()

    def var(self, correction: float = 0) -> np.ndarray:
        """Return ``m2 / (count - correction)``, NaN for no more than `correction` values."""
        return self._moments.var(correction)

    def std(self, correction: float = 0) -> np.ndarray:
        """Return the standard deviation of each channel."""
        return self._moments.std(correction)

    def update(self, x: Array, axis: int = 1) -> None:
        """Take in a batch.

        Parameters
        ----------
        x : array, rank >= 2
            The batch, as for :func:`moments`, with `num_features` channels.
        axis : int
            The axis of the channels.

        Raises
        ------
        BnnumbaTypeError, BnnumbaValueError
            If an argument is of a wrong kind, dtype or shape; nothing has changed then.
        """
        library, array, axis = open_data(x, axis)
        check_size(array.shape, axis, self.num_features)
        self._take_in(backend_of(library).moments(library, array, axis))

    @_Locked()
    def _take_in(self, new: Moments) -> None:
        while True:
            old = self._moments
            merged = old.merge(new)
            if self._moments is old:  # else a signal handler came in between
                self._moments = merged
                return

    def merge(self, other: RunningMoments | Moments) -> None:
        """Take in all that another stream has seen, or moments from elsewhere.

        Parameters
        ----------
        other : RunningMoments or Moments
            Of as many channels; it stays as it is.

        Raises
        ------
        BnnumbaTypeError, BnnumbaValueError
            If `other` is something else or has another number of channels.
        """
        new = other._moments if isinstance(other, RunningMoments) else other
        check_moments("other", new, self.num_features)
        self._take_in(new)

    def state_dict(self) -> dict[str, Any]:
        """Return a snapshot to store: ``count`` (int), ``mean``, ``m2``, ``rest`` (float64 arrays).

        ``rest`` is what rounding to float64 leaves of the mean.
        """
        m = self.moments
        return {"count": m.count, "mean": m.mean, "m2": m.m2, "rest": m._rest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a snapshot of as many channels; after an error nothing has changed.

        ``rest`` may be missing, and then is 0.
        """
        if not isinstance(state, Mapping):
            msg = f"state: expected a dict, got {type(state).__name__}"
            raise BnnumbaTypeError(msg)
        if set(state) - {"rest"} != {"count", "mean", "m2"}:
            msg = (
                "state: expected the keys ['count', 'm2', 'mean'] and perhaps 'rest', "
                f"got {sorted(map(str, state))}"
            )
            raise BnnumbaValueError(msg)
        new = Moments(state["count"], state["mean"], state["m2"])
        check_moments("state", new, self.num_features)
        if "rest" in state:
            rest = check_numbers("rest", state["rest"])
            if rest.shape != new.mean.shape:
                msg = f"rest: expected shape {new.mean.shape}, got {rest.shape}"
                raise BnnumbaValueError(msg)
            new._rest = rest.astype(np.float64)
            if not np.all((rest == 0) | (np.abs(new._rest) <= np.spacing(np.abs(new.mean)))):
                msg = f"rest: expected what rounding leaves of the means, got {rest}"
                raise BnnumbaValueError(msg)
        self._moments = new.copy()

    def __repr__(self) -> str:
        return f"RunningMoments({self.num_features}, count={self.count})"


def check_features(num_features: Any) -> int:
    """Return a number of channels."""
    number = check_integer("num_features", num_features)
    if not 0 <= number < 2**48:  # more are no size of an array
        msg = f"num_features: expected a number from 0 to 2**48 - 1, got {number}"
        raise BnnumbaValueError(msg)
    return number
