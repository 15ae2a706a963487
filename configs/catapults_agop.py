"""Catapults and features: gradient descent with 0 to 3 catapults, trained to the same loss (Zhu et al. 2024, section on AGOP).

Claims: more catapults give a higher AGOP alignment and a better test performance; ours: as many raises that stay below the critical lr do
little. Results: docs/claims.md.

    python -m experiments.sweep --config=configs/catapults_agop.py:rank2        # also rank3, rank4
    python -m experiments.main --config=configs/reference.py:cifar2 --workdir=runs/reference-cifar2    # once, and cifar2,second; then
    python -m experiments.sweep --config=configs/catapults_agop.py:cifar2       # also svhn2, fmnist2, usps, celeba
    python -m experiments.sweep --config=configs/catapults_agop.py:rank2,smoke  # seconds

In every arm the lr stays at 0.9 times the critical lr of the current step. For each catapult it is raised once, to 1.2 times the
critical lr, until the spike is over. So the arms differ only in the number of raises, and the arm without a raise has no catapult.
The twin arms have as many raises, to 0.98 times the critical lr. The heights of the raises and the loss to stop at were chosen on the seeds
0 to 4; the number of raises on the seeds 500 to 509, where twins with four raises came past that loss. The seeds here are fresh.

From the paper: gradient descent, several catapults, AGOP alignment against test performance. Everything else is our choice.
"""

from ml_collections import ConfigDict

from configs import default, tasks


def get_config(variant: str = "rank2") -> ConfigDict:
    task, words = tasks.split(variant, ("smoke",))
    c = default.get_config()
    c.title = f"Catapults and AGOP, {task}"
    tasks.choose(c, task)
    c.steps = 600
    c.members.seed = tuple(range(520, 530 if task in tasks.SYNTHETIC else 525))
    c.members.raises = (0, 1, 2, 3)
    c.optimizer.lr_unit = "critical_lr0"
    c.optimizer.lr = 100.0  # high, so that the cap decides
    c.schedule.name = "staircase"
    c.sweep = ("schedule.raise_to=1.2,0.98",)
    c.schedule.raise_to = 1.2
    c.schedule.cap = 0.9
    c.schedule.settle_fraction = 0.98
    c.schedule.settle_steps = 10
    c.measure.lambda_max_batch_every = 4
    c.measure.loss_test_every = 4
    c.measure.agop_alignment_every = 4
    c.run.chunk_steps = 50
    c.run.checkpoint_every = 600
    c.claims = ("catapults_raise_alignment", "catapults_lower_the_test_loss", "raises_below_critical_do_little")
    if "smoke" in words:
        tasks.smoke(c)
        c.members.raises = (0, 1)
        c.schedule.settle_steps = 2
    return c
