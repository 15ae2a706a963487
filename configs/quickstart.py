"""A first look on embedded data: an lr below and an lr above critical, on crops of two photographs (no download).

    python -m experiments.main --config=configs/quickstart.py
    python -m experiments.main --config=configs/quickstart.py:smoke      # seconds

At 1.67 times the critical lr both seeds have a catapult in the top-5 eigenspace. At 0.5 times they have none, and lambda_max rises
towards 2 / lr.

A small version of cifar_gd.py on data that come with scikit-learn. No setting in it is published.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "full") -> ConfigDict:
    if variant not in ("full", "smoke"):
        raise ValueError(f"variant {variant!r}; allowed: full, smoke")
    c = default.get_config()
    c.title = "Quickstart: GD on 128 natural patches"
    c.steps = 60
    c.members.seed = (0, 1)
    c.optimizer.lr_unit = "critical_lr0"
    c.members.lr = (0.5, 1.67)
    c.data.name = "natural_patches"
    c.data.classes = (0, 1)
    c.model.width = 512
    c.measure.loss_test_every = 10
    c.claims = ("first_catapult", "spikes_are_catapults")
    if variant == "smoke":
        c.steps = 6
        c.data.train_size = 16
        c.data.test_size = 16
        c.model.width = 32
        c.members.seed = (0,)
        c.run.chunk_steps = 3
    return c
