"""AdaGrad with a cyclic lr: its critical lr outgrows the lr (MNIST study).

Claims: the critical lr of AdaGrad grows until no lr of the schedule is critical; the smallest entry of its accumulator grows. Ours: it has
fewer critical steps than SGD under the same cycles. Results: docs/claims.md.

    python -m experiments.main --config=configs/mnist_adagrad.py           # accumulator from 0; a minute
    python -m experiments.main --config=configs/mnist_adagrad.py:tenth     # from 0.1, Optax's default
    python -m experiments.sweep --config=configs/mnist_adagrad.py:arms     # SGD beside both
    python -m experiments.main --config=configs/mnist_adagrad.py:smoke     # seconds; with any of them

Measured at every step: the critical lr of AdaGrad, matrix-free, to one percent; and the bound of the study, which is the smallest entry
of the preconditioner times the critical lr of SGD.

From the study: the optimizer, the schedule and the two quantities. Our choice: batches of 32 from 2,048 images, ten outputs, a
two-layer network of width 256.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "zero") -> ConfigDict:
    words = set(variant.split(","))
    if words - {"zero", "tenth", "arms", "smoke"} or {"tenth", "arms"} <= words:
        raise ValueError(f"variant {variant!r}; allowed: zero, tenth or arms; with it, joined by a comma, smoke")
    c = default.get_config()
    c.title = "AdaGrad outgrows its learning rate"
    c.steps = 640
    c.data.name, c.data.target_encoding, c.data.fallback = "mnist", "one_hot", "digits"
    c.data.by_seed = True
    c.data.train_size, c.data.test_size = 2048, 2000
    c.model.depth, c.model.width = 2, 256
    c.members.seed = (400, 401, 402, 403, 404)
    c.optimizer.name = "adagrad"
    c.optimizer.initial_accumulator_value = 0.1 if "tenth" in words else 0.0
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
    c.claims = ("adagrad_outgrows_its_lr", "smallest_entry_grows")
    if "arms" in words:
        c.optimizer.initial_accumulator_value, c.measure.preconditioner_min_every = None, 0
        c.sweep = ("optimizer.name+optimizer.initial_accumulator_value=sgd+None,adagrad+0.0,adagrad+0.1",)
        c.claims = ("adagrad_has_fewer_critical_steps",)
    if "smoke" in words:
        c.steps, c.data.train_size, c.data.test_size, c.model.width, c.schedule.period = 8, 20, 20, 16, 4
        c.optimizer.batch_size, c.measure.loss_test_every, c.measure.probe_size = 4, 4, 10
        c.members.seed = (0, 1)
        c.run.chunk_steps = c.run.checkpoint_every = 4
    return c
