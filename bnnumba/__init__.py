"""Batch normalization and streaming mean/variance, near the price of a memory copy.

Functions take and return arrays of NumPy, or of any library that speaks DLPack; statistics are
accumulated in float64 and do not depend on the number of threads.
"""

from .conventions import CONVENTIONS, Convention
from .errors import BackendError, BnnumbaError, BnnumbaTypeError, BnnumbaValueError
from .functional import (
    batch_norm,
    batch_norm_backward,
    batch_norm_inference,
    batch_norm_training,
    fold_batch_norm,
    update_running,
)
from .layers import BatchNorm
from .moments import RunningMoments, moments
from .results import Gradients, Moments, Saved

__version__ = "0.1.0"

__all__ = [
    "CONVENTIONS",
    "BackendError",
    "BatchNorm",
    "BnnumbaError",
    "BnnumbaTypeError",
    "BnnumbaValueError",
    "Convention",
    "Gradients",
    "Moments",
    "RunningMoments",
    "Saved",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_inference",
    "batch_norm_training",
    "fold_batch_norm",
    "moments",
    "update_running",
]
