"""Who checks the checker: the oracle agrees with `bnnumba.reference`, and notices what is wrong."""

import numpy as np
import pytest

from . import oracle
from .cases import EPS, OPS, data
from .peers import load

SHAPE = (5, 7, 3, 4)


@pytest.mark.parametrize("layout", ["ncs", "rc"])
@pytest.mark.parametrize("op", OPS)
def test_agrees_with_the_reference(op, layout):
    reference = load("bnnumba.reference")
    d = data(layout, SHAPE)
    parameters = {"weight": d.weight, "eps": EPS, "axis": d.axis}
    trained = reference.batch_norm_training(d.x, bias=d.bias, **parameters)
    m = trained.moments
    given = {"mean": m.mean, "var": m.m2 / m.count}
    if op == "backward":
        axis_and_weight = {"weight": d.weight, "axis": d.axis}
        g = reference.batch_norm_backward(d.dy, d.x, m.mean, trained.invstd, **axis_and_weight)
        right = {"dx": d.view(g.x), "dweight": g.weight, "dbias": g.bias}
    elif op == "inference":
        y = reference.batch_norm_inference(d.x, d.mean, d.var, bias=d.bias, **parameters)
        right = {"y": d.view(y)}
    else:
        right = given if op == "moments" else {"y": d.view(trained.y), **given}
    assert oracle.error(right, d.expected(op)) < 1e-13


@pytest.mark.parametrize("harm", [1e-3, np.nan, np.inf])
def test_notices_one_wrong_value(harm):
    right = {"y": np.ones((3, 4, 5)), "mean": np.ones(4)}
    result = {name: value.copy() for name, value in right.items()}
    result["y"][2, 1, 0] += harm
    assert not oracle.error(result, right) < 1e-4
