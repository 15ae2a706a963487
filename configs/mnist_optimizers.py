"""Five arms of the MNIST study and a control: SGD, AdaGrad and Adam, with a constant and with a cyclic lr.

Claims: the published accuracies; SGD gains test accuracy by cycles that make catapults, AdaGrad loses by them (MNIST study). Ours: cycles against a constant
lr where both are tuned, against an lr that falls once at the end, and against the same cycles below the critical lr.
Results: docs/claims.md.

    python -m experiments.sweep --config=configs/mnist_optimizers.py             # MNIST
    python -m experiments.sweep --config=configs/mnist_optimizers.py:fashion     # Fashion-MNIST
    python -m experiments.main --config=configs/mnist_optimizers.py:capped       # SGD with cycles, free and capped below the critical lr
    python -m experiments.sweep --config=configs/mnist_optimizers.py:smoke       # seconds

All arms have one protocol: a two-layer network, mse on one-hot targets, 30 epochs with batches of 128. Test and validation errors are
measured after each epoch; the cycles are half an epoch long, so that they are at their lowest lr then.
Each arm has five seeds at every lr of a grid, in multiples of its own critical lr at initialisation. That lr is measured on 256
examples, after the optimizer has seen one gradient.
"With catapults" means a triangular cyclic lr, whose peak is the lr of the grid. The control "decay" holds the lr at the peak and lets it
fall in the last half epoch. The critical lr of every 39th batch gives the fraction of critical steps.

From the study: the data set, the two-layer network, the arms and their test accuracies. Our choice: width, batch size, cycles and grid.
The grid and the number of epochs were chosen on the seeds 0 to 4, and the rows at the same peaks on 400 to 404; the seeds here are fresh.
"""

from ml_collections import ConfigDict

from configs import default

_EPOCH = 390  # steps


def get_config(variant: str = "mnist") -> ConfigDict:
    words = set(variant.split(","))
    if unknown := words - {"mnist", "fashion", "capped", "smoke"}:
        raise ValueError(f"variant {unknown.pop()!r}; allowed: mnist, fashion or capped; with it, joined by a comma, smoke")
    c = default.get_config()
    c.title = "Optimizers with and without catapults"
    c.data.name, c.data.target_encoding = "fashion_mnist" if "fashion" in words else "mnist", "one_hot"
    c.data.fallback = "digits"
    c.data.train_size, c.data.validation_size = 49_920, 4_000  # the same number of each digit
    c.model.depth, c.model.width = 2, 128
    epochs = 5 if "capped" in words else 30
    c.steps = epochs * _EPOCH + 1  # and a step that measures the end
    c.optimizer.initial_accumulator_value = 0.0  # AdaGrad
    c.sweep = ("optimizer.name+schedule.name=sgd+constant,sgd+cyclic,sgd+decay,adagrad+constant,adagrad+cyclic,adam+constant",)
    c.members.seed = (410, 411, 412, 413, 414)
    c.optimizer.lr_unit = "critical_lr0"
    c.members.lr = (1.0, 3.0, 10.0, 30.0)
    c.optimizer.batch_size = 128
    c.schedule.period, c.schedule.low, c.schedule.decay_from = _EPOCH // 2, 0.1, epochs * _EPOCH - _EPOCH // 2
    c.measure.method, c.measure.top_k, c.measure.lambda_max_batch_every = "matrix_free", 1, 39
    c.measure.loss_train_every = 0
    c.measure.probe_size = 256
    c.measure.loss_test_every = _EPOCH
    c.run.chunk_steps = 39
    c.run.checkpoint_every = 5 * _EPOCH
    c.claims = (
        "published_accuracies", "catapults_help_sgd", "catapults_hurt_adagrad", "cycles_help_tuned_sgd", "cycles_help_beyond_decay",
    )  # fmt: skip
    if "capped" in words:
        c.sweep, c.schedule.name, c.claims = (), "cyclic", ("catapults_help_beyond_cycles",)
        c.members.seed = (400, 401, 402, 403, 404)
        c.members.cap, c.members.lr = (None, 0.9), (3.0, 10.0, 30.0)
        c.measure.lambda_max_batch_every = 20
    if "smoke" in words:
        c.steps, c.data.train_size, c.data.validation_size, c.data.test_size, c.model.width = 8, 20, 10, 20, 16
        c.sweep = ("optimizer.name+schedule.name=sgd+constant,sgd+cyclic,adam+constant",) if c.sweep else ()
        c.members.seed, c.members.lr, c.schedule.decay_from = (0, 1), (0.1, 0.3), 4
        c.optimizer.batch_size, c.schedule.period, c.measure.probe_size, c.measure.lambda_max_batch_every = 5, 4, 10, 2
        c.run.chunk_steps, c.run.checkpoint_every, c.measure.loss_test_every = 4, 4, 4
    return c
