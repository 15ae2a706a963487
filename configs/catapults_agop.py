"""Catapults and features: gradient descent with 0 to 4 catapults, trained to the same loss (Zhu et al. 2024, section on AGOP).

    python -m experiments.main --config=configs/catapults_agop.py:rank2         # also rank3, rank4
    python -m experiments.main --config=configs/reference.py:cifar2 --workdir=runs/reference-cifar2    # once, then
    python -m experiments.main --config=configs/catapults_agop.py:cifar2        # also svhn2, fmnist2, usps, celeba
    python -m experiments.main --config=configs/catapults_agop.py:rank2,smoke   # seconds

The lr is held at 0.9 times the critical lr *of that moment*, in every arm, and raised to 1.2 times it once for each catapult, until
the spike is over: so the arms differ in the raises alone, and the one without has no catapult. Every run ends at the same training
loss.

Measured on 2 CPU cores, five seeds, every member with as many catapults as raises (usps: 0 to 0.2 fewer on average):

- rank2, 27 s: from 0 to 4 catapults AGOP alignment 0.939, 0.956, 0.968, 0.978, 0.985, test loss 0.338, 0.286, 0.240, 0.195, 0.165; the order
  is the same in every seed. rank3 (24 s): alignment 0.842 to 0.918, test loss 0.214 to 0.122; rank4 (25 s): 0.859 to 0.907, 0.410 to
  0.288; both monotone.
- usps, 169 s: alignment 0.195 to 0.229, test loss 0.724 to 0.637, test error 0.323 to 0.299, monotone. fmnist2, 49 s: alignment 0.026 to 0.045,
  test loss 0.594 to 0.583 and not in every seed, test error unchanged: not reproduced. cifar2, 140 s: test loss 0.823 to 0.763, test error
  0.269 to 0.254, alignment 0.0013 to 0.0019 and not in every seed: not reproduced. svhn2 and celeba were not run: no data.

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
    c.optimizer.lr_unit = "critical_lr0"
    c.optimizer.lr = 100.0  # so that the cap decides
    c.schedule.name = "staircase"
    c.schedule.raise_to = 1.2
    c.schedule.cap = 0.9
    c.schedule.settle_fraction = 0.98
    c.schedule.settle_steps = 10
    c.measure.lambda_max_batch_every = 4
    c.measure.loss_test_every = 4
    c.measure.agop_alignment_every = 4
    c.run.chunk_steps = 50
    c.run.checkpoint_every = 600
    c.claims = ("catapults_raise_alignment",)
    if "smoke" in words:
        tasks.smoke(c)
        c.members.raises = (0, 1)
        c.schedule.settle_steps = 2
    return c
