"""The comparison of the kernel with neural_tangents at the start of a run."""

import jax
import numpy as np
import pytest

from catapult_jax import FCN
from experiments.build import checks
from experiments.config import RunError

MODEL = FCN(depth=3, width=8)
X = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)


def test_check_kernel_of_the_first_examples():
    check = checks.check_kernel(MODEL, MODEL.init(jax.random.key(0), X), X)

    assert check["examples"] == 8 and 0 <= check["relative_error"] < 1e-5
    assert check["text"].startswith("relative error ")


def test_check_kernel_of_a_dead_network():
    params = jax.tree.map(np.zeros_like, MODEL.init(jax.random.key(0), X))

    assert checks.check_kernel(MODEL, params, X)["relative_error"] == 0.0


def test_check_kernel_that_differs(monkeypatch):
    scales = {"auto": 1.0, "neural_tangents": 1.01}
    monkeypatch.setattr(checks, "tangent_kernel", lambda apply, params, x, method: x @ x.T * scales[method])

    with pytest.raises(RunError, match=r"kernel differs from neural_tangents by 9.9\de-03 of the largest entry on 8 examples"):
        checks.check_kernel(MODEL, None, X)
