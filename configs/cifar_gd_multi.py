"""Several catapults: gradient descent on 128 CIFAR-10 images, with the lr raised twice (Zhu et al. 2024, Fig. 4).

Claim: raising the lr again makes another catapult. Results: docs/claims.md.

    python -m experiments.main --config=configs/cifar_gd_multi.py            # FCN
    python -m experiments.main --config=configs/cifar_gd_multi.py:cnn        # CNN
    python -m experiments.main --config=configs/cifar_gd_multi.py:smoke      # seconds; also cnn,smoke

The lr starts at half the critical lr. When the loss has settled it is raised to 1.67 (FCN) or 1.78 (CNN) times the critical lr of that
step.

From the paper: the networks of Fig. 3, and two raises. Our choice: the start, the heights of the raises, and those of cifar_gd.py.
"""

from ml_collections import ConfigDict

from configs import cifar_gd


def get_config(variant: str = "fcn") -> ConfigDict:
    c = cifar_gd.get_config(variant)
    chosen = variant.split(",")
    if set(chosen) & {"ratios", "width", "gpu"}:
        raise ValueError(f"variant {variant!r}; allowed: fcn, cnn, smoke, joined by commas")
    c.title = "GD on 128 images, lr raised twice"
    c.schedule.name = "staircase"
    c.schedule.raise_to = c.optimizer.lr
    c.optimizer.lr_unit = "critical_lr0"
    c.optimizer.lr = 0.5
    c.claims = ("catapult_follows_raise", "spikes_are_catapults")
    c.members.seed = (500, 501, 502, 503, 504)
    c.data.by_seed = True
    if "cnn" in chosen:
        c.schedule.settle_fraction = 0.8  # its loss falls more slowly
    if "smoke" not in chosen:
        c.steps = 90 if "cnn" in chosen else 300
    else:
        c.schedule.settle_steps = 1
        c.schedule.settle_fraction = 1.0
    return c
