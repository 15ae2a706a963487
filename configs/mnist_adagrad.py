"""AdaGrad with a cyclic lr: its critical lr outgrows the lr (MNIST study).

Claim: the critical lr of AdaGrad grows until no lr of the schedule is critical. Results: docs/claims.md.

    python -m experiments.main --config=configs/mnist_adagrad.py           # a minute
    python -m experiments.main --config=configs/mnist_adagrad.py:smoke     # seconds

Measured at every step: the critical lr of AdaGrad, matrix-free, to one percent; and the bound of the study, which is the smallest entry
of the preconditioner times the critical lr of SGD.

From the study: the optimizer, the schedule and the two quantities. Our choice: batches of 32 from 2,048 images, ten outputs, a
two-layer network of width 256.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "full") -> ConfigDict:
    if variant not in ("full", "smoke"):
        raise ValueError(f"variant {variant!r}; allowed: full, smoke")
    c = default.get_config()
    c.title = "AdaGrad outgrows its learning rate"
    c.steps = 640
    c.data.name, c.data.target_encoding, c.data.fallback = "mnist", "one_hot", "digits"
    c.data.train_size, c.data.test_size = 2048, 2000
    c.model.depth, c.model.width = 2, 256
    c.members.seed = (0, 1, 2, 3, 4)
    c.optimizer.name = "adagrad"
    c.optimizer.lr_unit = "critical_lr0"
    c.optimizer.lr = 2.0
    c.optimizer.batch_size = 32
    c.schedule.name, c.schedule.period, c.schedule.low = "cyclic", 64, 0.1
    c.measure.method = "matrix_free"
    c.measure.top_k = 1
    c.measure.loss_train_every = 0
    c.measure.preconditioner_min_every = 1
    c.measure.loss_batch_after_every = 1
    c.measure.loss_test_every = 16
    c.measure.probe_size = 256
    c.run.chunk_steps = 32
    c.run.checkpoint_every = 320
    c.claims = ("adagrad_outgrows_its_lr",)
    if variant == "smoke":
        c.steps, c.data.train_size, c.data.test_size, c.model.width, c.schedule.period = 8, 20, 20, 16, 4
        c.optimizer.batch_size, c.measure.loss_test_every, c.measure.probe_size = 4, 4, 10
        c.members.seed = (0, 1)
        c.run.chunk_steps = c.run.checkpoint_every = 4
    return c
