"""Condition number and norm of the NTK along training with cyclic lrs; catapult phases are marked (MNIST study).

Claim: the norm of the NTK falls in catapult phases; its condition number is described. Results: docs/claims.md.

    python -m experiments.main --config=configs/mnist_ntk.py               # triangular cycles
    python -m experiments.main --config=configs/mnist_ntk.py:exponential   # cycles of decreasing height
    python -m experiments.main --config=configs/mnist_ntk.py:smoke         # seconds

Gradient descent on 32 images with ten outputs, by a two-layer network of width 128. It has 102,000 weights for a kernel of 320 rows, so
that the kernel has full rank. The peak of the lr is three times the critical lr at initialisation. The run is in double precision, since in
single precision the smallest eigenvalue is near the rounding error.

From the study: the two quantities and the two schedules. All sizes are our choice.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "cyclic") -> ConfigDict:
    words = set(variant.split(","))
    if unknown := words - {"cyclic", "exponential", "smoke"}:
        raise ValueError(f"variant {unknown.pop()!r}; allowed: cyclic or exponential; with it, joined by a comma, smoke")
    c = default.get_config()
    c.title = "Condition number of the NTK, " + ("exponential cycles" if "exponential" in words else "cycles")
    c.steps = 400
    c.data.name, c.data.target_encoding, c.data.fallback = "mnist", "one_hot", "digits"
    c.data.by_seed = True
    c.data.train_size, c.data.test_size = 32, 1000
    c.model.depth, c.model.width = 2, 128
    c.members.seed = tuple(range(500, 510))
    c.optimizer.lr_unit = "critical_lr0"
    c.optimizer.lr = 3.0
    c.schedule.name = "exponential_cyclic" if "exponential" in words else "cyclic"
    c.schedule.period, c.schedule.low, c.schedule.decay = 40, 0.1, 0.997
    c.measure.loss_test_every = 10
    c.events.factor = 1.2
    c.run.float64 = True
    c.run.chunk_steps = 20
    c.run.checkpoint_every = 200
    c.claims = ("catapults_lower_the_norm",)
    if "smoke" in words:
        c.steps, c.data.train_size, c.data.test_size, c.model.width, c.schedule.period = 8, 6, 20, 16, 4
        c.members.seed = (0, 1)
        c.run.chunk_steps = c.run.checkpoint_every = 4
    return c
