"""The causal test: the same SGD run with catapults allowed and, from one step on, forbidden, compared at equal training loss.

    python -m experiments.main --config=configs/suppressed.py           # rank2; also rank3, rank4, and the image tasks
    python -m experiments.main --config=configs/suppressed.py:rank2,smoke

Both arms of a seed have the same initialisation and batches and are equal to the bit up to step 10; from there on one of them is
held at 0.9 times the critical lr *of the batch of each step* wherever its lr would be higher. This is a fork from one
checkpoint, run as members of one program.

Measured on 2 CPU cores, eight seeds: rank2, 10 s, 4.3 catapults where they are allowed and none where they are not; AGOP alignment 0.972
against 0.963, test loss 0.194 against 0.248, difference -0.054 [-0.083, -0.027]. The lr of the arm that is held is lower as well, 0.92
against 0.98 times critical on average: what is forbidden is lr above the critical one, not the spike by itself. cifar2, 61 s: no more
catapults where they are allowed, so nothing is tested. All choices are ours.
"""

from ml_collections import ConfigDict

from configs import default, tasks


def get_config(variant: str = "rank2") -> ConfigDict:
    task, words = tasks.split(variant, ("smoke",))
    c = default.get_config()
    c.title = f"Catapults forbidden, {task}"
    tasks.choose(c, task)
    c.steps = 3000
    c.members.seed = tuple(range(8))
    c.members.cap = (None, 0.9)
    c.optimizer.batch_size = 16
    c.optimizer.lr_unit = "critical_lr0"
    c.optimizer.lr = 1.2
    c.schedule.cap_from = 10
    c.measure.lambda_max_batch_every = 1
    c.measure.loss_test_every = 10
    c.measure.agop_alignment_every = 10
    c.run.chunk_steps = 100
    c.run.checkpoint_every = 1000
    c.claims = ("forbidding_catapults_hurts",)
    if "smoke" in words:
        tasks.smoke(c)
        c.optimizer.batch_size, c.schedule.cap_from, c.measure.loss_test_every, c.measure.agop_alignment_every = 5, 2, 2, 2
    return c
