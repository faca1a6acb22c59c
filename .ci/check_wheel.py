"""Check an installed wheel: what it pulled in, and that the README's example runs."""

import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

NEEDED = {"array-api-compat", "bnnumba", "llvmlite", "ml-dtypes", "numba", "numpy"}
ENVIRONMENT = {"pip", "setuptools", "wheel"}


def main():
    """Exit with a message at the first thing that is wrong."""
    installed = {re.sub(r"[-_.]+", "-", d.metadata["Name"]).lower() for d in distributions()}
    if installed - ENVIRONMENT != NEEDED:
        sys.exit(f"the wheel installed {sorted(installed)}, expected {sorted(NEEDED)}")

    import numpy as np

    import bnnumba

    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 3, 5, 5), dtype=np.float32)
    y, saved = bnnumba.batch_norm_training(x)
    gradients = bnnumba.batch_norm_backward(y, saved)
    np.testing.assert_allclose(y.mean(axis=(0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(y.var(axis=(0, 2, 3)), 1, rtol=1e-4)
    np.testing.assert_allclose(gradients.x, 0, atol=1e-4)

    readme = Path(__file__).parents[1] / "README.md"
    for example in re.findall(r"^```python\n(.*?)^```", readme.read_text(), re.DOTALL | re.M):
        exec(compile(example, str(readme), "exec"), {})

    subprocess.run([sys.executable, "-I", "-m", "bnnumba", "info"], check=True)
    print(f"bnnumba {bnnumba.__version__}: the wheel works with {', '.join(sorted(NEEDED))}")


main()
