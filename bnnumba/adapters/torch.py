"""Batch normalization for PyTorch's autograd: a function, modules, and how to convert a model.

The work is done by the functions of :mod:`bnnumba.functional`, on the CPU and on a GPU. Around it
is what PyTorch's users expect: gradients, parameters of any dtype, running statistics as buffers.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import BnnumbaTypeError
from ..functional import batch_norm_backward, train_or_evaluate

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "batch_norm", "convert_batch_norm"]

Model = TypeVar("Model", bound=nn.Module)
_HALF = (torch.float16, torch.bfloat16)


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any) -> Any:
        running_mean, running_var, training, momentum, eps, correction = rest
        found: Any = train_or_evaluate(
            x, running_mean, running_var, weight, bias, training, momentum, eps, correction,
            saves=True,
        )  # fmt: skip
        y, ctx.saved = found
        # Autograd keeps them: it notices changes, and may free, move or compute them again.
        ctx.save_for_backward(x, weight)
        ctx.saved._forget_inputs()
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        # What says that these cannot be differentiated takes a while, and where it need not.
        return _gradients_once(ctx, dy) if torch.is_grad_enabled() else _gradients(ctx, dy)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved._with_inputs(*ctx.saved_tensors)
    gradients = batch_norm_backward(dy.resolve_neg(), saved)
    wanted = ctx.needs_input_grad[:3]  # not of a weight or bias that is None
    found = [g if want else None for g, want in zip(gradients, wanted, strict=True)]
    return *found, None, None, None, None, None, None


_gradients_once = torch.autograd.function.once_differentiable(_gradients)


@torch.compiler.disable  # which would trace what becomes of the tensors down to the kernels
def _normalized(*arguments: Any) -> Any:
    return _Differentiable.apply(*arguments)


def _single(value: Any) -> Any:
    """Return values of channels as the kernels take them: in float32 where they have 16 bits."""
    return value.float() if isinstance(value, Tensor) and value.dtype in _HALF else value


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalize with the signature of ``torch.nn.functional.batch_norm``, and for autograd.

    Parameters
    ----------
    x : Tensor, shape (N, C, ...)
        The data: float32, float64, float16 or bfloat16, with any strides.
    running_mean, running_var : Tensor, shape (C,), or None
        Running statistics: updated in place in training, used in inference.
    weight, bias : Tensor, shape (C,), optional
        Scale and shift of each channel; 1 and 0 where not given.
    training : bool
        Whether to normalize by the statistics of the batch.
    momentum : float
        The weight of the new value in the running statistics.
    eps : float
        Added to the variance, in units of x squared; not negative.

    Returns
    -------
    Tensor
        y, of the shape and dtype of `x`, with gradients of `x`, `weight` and `bias`. They cannot
        be differentiated again.

    Raises
    ------
    BnnumbaTypeError, BnnumbaValueError
        If an argument is of a wrong kind, dtype, shape or value.

    See Also
    --------
    bnnumba.batch_norm_training : the formula, and where it comes from.

    Notes
    -----
    With parameters of 16 bits the kernels compute in float32; only their gradients and the running
    statistics are rounded.

    Examples
    --------
    >>> import torch
    >>> from bnnumba.adapters.torch import batch_norm
    >>> x = torch.tensor([[1.0], [2.0], [3.0]], requires_grad=True)
    >>> y = batch_norm(x, None, None, training=True, eps=0.0)
    >>> y[0].sum().backward()
    >>> x.grad.flatten()
    tensor([ 0.2041, -0.4082,  0.2041])
    """
    if not isinstance(x, Tensor):
        msg = f"x: expected a torch.Tensor, got {type(x).__name__}; bnnumba.batch_norm takes others"
        raise BnnumbaTypeError(msg)
    return normalize(x, running_mean, running_var, weight, bias, training, momentum, eps, 1)


def _check_recorded(x: Tensor, weight: Any, bias: Any, running_mean: Any, running_var: Any) -> None:
    """Raise for what autograd cannot record, before running statistics are moved."""
    if not torch.is_grad_enabled():
        return
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        if isinstance(running, Tensor) and running.requires_grad:
            msg = f"{name}: expected a tensor outside of autograd, got one that requires a gradient"
            raise BnnumbaTypeError(msg)
    recorded = any(isinstance(t, Tensor) and t.requires_grad for t in (x, weight, bias))
    for name, kept in (("x", x), ("weight", weight)):
        if recorded and isinstance(kept, Tensor) and kept.is_inference():
            msg = f"{name}: expected a tensor that autograd may keep, got one of inference mode"
            raise BnnumbaTypeError(msg)


def normalize(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, training: bool, momentum: float, eps: float, correction: float,
) -> Tensor:  # fmt: skip
    """Do `batch_norm`, with any correction of the running variance."""
    weight, bias = _single(weight), _single(bias)
    _check_recorded(x, weight, bias, running_mean, running_var)
    mean, var = _single(running_mean), _single(running_var)
    y = _normalized(x.resolve_neg(), weight, bias, mean, var, training, momentum, eps, correction)
    if training:
        for running, moved in ((running_mean, mean), (running_var, var)):
            if running is not None and moved is not running:
                running.copy_(moved)
    return y


class _Normalizes(nn.modules.batchnorm._BatchNorm):
    """What the modules here do in place of PyTorch's."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized `x`."""
        self._check_input_dim(x)
        mean, var, batches = self.running_mean, self.running_var, self.num_batches_tracked
        by_batch = self.training or (mean is None and var is None)
        tracks = self.training and self.track_running_stats
        if self.training and not tracks:
            mean = var = None
        counts = tracks and batches is not None
        momentum = self.momentum
        if momentum is None:  # the plain average of all batches
            momentum = 1.0 / (int(batches) + 1) if counts else 0.0
        y = batch_norm(x, mean, var, self.weight, self.bias, by_batch, momentum, self.eps)
        if counts:
            batches.add_(1)
        return y


class BatchNorm1d(_Normalizes, nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` with bnnumba's kernels, for x of shape (N, C) or (N, C, L).

    Arguments, attributes and state dictionary are those of PyTorch's module, dtypes those of
    :func:`batch_norm`.
    """


class BatchNorm2d(_Normalizes, nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` with bnnumba's kernels, for x of shape (N, C, H, W).

    Arguments, attributes and state dictionary are those of PyTorch's module, dtypes those of
    :func:`batch_norm`.

    Examples
    --------
    >>> import torch
    >>> from bnnumba.adapters.torch import BatchNorm2d
    >>> layer = BatchNorm2d(3)
    >>> layer(torch.randn(8, 3, 4, 4)).mean((0, 2, 3)).abs().max() < 1e-6
    tensor(True)
    """


class BatchNorm3d(_Normalizes, nn.BatchNorm3d):
    """``torch.nn.BatchNorm3d`` with bnnumba's kernels, for x of shape (N, C, D, H, W).

    Arguments, attributes and state dictionary are those of PyTorch's module, dtypes those of
    :func:`batch_norm`.
    """


_OURS = {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d, nn.BatchNorm3d: BatchNorm3d}


def convert_batch_norm(model: Model) -> Model:
    """Have every batch norm of a model computed by bnnumba, and return the model.

    Modules of exactly the types ``torch.nn.BatchNorm1d``, ``BatchNorm2d`` and ``BatchNorm3d``
    become those of this package in place: with the same parameters, which an optimizer may hold
    already, the same buffers, hooks and names.

    Parameters
    ----------
    model : torch.nn.Module
        The model, or one batch norm.

    Returns
    -------
    torch.nn.Module
        `model` itself.

    Raises
    ------
    BnnumbaTypeError
        If `model` is not a module.

    Examples
    --------
    >>> import torch
    >>> from bnnumba.adapters.torch import convert_batch_norm
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    >>> type(convert_batch_norm(model)[1])
    <class 'bnnumba.adapters.torch.BatchNorm1d'>
    """
    if not isinstance(model, nn.Module):
        msg = f"model: expected a torch.nn.Module, got {type(model).__name__}"
        raise BnnumbaTypeError(msg)
    for module in model.modules():
        ours = _OURS.get(type(module))
        if ours is not None:
            module.__class__ = ours
    return model
