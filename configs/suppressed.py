"""The causal test: the same SGD run with catapults allowed, and with catapults suppressed from a step on.

Claim (ours): catapults cause the better features. Results: docs/claims.md.

    python -m experiments.main --config=configs/suppressed.py           # rank2; also rank3, rank4, and the image tasks
    python -m experiments.main --config=configs/suppressed.py:rank2,smoke

Both arms of a seed have the same initialisation and the same batches, and are equal bit by bit up to step 10. From there on one arm has
a cap: its lr stays at or below 0.9 times the critical lr of the batch of each step. The arms are members of one program, and are
compared at equal training loss.
The cap also lowers the mean lr. So the test is on an lr above the critical lr, not on the spike by itself.

All settings are our choice.
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
