"""Batch normalization as a layer of Keras 3, on its backend PyTorch, and how to convert a model.

Keras (3.15) on PyTorch computes the variance as E[x^2] - E[x]^2, which an offset of the data
spoils, in several steps. Here it is one step of :mod:`bnnumba.adapters.torch`, with the conventions
of Keras.
"""

from __future__ import annotations

from typing import Any, TypeVar

import keras
import torch

from ..conventions import CONVENTIONS
from ..errors import BackendError, BnnumbaTypeError
from .torch import normalize

__all__ = ["BatchNormalization", "convert_batch_norm"]

Model = TypeVar("Model", bound=keras.Layer)
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


def _check_backend() -> None:
    found = keras.config.backend()
    if found != "torch":
        msg = (
            f"keras: expected the backend torch, got {found}; "
            "set the environment variable KERAS_BACKEND=torch before Keras is imported"
        )
        raise BackendError(msg)


@keras.saving.register_keras_serializable(package="bnnumba")
class BatchNormalization(keras.layers.BatchNormalization):
    """``keras.layers.BatchNormalization`` with bnnumba's kernels, on the backend PyTorch.

    Arguments, weights and configuration are those of Keras's layer, so that the weights of either
    can be loaded into the other. Where the layer is frozen (``trainable = False``) or not in
    training, it normalizes by its moving statistics, as Keras's does. Inputs under a mask, batch
    renormalization, dtypes other than float32, float64, float16 and bfloat16, devices other than
    CPU and CUDA, and tracing for export are left to Keras. A gradient cannot be differentiated
    again.

    Raises
    ------
    BackendError
        If Keras has another backend.

    See Also
    --------
    bnnumba.batch_norm_training : the formula, and where it comes from.
    bnnumba.CONVENTIONS : what Keras calls momentum, and its running variance.

    Examples
    --------
    >>> import keras
    >>> from bnnumba.adapters.keras import BatchNormalization
    >>> layer = BatchNormalization(epsilon=0.0)
    >>> x = keras.ops.convert_to_tensor([[10001.0], [10003.0]])
    >>> layer(x, training=True).tolist()
    [[-1.0], [1.0]]
    """

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        **kwargs: Any,
    ) -> None:
        _check_backend()
        super().__init__(axis, momentum, epsilon, center, scale, **kwargs)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Return the normalized `inputs`."""
        renorm = getattr(self, "renorm", False)  # which older versions do not have
        if mask is not None or renorm or not _taken(inputs):
            return super().call(inputs, training=training, mask=mask)
        by_batch = bool(training and self.trainable)
        mean, var = self.moving_mean.value.detach(), self.moving_variance.value.detach()
        if by_batch:  # copies, as only `assign` knows where Keras keeps values
            mean, var = mean.clone(), var.clone()
        options = CONVENTIONS["keras"].options(self.momentum, self.epsilon)
        y = normalize(
            inputs.movedim(self.axis, 1), mean, var,
            None if self.gamma is None else self.gamma.value,
            None if self.beta is None else self.beta.value,
            by_batch, **options,
        )  # fmt: skip
        if by_batch:
            self.moving_mean.assign(mean)
            self.moving_variance.assign(var)
        return keras.ops.cast(y.movedim(1, self.axis), self.compute_dtype)


def _taken(inputs: Any) -> bool:
    """Return whether the kernels can take this: data, of which nobody traces what becomes of it."""
    return (
        type(inputs) in (torch.Tensor, torch.nn.Parameter)
        and inputs.dtype in _DTYPES
        and inputs.device.type in ("cpu", "cuda")
        and inputs.ndim > 1
        and not (inputs.is_inference() and torch.is_grad_enabled())
        and not torch.jit.is_tracing()
        and not _is_exporting()
    )


def convert_batch_norm(model: Model) -> Model:
    """Have every batch normalization of a Keras model computed by bnnumba, and return the model.

    Layers of exactly the type ``keras.layers.BatchNormalization`` become those of this package in
    place, with the same weights, names and optimizer state. A model that is saved as a whole
    afterwards needs this module where it is loaded; its weights alone fit the plain model.

    Parameters
    ----------
    model : keras.Layer
        The model, or one layer.

    Returns
    -------
    keras.Layer
        `model` itself.

    Raises
    ------
    BnnumbaTypeError
        If `model` is no layer of Keras.
    BackendError
        If Keras has another backend than PyTorch.

    Examples
    --------
    >>> import keras
    >>> from bnnumba.adapters.keras import convert_batch_norm
    >>> model = keras.Sequential([keras.layers.Dense(3), keras.layers.BatchNormalization()])
    >>> convert_batch_norm(model).layers[1].__module__
    'bnnumba.adapters.keras'
    """
    if not isinstance(model, keras.Layer):
        msg = f"model: expected a keras.Layer or model, got {type(model).__name__}"
        raise BnnumbaTypeError(msg)
    _check_backend()
    for layer in model._flatten_layers():
        if type(layer) is keras.layers.BatchNormalization:
            layer.__class__ = BatchNormalization
    return model
