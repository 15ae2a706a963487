"""Cyclical learning rates: gradient descent on 128 CIFAR-10 images with triangular cycles (Zhu et al. 2024; MNIST study).

Claim: cyclical learning rates cause catapults. Results: docs/claims.md.

    python -m experiments.main --config=configs/cifar_cyclic.py             # FCN
    python -m experiments.main --config=configs/cifar_cyclic.py:smoke       # seconds

In each cycle of 30 steps the lr goes from a tenth of its peak to the peak and back. The peaks are 0.3, 1 and 2 times the critical lr
at initialisation.

From the paper: the claim. Everything else is our choice.
"""

from ml_collections import ConfigDict

from configs import default, tasks


def get_config(variant: str = "fcn") -> ConfigDict:
    words = set(variant.split(","))
    if words - {"fcn", "smoke"}:
        raise ValueError(f"variant {variant!r}; allowed: fcn, smoke, joined by a comma")
    c = default.get_config()
    c.title = "GD with a cyclic lr on 128 images"
    tasks.images(c, "cifar2")
    c.data.test_size = 500
    c.steps = 180
    c.members.seed = (0, 1, 2, 3, 4)
    c.optimizer.lr_unit = "critical_lr0"
    c.members.lr = (0.3, 1.0, 2.0)
    c.model.width = 512
    c.schedule.name = "cyclic"
    c.schedule.period = 30
    c.measure.loss_test_every = 10
    c.events.factor = 1.2
    c.run.chunk_steps = 20
    c.run.checkpoint_every = 180
    c.claims = ("cycles_cause_catapults",)
    if "smoke" in words:
        tasks.smoke(c)
        c.schedule.period, c.members.lr, c.measure.loss_test_every = 4, (0.3, 2.0), 4
    return c
