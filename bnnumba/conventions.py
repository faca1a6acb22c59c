"""How other systems number the same things, as options of this one.

Their momentum is a weight of the old or of the new value, their running variance biased or not,
their defaults differ. A model that was trained elsewhere keeps its meaning with

>>> import bnnumba as bn
>>> layer = bn.BatchNorm(64, **bn.CONVENTIONS["keras"].options())
>>> layer.eps, layer.momentum, layer.correction
(0.001, 0.01, 0.0)

and another momentum of theirs is converted by :meth:`Convention.options`:

>>> bn.CONVENTIONS["keras"].options(momentum=0.75)
{'momentum': 0.25, 'eps': 0.001, 'correction': 0}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .errors import BnnumbaValueError
from .validation import check_eps, check_real

__all__ = ["CONVENTIONS", "Convention"]


@dataclass(frozen=True)
class Convention:
    """The running update, the defaults and the variances of one system.

    Attributes
    ----------
    system : str
        Its name.
    momentum : float or None
        Its default momentum as it writes it; None where all samples weigh the same, which is what
        :class:`RunningMoments` computes.
    weighs_new : bool
        Whether its momentum is the weight of the new value (else of the old one).
    eps : float
        Its default eps.
    correction : int
        Its running variance is m2 / (count - correction): 1 for unbiased, 0 for biased. The
        variance that normalizes is biased everywhere.
    """

    system: str
    momentum: float | None
    weighs_new: bool
    eps: float
    correction: int

    def options(self, momentum: float | None = None, eps: float | None = None) -> dict[str, Any]:
        """Return ``momentum``, ``eps`` and ``correction`` as :class:`BatchNorm` takes them.

        A momentum of None, that of a system where all samples weigh the same, has it average
        batches: the same mean if they are of one size, but without the variance between them.

        Parameters
        ----------
        momentum : float, optional
            As the system writes it; its default where not given.
        eps : float, optional
            The system's default where not given.

        Returns
        -------
        dict
            Keyword arguments.

        Raises
        ------
        BnnumbaTypeError, BnnumbaValueError
            If a value is no number, or `momentum` is outside [0, 1].
        """
        theirs = self.momentum if momentum is None else check_real("momentum", momentum)
        if theirs is not None and not 0 <= theirs <= 1:
            msg = f"momentum: expected a number from 0 to 1, got {theirs}"
            raise BnnumbaValueError(msg)
        ours = theirs
        if theirs is not None and not self.weighs_new:
            ours = float(f"{1 - theirs:.15g}")  # of 0.99 it is 0.01, not 0.010000000000000009
        used = self.eps if eps is None else check_eps(eps)
        return {"momentum": ours, "eps": used, "correction": self.correction}


CONVENTIONS = {
    "torch": Convention("PyTorch", 0.1, True, 1e-5, 1),
    "cudnn": Convention("cuDNN", 0.1, True, 1e-5, 1),
    "keras": Convention("Keras 3, tf.keras not fused", 0.99, False, 1e-3, 0),
    "tf_fused": Convention("tf.keras fused (4-D and 5-D input)", 0.99, False, 1e-3, 1),
    "flax": Convention("Flax", 0.99, False, 1e-5, 0),
    "onnx": Convention("ONNX BatchNormalization, opset 15", 0.9, False, 1e-5, 0),
    "sklearn": Convention("scikit-learn StandardScaler", None, True, 0.0, 0),
}
