"""What the public functions return: moments, gradients, and what a forward pass saves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from . import cpu
from .dispatch import Array, Library, library_of
from .errors import BnnumbaTypeError, BnnumbaValueError
from .validation import check_integer, check_numbers, check_real

__all__ = ["Gradients", "Moments", "Saved", "check_moments"]

_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
_TOO_MANY = 2**63  # values to count


def _variance(count: int, m2: np.ndarray, correction: float) -> np.ndarray:
    freedom = count - check_real("correction", correction)
    return m2 / freedom if freedom > 0 else np.full_like(m2, np.nan)


class Moments:
    """The count, mean and m2 of each channel: a value to keep, merge, send and normalize with.

    Attributes
    ----------
    count : int
        Values per channel.
    mean : ndarray, shape (C,), float64
        The mean of each channel; 0 where `count` is 0.
    m2 : ndarray, shape (C,), float64
        The sum of squared deviations from the mean.

    Examples
    --------
    >>> import numpy as np
    >>> import bnnumba as bn
    >>> a, b = bn.moments(np.array([[1.0], [2.0]])), bn.moments(np.array([[6.0]]))
    >>> m = a.merge(b)
    >>> m.count, m.mean, m.var()
    (3, array([3.]), array([4.66666667]))
    """

    # What rounding to float64 leaves of the mean goes with it: see `cpu.merge_moments`. The arrays
    # are read-only attributes, as the kernels rely on their shapes.
    __slots__ = ("_count", "_m2", "_mean", "_rest")

    def __init__(self, count: SupportsIndex, mean: ArrayLike, m2: ArrayLike) -> None:
        """Take copies of the numbers.

        Parameters
        ----------
        count : int
            Values per channel, from 0 to 2**63 - 1.
        mean, m2 : array_like, shape (C,)
            The mean and the sum of squared deviations of each channel, which is not negative.

        Raises
        ------
        BnnumbaTypeError, BnnumbaValueError
            If a value is no number, or not in its range, or the shapes differ.
        """
        self._count = check_integer("count", count)
        self._mean = _statistic("mean", mean)
        self._m2 = _statistic("m2", m2)
        if self.mean.ndim != 1 or self.mean.shape != self.m2.shape:
            msg = (
                "mean, m2: expected two arrays of shape (C,), "
                f"got {self.mean.shape} and {self.m2.shape}"
            )
            raise BnnumbaValueError(msg)
        if not 0 <= self.count < _TOO_MANY:
            msg = f"count: expected a number from 0 to 2**63 - 1, got {count}"
            raise BnnumbaValueError(msg)
        if np.any(self.m2 < 0):
            msg = f"m2: expected numbers that are not negative, got {self.m2.min()}"
            raise BnnumbaValueError(msg)
        self._rest = np.zeros(self.mean.size)

    @classmethod
    def _with_rest(cls, count: int, mean: np.ndarray, m2: np.ndarray, rest: np.ndarray) -> Moments:
        """Return moments whose mean is ``mean + rest``, unchecked."""
        moments = cls.__new__(cls)
        moments._count, moments._mean, moments._m2, moments._rest = count, mean, m2, rest
        return moments

    @property
    def count(self) -> int:
        """Values per channel."""
        return self._count

    @property
    def mean(self) -> np.ndarray:
        """The mean of each channel."""
        return self._mean

    @property
    def m2(self) -> np.ndarray:
        """The sum of squared deviations of each channel."""
        return self._m2

    def copy(self) -> Moments:
        """Return moments with arrays of their own."""
        return Moments._with_rest(self.count, self.mean.copy(), self.m2.copy(), self._rest.copy())

    def var(self, correction: float = 0) -> np.ndarray:
        """Return ``m2 / (count - correction)``, NaN for no more than `correction` values."""
        return _variance(self.count, self.m2, correction)

    def std(self, correction: float = 0) -> np.ndarray:
        """Return the standard deviation of each channel."""
        return np.sqrt(self.var(correction))

    def merge(self, other: Moments) -> Moments:
        r"""Return the moments of the values of both, as if they had been seen together.

        With :math:`\delta = \mu_b - \mu_a` and :math:`n = n_a + n_b` (Chan, Golub & LeVeque 1983):

        .. math::
            \mu = \mu_a + \delta \, \frac{n_b}{n}, \qquad
            m_2 = m_{2,a} + m_{2,b} + \delta^2 \, \frac{n_a n_b}{n}

        Parameters
        ----------
        other : Moments
            Of as many channels.

        Raises
        ------
        BnnumbaTypeError, BnnumbaValueError
            If `other` is something else, or has another number of channels.
        """
        check_moments("other", other, self.mean.size)
        if self.count + other.count >= _TOO_MANY:
            msg = (
                "other: expected fewer than 2**63 values with those here, "
                f"got {self.count} and {other.count}"
            )
            raise BnnumbaValueError(msg)
        merged = self.copy()
        if other.count:
            cpu.merge_moments(
                self.count, merged.mean, merged._rest, merged.m2, other.count, other.mean,
                other._rest, other.m2,
            )  # fmt: skip
            merged._count += other.count
        return merged

    def __iter__(self) -> Iterator[Any]:
        """Iterate over ``count, mean, m2``."""
        return iter((self.count, self.mean, self.m2))

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same numbers, NaN being equal to NaN."""
        if not isinstance(other, Moments):
            return NotImplemented
        return (
            self.count == other.count
            and np.array_equal(self.mean, other.mean, equal_nan=True)
            and np.array_equal(self.m2, other.m2, equal_nan=True)
        )

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self)._with_rest, (self.count, self.mean, self.m2, self._rest)

    def __repr__(self) -> str:
        return f"Moments(count={self.count}, mean={self.mean!r}, m2={self.m2!r})"


def _statistic(name: str, value: Any) -> np.ndarray:
    """Return numbers in an array of float64 of our own."""
    return check_numbers(name, value).astype(np.float64)


def check_moments(argument: str, value: Any, channels: int | None = None) -> None:
    """Raise unless `value` is Moments, of that many channels."""
    if not isinstance(value, Moments):
        hint = "; pass its moments" if isinstance(getattr(value, "moments", None), Moments) else ""
        msg = f"{argument}: expected Moments, got {type(value).__name__}{hint}"
        raise BnnumbaTypeError(msg)
    if channels is not None and value.mean.size != channels:
        msg = f"{argument}: expected {channels} channels, got {value.mean.size}"
        raise BnnumbaValueError(msg)


class Gradients(NamedTuple):
    """What :func:`batch_norm_backward` returns.

    Attributes
    ----------
    x : array
        The gradient of the input, like it.
    weight, bias : array, shape (C,)
        The gradients of the parameters.
    """

    x: Array
    weight: Array
    bias: Array


def _detached(array: Array) -> Array:
    """Return a tensor outside of autograd, where one taken in `torch.no_grad()` need not be."""
    return array.detach() if hasattr(array, "detach") else array


class Saved:
    """What a forward pass keeps for :func:`batch_norm_backward`, and nobody else makes.

    Attributes
    ----------
    x : array
        The input itself, not a copy: what changes it changes the gradients.
    weight : array or None
        The weight that was given, itself as well.
    mean, invstd : array, shape (C,)
        The mean and 1 / sqrt(var + eps) that normalized `x`: float64 for float64 `x`, else
        float32. The backward pass uses them in float64.
    count : int
        Values per channel.
    moments : Moments
        The moments of the batch, in float64.
    training : bool
        Whether the statistics are those of the batch itself, and so depend on `x`.
    """

    __slots__ = (
        "_array", "_axis", "_library", "_overwritten", "_scale", "_stats",
        "count", "training", "weight", "x",
    )  # fmt: skip
    __signature__ = inspect.Signature()  # that of `__init__` is ours alone

    def __init__(
        self,
        x: Array,
        array: np.ndarray,
        weight: Array | None,
        scale: np.ndarray,
        stats: np.ndarray,
        count: int,
        axis: int,
        library: Library,
        training: bool,
        overwritten: bool,
    ) -> None:
        self.x = x
        self.weight = weight
        self.count = count
        self.training = training
        self._array = array
        self._scale = scale
        self._stats = stats
        self._axis = axis
        self._library = library
        self._overwritten = overwritten

    def _statistic(self, row: int) -> Array:
        dtype = _DOUBLE if self._array.dtype == _DOUBLE else _SINGLE
        return self._library.leave(self._stats[row].astype(dtype))

    @property
    def mean(self) -> Array:
        """The mean of each channel."""
        return self._statistic(0)

    @property
    def invstd(self) -> Array:
        """1 / sqrt(var + eps) of each channel, 0 where both are 0."""
        return self._statistic(2)

    @property
    def moments(self) -> Moments:
        """The moments of the batch."""
        if not self.training:
            msg = "saved: a forward pass with given statistics has no moments of the batch"
            raise BnnumbaValueError(msg)
        return self._found_moments()

    def _found_moments(self) -> Moments:
        mean, m2, _, rest = self._stats
        return Moments._with_rest(self.count, mean.copy(), m2.copy(), rest.copy())

    def _forget_inputs(self) -> None:
        """Keep x and weight no longer: who keeps them elsewhere may free them, as autograd does."""
        self.x = self._array = None  # type: ignore[assignment]
        if self.weight is not None:
            self.weight = self._scale = None  # type: ignore[assignment]

    def _with_inputs(self, x: Array, weight: Array | None) -> Saved:
        """Return the same with another x and weight."""
        other = object.__new__(type(self))
        for kind in type(self).__mro__[:-1]:
            for name in kind.__slots__:  # type: ignore[attr-defined]
                if hasattr(self, name):
                    setattr(other, name, getattr(self, name))
        other.x, other._array = x, self._library.enter("x", x)
        if weight is not None:
            other.weight, other._scale = weight, self._library.enter("weight", weight)
        return other

    def __copy__(self) -> Saved:
        """Return itself: whether x was written over is to be known to all who hold it."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what x and weight tell: their library, and NumPy's views of their memory."""
        kept = set(Saved.__slots__) - {"_array", "_library"}
        if self.weight is not None:
            kept.remove("_scale")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self._library = library_of("x", self.x)
        self._array = self._library.enter("x", _detached(self.x))
        if self.weight is not None:
            self._scale = self._library.enter("weight", _detached(self.weight))

    def __repr__(self) -> str:
        shape = tuple(self.x.shape)
        return f"Saved(shape={shape}, axis={self._axis}, training={self.training})"
