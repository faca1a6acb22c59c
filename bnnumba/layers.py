"""Batch normalization as a layer: parameters, running statistics, forward and backward."""

from __future__ import annotations

import collections
import itertools
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from .dispatch import Array, ArrayT, library_of
from .errors import BnnumbaTypeError, BnnumbaValueError
from .functional import (
    batch_norm_backward,
    batch_norm_training,
    evaluate,
    train,
)
from .moments import check_features
from .results import Saved
from .validation import (
    check_eps,
    check_integer,
    check_numbers,
    check_real,
    check_running,
    check_size,
)

__all__ = ["BatchNorm"]


class BatchNorm:
    """Batch normalization of `num_features` channels, with the names of ``torch.nn.BatchNorm2d``.

    Parameters and running statistics are NumPy arrays, and so is what the layer takes, unless
    arrays of another library are assigned to `weight`, `bias`, `running_mean` and `running_var`.

    Parameters
    ----------
    num_features : int
        The number of channels, C.
    eps : float
        Added to the variance; not negative.
    momentum : float or None
        The weight of the new value in the running statistics; None for their plain average over
        the batches seen, each batch weighing the same.
    affine : bool
        Whether there are a weight and a bias.
    track_running_stats : bool
        Whether to keep running statistics; without them, evaluation uses those of the batch. Set
        to False later, it stops their updates, and evaluation goes on with them, as in PyTorch.
    axis : int
        The axis of the channels.
    correction : float
        The running variance is that of m2 / (count - correction).
    dtype : dtype
        float32 or float64, of parameters and running statistics.

    Attributes
    ----------
    weight, bias : ndarray, shape (C,), or None
        Parameters, starting as ones and zeros.
    weight_grad, bias_grad : ndarray, shape (C,), or None
        What the last :meth:`backward` computed.
    running_mean, running_var : ndarray, shape (C,), or None
        Running statistics, starting as zeros and ones.
    num_batches_tracked : int
        How many batches the running statistics have seen.
    training : bool
        Whether the layer is in training mode, as it is at first.

    Raises
    ------
    BnnumbaTypeError, BnnumbaValueError
        If an argument is of a wrong kind or value.

    Examples
    --------
    >>> import numpy as np
    >>> import bnnumba as bn
    >>> layer = bn.BatchNorm(1, eps=0)
    >>> layer(np.array([[1.0], [3.0]]))
    array([[-1.],
           [ 1.]])
    >>> layer.backward(np.array([[1.0], [0.0]]))
    array([[0.],
           [0.]])
    >>> layer.running_mean, layer.num_batches_tracked
    (array([0.2], dtype=float32), 1)
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        axis: int = 1,
        *,
        correction: float = 1,
        dtype: Any = np.float32,
    ) -> None:
        self.num_features = check_features(num_features)
        self.eps = check_eps(eps)
        self.momentum = None if momentum is None else check_real("momentum", momentum)
        self.correction = check_real("correction", correction)
        self.axis = check_integer("axis", axis)
        self.affine = bool(affine)
        self.track_running_stats = bool(track_running_stats)
        self.training = True
        try:
            known = dtype is not None and np.dtype(dtype) in (np.float32, np.float64)
        except (TypeError, ValueError):
            known = False
        if not known:
            msg = f"dtype: expected float32 or float64, got {dtype!r}"
            raise BnnumbaTypeError(msg)
        zeros, ones = np.zeros(self.num_features, dtype), np.ones(self.num_features, dtype)
        self.weight: Array | None = ones if self.affine else None
        self.bias: Array | None = zeros if self.affine else None
        self.weight_grad: Array | None = None
        self.bias_grad: Array | None = None
        self.running_mean: Array | None = zeros.copy() if self.track_running_stats else None
        self.running_var: Array | None = ones.copy() if self.track_running_stats else None
        # An array, so that the kernel that moves the running statistics counts the batch as well.
        self._batches = np.zeros(1 if self.track_running_stats else 0, np.int64)
        self._saved: Saved | None = None

    @property
    def num_batches_tracked(self) -> int:
        """How many batches the running statistics have seen."""
        return int(self._batches.sum())

    def train(self, mode: bool = True) -> BatchNorm:
        """Normalize by the statistics of each batch from now on; return the layer."""
        self.training = bool(mode)
        return self

    def eval(self) -> BatchNorm:
        """Normalize by the running statistics from now on; return the layer."""
        return self.train(False)

    def __call__(self, x: ArrayT, *, out: ArrayT | None = None) -> ArrayT:
        """Return the normalized `x`, and keep what :meth:`backward` needs.

        Parameters
        ----------
        x : array, rank >= 2
            The batch, as in :func:`batch_norm_training`, with `num_features` channels.
        out : array, optional
            Where to write the result, as in :func:`batch_norm_training`.

        Raises
        ------
        BnnumbaTypeError, BnnumbaValueError
            If an argument is of a wrong kind, dtype or shape; nothing has changed then.
        """
        self._check_channels(x)
        saved: Saved | None
        if self.training and self.track_running_stats:
            momentum = self.momentum
            if momentum is None:
                momentum = 1.0 / (self.num_batches_tracked + 1)
            y, saved = train(
                x, self.weight, self.bias, self.running_mean, self.running_var, self._batches,
                momentum, self.eps, self.correction, self.axis, out,
            )  # fmt: skip
        elif self.training or (self.running_mean is None and self.running_var is None):
            y, saved = batch_norm_training(
                x, self.weight, self.bias, eps=self.eps, axis=self.axis, out=out
            )
        else:
            y, saved = evaluate(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.eps, self.axis,
                out, ("running_mean", "running_var"), saves=True,
            )  # fmt: skip
        self._saved = saved
        return y

    def backward(self, grad_output: ArrayT, *, out: ArrayT | None = None) -> ArrayT:
        """Return the gradient of the input of the last forward pass.

        The gradients of the parameters are put into `weight_grad` and `bias_grad`.

        Parameters
        ----------
        grad_output : array
            The gradient of the output, of its shape, dtype and library.
        out : array, optional
            Where to write the result, as in :func:`batch_norm_backward`.

        Raises
        ------
        BnnumbaTypeError, BnnumbaValueError
            If there was no forward pass, or an argument is of a wrong kind, dtype or shape.
        """
        if self._saved is None:
            msg = "backward: expected a forward pass before it, got none"
            raise BnnumbaValueError(msg)
        dx, dweight, dbias = batch_norm_backward(grad_output, self._saved, out=out)
        if self.affine:
            self.weight_grad, self.bias_grad = dweight, dbias
        return dx

    def _check_channels(self, x: Array) -> None:
        shape, axis = getattr(x, "shape", ()), check_integer("axis", self.axis)
        if not isinstance(shape, tuple):
            return  # no array, as the call will find
        if -len(shape) <= axis < len(shape):
            check_size(tuple(shape), axis, self.num_features)

    def _tensors(self) -> dict[str, Array]:
        named = {
            "weight": self.weight,
            "bias": self.bias,
            "running_mean": self.running_mean,
            "running_var": self.running_var,
        }
        return {name: array for name, array in named.items() if array is not None}

    def state_dict(self) -> dict[str, Any]:
        """Return a snapshot of parameters and running statistics under PyTorch's names."""
        state: dict[str, Any] = {
            name: array.clone() if hasattr(array, "clone") else array.copy()
            for name, array in self._tensors().items()
        }
        if self._batches.size:
            state["num_batches_tracked"] = self.num_batches_tracked
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy a snapshot into the layer's arrays; after an error nothing has changed.

        Takes the arrays of another library too, such as the tensors of a PyTorch state dict.
        """
        tensors = self._tensors()
        expected = sorted([*tensors, *["num_batches_tracked"] * self._batches.size])
        if not isinstance(state, Mapping):
            msg = f"state: expected a dict, got {type(state).__name__}"
            raise BnnumbaTypeError(msg)
        if set(state) != set(expected):
            msg = f"state: expected the keys {expected}, got {sorted(map(str, state))}"
            raise BnnumbaValueError(msg)
        copies: list[tuple[np.ndarray, Any]] = []
        written = []
        for name, tensor in tensors.items():
            library = library_of(name, tensor)
            if library.on_device:
                msg = f"{name}: expected to load into an array on the CPU, got one on a GPU"
                raise BnnumbaTypeError(msg)
            target = check_running(name, tensor, library, self.num_features)
            copies.append((target, _values(name, state[name], target)))
            written.append((library, tensor))
        if self._batches.size:
            batches = _batches(state["num_batches_tracked"])
            copies.append((self._batches, batches))
        # All in one go of C's, which Ctrl-C waits for.
        collections.deque(
            itertools.starmap(operator.setitem, [(target, ..., new) for target, new in copies]), 0
        )
        for library, tensor in written:
            library.wrote(tensor)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the last batch: who stores or copies a layer does not mean to keep data."""
        return {**self.__dict__, "_saved": None}

    def __repr__(self) -> str:
        return (
            f"BatchNorm({self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, track_running_stats={self.track_running_stats}, "
            f"axis={self.axis}, correction={self.correction:g})"
        )


def _values(name: str, value: Any, target: np.ndarray) -> np.ndarray:
    """Return an entry of a state dict as `target` can hold it."""
    array = check_numbers(f"state: {name}", value)
    if array.shape != target.shape:
        msg = f"state: expected {name} of shape {target.shape}, got {array.shape}"
        raise BnnumbaValueError(msg)
    with np.errstate(over="ignore"):
        values = array.astype(target.dtype)
    if not np.array_equal(np.isfinite(values), np.isfinite(array)):
        msg = f"state: expected {name} to fit {target.dtype}, got {array}"
        raise BnnumbaValueError(msg)
    return values


def _batches(value: Any) -> int:
    array = check_numbers("state: num_batches_tracked", value)
    if array.shape != () or not 0 <= array < 2**63 or array != np.floor(array):
        msg = f"state: expected num_batches_tracked to be a count, got {value!r}"
        raise BnnumbaValueError(msg)
    return int(array)
