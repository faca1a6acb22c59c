"""Every error that bnnumba raises on purpose.

Each is a :class:`BnnumbaError` and also the built-in exception that a NumPy user would
expect, so ``except ValueError`` keeps working.
"""

__all__ = ["BackendError", "BnnumbaError", "BnnumbaTypeError", "BnnumbaValueError"]


class BnnumbaError(Exception):
    """Base class of every error that bnnumba raises on purpose."""


class BnnumbaTypeError(BnnumbaError, TypeError):
    """An argument is of the wrong kind: not an array, an unsupported dtype, another library."""


class BnnumbaValueError(BnnumbaError, ValueError):
    """An argument is of the right kind but has a wrong shape, axis, size or value."""


class BackendError(BnnumbaError, RuntimeError):
    """The backend that an array needs is missing or cannot run here."""
