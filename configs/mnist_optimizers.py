"""SGD, AdaGrad and Adam, each with a constant and with a cyclic lr: the table of accuracies of the MNIST study.

Claims: SGD gains test accuracy by catapults, AdaGrad loses by them; the published accuracies. Results: docs/claims.md, docs/optimizers.md.

    python -m experiments.sweep --config=configs/mnist_optimizers.py             # MNIST
    python -m experiments.sweep --config=configs/mnist_optimizers.py:fashion     # Fashion-MNIST
    python -m experiments.sweep --config=configs/mnist_optimizers.py:twenty      # twenty epochs at constant lrs: the published accuracies
    python -m experiments.main --config=configs/mnist_optimizers.py:held         # SGD with cycles, with and without a cap below the critical lr
    python -m experiments.sweep --config=configs/mnist_optimizers.py:smoke       # seconds

All arms have one protocol: a two-layer network, mse on one-hot targets, five epochs with batches of 128.
Each arm has five seeds at every lr of a grid, in multiples of its own critical lr at initialisation. That lr is measured on 256
examples, after the optimizer has seen one gradient. The lr with the smallest mean validation error over seeds counts.
"With catapults" means a triangular cyclic lr, whose peak is the lr of the grid. The critical lr of every 20th batch gives the fraction
of critical steps.

From the study: the data set, the two-layer network, the arms and their test accuracies. Our choice: width, epochs, batch size, cycles
and grid.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "mnist") -> ConfigDict:
    words = set(variant.split(","))
    if unknown := words - {"mnist", "fashion", "held", "twenty", "smoke"}:
        raise ValueError(
            f"variant {unknown.pop()!r}; allowed: mnist, fashion, held or twenty; with it, joined by a comma, smoke"
        )
    if "twenty" in words and words & {"fashion", "held"}:
        raise ValueError(f"variant {variant!r}; allowed with twenty: mnist, smoke")
    c = default.get_config()
    c.title = "Optimizers with and without catapults"
    c.data.name, c.data.target_encoding = "fashion_mnist" if "fashion" in words else "mnist", "one_hot"
    c.data.fallback = "digits"
    c.data.train_size, c.data.validation_size = 49_920, 4_000  # the same number of each digit
    c.model.depth, c.model.width = 2, 256
    c.steps = 5 * 390 + 1  # five epochs of 390 batches, and a step that measures the end
    c.optimizer.initial_accumulator_value = 0.0  # AdaGrad
    c.sweep = ("optimizer.name=sgd,adagrad,adam", "schedule.name=constant,cyclic")
    c.members.seed = (0, 1, 2, 3, 4)
    c.optimizer.lr_unit = "critical_lr0"
    c.members.lr = (1.0, 3.0, 10.0, 20.0, 40.0)
    c.optimizer.batch_size = 128
    c.schedule.period, c.schedule.low = 195, 0.1
    c.measure.method, c.measure.top_k, c.measure.lambda_max_batch_every = "matrix_free", 1, 20
    c.measure.loss_train_every = 0
    c.measure.probe_size = 256
    c.measure.loss_test_every = 390
    c.run.chunk_steps = 39
    c.run.checkpoint_every = 1950
    c.claims = ("catapults_help_sgd", "published_accuracies", "catapults_hurt_adagrad")
    if "held" in words:
        c.sweep, c.schedule.name, c.claims = (), "cyclic", ("catapults_help_beyond_cycles",)
        c.members.cap, c.members.lr = (None, 0.9), (10.0, 20.0, 40.0)
    if "twenty" in words:
        c.steps = 20 * 390 + 1
        c.sweep = ("optimizer.name=sgd,adagrad,adam", "schedule.name=constant")
        c.claims = ("published_accuracies",)
        c.members.lr = (0.3, 1.0, 3.0, 10.0, 20.0)
    if "smoke" in words:
        c.steps, c.data.train_size, c.data.validation_size, c.data.test_size, c.model.width = 8, 20, 10, 20, 16
        c.sweep = c.sweep and ("optimizer.name=sgd,adam", *c.sweep[1:])
        c.members.seed, c.members.lr = (0, 1), (0.1, 0.3)
        c.optimizer.batch_size, c.schedule.period, c.measure.probe_size, c.measure.lambda_max_batch_every = 5, 4, 10, 2
        c.run.chunk_steps, c.run.checkpoint_every, c.measure.loss_test_every = 4, 4, 2
    return c
