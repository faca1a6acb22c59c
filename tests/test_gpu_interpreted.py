"""The CUDA kernels as they are compiled, without a GPU: their PTX is interpreted.

Needs numba-cuda with the compilers that come with it (``make gpu-test`` installs them).
"""

import os

import pytest
from support import run_pytest, run_python

pytest.importorskip(
    "numba_cuda",
    reason="numba-cuda is not installed: `make gpu-test` brings it",
    exc_type=ImportError,
)
if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    pytest.skip("the simulator compiles nothing", allow_module_level=True)

DEVICE = {"BNNUMBA_TEST_DEVICE": "interpreted"}


@pytest.mark.slow
def test_every_case_on_interpreted_kernels():
    chosen = ("device_cases.py", "-k", "not large_arrays")
    run_pytest("-n", "2", *chosen, env=DEVICE, timeout=1500)


@pytest.mark.slow
def test_blocks_that_run_mixed_give_the_same_bits():
    run_python(
        """
        import numpy as np
        from device_arrays import adapter
        from support import normal, parameters, same_bits

        import bnnumba as bn

        on = adapter()
        from bnnumba.gpu import driver

        device = driver.device(0)
        device.traits = device.traits._replace(shared=0, l2=1 << 40)  # "swept"
        found = []
        for seed in (None, 1, 2, 3):
            device.mixed = None if seed is None else np.random.default_rng(seed)
            for shape, axis in [((8, 5, 300), 1), ((300, 40), 1)]:
                x, dy = (on(normal(shape, seed=k)) for k in (1, 2))
                y, saved = bn.batch_norm_training(x, on(parameters(shape[axis])[0]), axis=axis)
                gradients = bn.batch_norm_backward(dy, saved)
                found.append([on.back(a) for a in (y, *gradients)])
        assert "forward_swept" in {kernel.name for kernel in device.programs}
        for number, arrays in enumerate(found):
            for a, b in zip(arrays, found[number % 2], strict=True):
                assert same_bits(a, b)
        """,
        env=DEVICE,
    )
