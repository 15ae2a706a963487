"""Several catapults: gradient descent on 128 CIFAR-10 images with the lr raised twice (Fig. 4 of Zhu et al. 2024).

    python -m experiments.main --config=configs/cifar_gd_multi.py            # FCN
    python -m experiments.main --config=configs/cifar_gd_multi.py:cnn        # CNN
    python -m experiments.main --config=configs/cifar_gd_multi.py:smoke      # seconds; also cnn,smoke

Measured on 2 CPU cores, three seeds: FCN, 2 min: 6 of 6 raises are followed by a catapult, after 2 steps (0 to 5). CNN, 9 min: 6 of 6,
after 3 steps (0 to 5).

From the published text: the networks of Fig. 3 and two raises. Our choices: the start at half the critical lr, a raise to 1.67 (FCN)
or 1.78 (CNN) times the critical lr *of that moment* when the loss has settled, and those of cifar_gd.py.
"""

from ml_collections import ConfigDict

from configs import cifar_gd


def get_config(variant: str = "fcn") -> ConfigDict:
    c = cifar_gd.get_config(variant)
    chosen = variant.split(",")
    if "ratios" in chosen:
        raise ValueError("variant 'ratios'; allowed: fcn, cnn, smoke, joined by commas")
    c.title = "GD on 128 images, lr raised twice"
    c.schedule.name = "staircase"
    c.schedule.raise_to = c.optimizer.lr
    c.optimizer.lr_unit = "critical_lr0"
    c.optimizer.lr = 0.5
    c.claims = ("catapult_follows_raise", "spikes_are_catapults")
    c.members.seed = (0, 1, 2)
    if "cnn" in chosen:
        c.schedule.settle_fraction = 0.8  # its loss falls more slowly
    if "smoke" not in chosen:
        c.steps = 90 if "cnn" in chosen else 200
    else:
        c.schedule.settle_steps = 1
        c.schedule.settle_fraction = 1.0
    return c
