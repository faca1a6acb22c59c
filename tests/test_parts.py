"""Parts of kernels, lowered once in a process."""

import pytest
from support import run_python


@pytest.mark.slow
def test_what_kernels_have_in_common_is_lowered_once(tmp_path):
    run_python(
        """
        import numpy as np

        import bnnumba as bn
        from bnnumba.cpu import parts

        def lowered(typing, target, function, arguments, *rest, **options):
            seen.append((function, arguments))
            return compile_extra(typing, target, function, arguments, *rest, **options)

        seen, compile_extra, parts.compile_extra = [], parts.compile_extra, lowered
        x, weight = np.ones((4, 8, 64), np.float32), np.ones(8, np.float32)
        bn.batch_norm_training(x, weight)
        first = {function.__name__ for function, _ in seen}
        assert {"collect_slab_ncs", "normalize_slab_ncs"} <= first, first
        bn.moments(x)
        bn.batch_norm_inference(x, weight, weight)
        bn.batch_norm_training(x, weight.astype(np.float64))
        assert len(seen) == len(set(seen))
        """,
        env={"NUMBA_CACHE_DIR": tmp_path},
    )
