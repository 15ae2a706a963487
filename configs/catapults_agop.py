"""Catapults and features: gradient descent with 0 to 4 catapults, trained to the same loss (Zhu et al. 2024, section on AGOP).

    python -m experiments.main --config=configs/catapults_agop.py:rank2         # also rank3, rank4
    python -m experiments.main --config=configs/reference.py:cifar2 --workdir=runs/reference-cifar2    # once, then
    python -m experiments.main --config=configs/catapults_agop.py:cifar2        # also svhn2, fmnist2, usps, celeba
    python -m experiments.main --config=configs/catapults_agop.py:rank2,smoke   # seconds

The lr is held at 0.9 times the critical lr *of that moment*, in every arm, and raised to 1.2 times it once for each catapult, until
the spike is over: so the arms differ in the raises alone, and the one without has no catapult. Every run ends at the same training
loss.

From the published text: gradient descent, several catapults, AGOP alignment against test performance. Everything else is our
choice.
"""

from ml_collections import ConfigDict

from configs import default, tasks


def get_config(variant: str = "rank2") -> ConfigDict:
    task, words = tasks.split(variant, ("smoke",))
    c = default.get_config()
    c.title = f"Catapults and AGOP, {task}"
    tasks.choose(c, task)
    c.steps = 600
    c.members.seed = (0, 1, 2, 3, 4)
    c.members.raises = (0, 1, 2, 3, 4)
    c.optimizer.lr_relative = 100.0  # so that the cap decides
    c.schedule.name = "staircase"
    c.schedule.raise_to = 1.2
    c.schedule.cap = 0.9
    c.schedule.settle_fraction = 0.98
    c.schedule.settle_steps = 10
    c.measure.batch_kernel_every = 4
    c.measure.test_every = 4
    c.measure.agop_every = 4
    c.run.chunk_steps = 50
    c.run.checkpoint_every = 600
    c.run.stop_loss = 0.01
    c.claims = ("catapults_raise_alignment",)
    if task in tasks.IMAGES:  # the loss falls more slowly there
        c.run.stop_loss = 0.05 if task == "usps" else 0.2
    if "smoke" in words:
        tasks.smoke(c)
        c.members.raises = (0, 1)
        c.schedule.settle_steps = 2
        c.run.stop_loss = 0.9
        if task in tasks.IMAGES:
            c.measure.agop_reference = f"runs/reference-{task}-smoke/model.npz"
    return c
