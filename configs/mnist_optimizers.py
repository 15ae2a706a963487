"""SGD, AdaGrad and Adam, each at a constant and at a cyclic lr: the table of the MNIST study.

    python -m experiments.sweep --config=configs/mnist_optimizers.py             # MNIST
    python -m experiments.sweep --config=configs/mnist_optimizers.py:fashion     # Fashion-MNIST
    python -m experiments.sweep --config=configs/mnist_optimizers.py:twenty      # twenty epochs at constant lrs: the published levels
    python -m experiments.main --config=configs/mnist_optimizers.py:held         # the cycles alone: SGD held below its critical lr, or not
    python -m experiments.sweep --config=configs/mnist_optimizers.py:smoke       # seconds

One protocol for all arms: a two-layer network, mse on one-hot targets, five epochs with batches of 128; five seeds at every lr of one grid, in multiples
of the arm's own critical lr at initialisation (on 256 examples, after the optimizer has seen one gradient); of each arm the lr with the smallest
mean validation error over seeds. "With catapults" is a triangular cyclic lr of which the grid gives the peak. The critical lr of every 20th
batch tells which fraction of the steps was critical.

Measured on 2 CPU cores, five seeds, 23 min in one process with other work beside it, test accuracy in percent (published): SGD 92.9 (95.38), cyclic 95.4
(97.65), AdaGrad 95.1 (97.09), cyclic 95.8 (95.91), Adam 96.6 (98.12), cyclic 96.8. So SGD gains 2.5 points [2.2, 2.8] from a cyclic lr, of whose steps 12 %
are critical against 1 %: the order holds. Held below the critical lr the same cycles give 95.2 %: of the 2.5 points 0.27 [0.14, 0.42] are due to catapults. The levels are 1.5 to 2.5
points below the published ones, for want of epochs: after twenty (11 min) SGD has 95.3, AdaGrad 96.4 and Adam 97.5 %, within a point of them. That AdaGrad loses by catapults does not hold. On Fashion-MNIST: SGD 81.8, cyclic 84.5, AdaGrad 84.1, cyclic 85.0, Adam 86.6 both.

Changed after earlier runs on the same seeds, in this order. The grid: the first, 0.3 to 10, had five of six arms best at its upper end; there SGD gained 2.1 points [1.6, 2.7] as well, but
not every seed had more critical steps, so that the verdict was "not reproduced". The accuracy is read after five epochs, not four, and AdaGrad's accumulator begins at zero, not at
Optax's 0.1, with which its arms were those of SGD within 0.1 points; SGD gained 2.7 points [2.2, 3.1] then, and the verdicts were those of now.

From the published text: the data set, the two-layer network, the arms and their test accuracies. Width, epochs, batch size, cycles and grid are ours.
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
    c.data.train_size, c.data.validation_size = 49_920, 4_000  # as many of each digit
    c.model.depth, c.model.width = 2, 256
    c.steps = 5 * 390 + 1  # epochs of 390 batches, and one step that is measured after them
    c.optimizer.initial_accumulator_value = 0.0  # of AdaGrad
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
