"""Cyclical learning rates: SGD and gradient descent on 128 CIFAR-10 images with triangular cycles (Zhu et al. 2024, Remark 3).

Claim: cyclical learning rates cause catapults. Results: docs/claims.md.

    python -m experiments.main --config=configs/cifar_cyclic.py:sgd         # batches of 32, as in the remark
    python -m experiments.main --config=configs/cifar_cyclic.py:gd          # all examples
    python -m experiments.main --config=configs/cifar_cyclic.py:smoke       # seconds

In each cycle of 30 steps the lr goes from a tenth of its peak to the peak and back. The peaks are 0.3, 1 and 2 times the critical lr
at initialisation.

From the paper: the claim. Everything else is our choice.
"""

from ml_collections import ConfigDict

from configs import default, tasks


def get_config(variant: str = "sgd") -> ConfigDict:
    words = set(variant.split(","))
    if words - {"sgd", "gd", "smoke"} or {"sgd", "gd"} <= words:
        raise ValueError(f"variant {variant!r}; allowed: sgd or gd; with it, joined by a comma, smoke")
    c = default.get_config()
    c.title = f"{'GD' if 'gd' in words else 'SGD'} with a cyclic lr on 128 images"
    tasks.images(c, "cifar2")
    c.data.by_seed = True
    c.data.test_size = 500
    c.steps = 180
    c.members.seed = (500, 501, 502, 503, 504)
    c.optimizer.lr_unit = "critical_lr0"
    c.members.lr = (0.3, 1.0, 2.0)
    c.model.width = 512
    c.optimizer.batch_size = None if "gd" in words else 32
    c.schedule.name = "cyclic"
    c.schedule.period = 30
    c.measure.loss_test_every = 10
    c.events.factor = 1.2
    c.run.chunk_steps = 20
    c.run.checkpoint_every = 180
    c.claims = ("cycles_cause_catapults",)
    if "smoke" in words:
        tasks.smoke(c)
        c.optimizer.batch_size = None if "gd" in words else 5
        c.schedule.period, c.members.lr, c.measure.loss_test_every = 4, (0.3, 2.0), 4
    return c
