"""Fixtures and the settings of the test run."""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from support import DTYPES, PARAM_DTYPES

# The adapter to Keras is to its backend PyTorch; the default is TensorFlow.
os.environ.setdefault("KERAS_BACKEND", "torch")

# A first call compiles a kernel, so the time of one example says nothing.
settings.register_profile(
    "bnnumba", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("bnnumba")


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request) -> np.dtype:
    """Every dtype that data can have."""
    return request.param


@pytest.fixture(params=PARAM_DTYPES, ids=lambda d: f"params_{d}")
def param_dtype(request) -> np.dtype:
    """Every dtype that weight, bias and running statistics can have."""
    return request.param


def pytest_collection_modifyitems(items):
    """Run the files with the most slow tests first: at the end, one process would be left with it.

    A file is run by one process, as `make test` has it.
    """
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
