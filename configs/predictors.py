"""Predictors: which criterion tells that the loss rises in this very step? Spectral against directional, for six optimizers.

    python -m experiments.main --config=configs/predictors.py            # sgd; also heavy_ball, nesterov, adam, adagrad, rmsprop
    python -m experiments.main --config=configs/predictors.py:adam,smoke

Published (Zhu et al. 2024, Fig. 5): with batch size one the loss of the batch rises exactly where lr > critical lr. For larger batches that
criterion says what may grow over many steps; the directional one (ours, after arXiv 2412.20553 and 2601.16979) says
what this step does. One jvp each, no eigenvalue, no preconditioner.

Hypotheses, fixed before the confirming runs with the seeds 200 to 204: H4 and H5 of experiments/verdicts/predictors.py. The trials used the
seeds 0 and 1. CIFAR-10 (airplane, bird), 128 points, FCN of five layers and width 256, batches of 32, lr 0.3 to 1.5 times the critical lr
at the start.
"""

from ml_collections import ConfigDict

from configs import default, tasks

OPTIMIZERS = ("sgd", "heavy_ball", "nesterov", "adam", "adagrad", "rmsprop")


def get_config(variant: str = "sgd") -> ConfigDict:
    words = set(variant.split(","))
    names, unknown = words & set(OPTIMIZERS), words - set(OPTIMIZERS) - {"smoke"}
    if unknown or len(names) != 1:
        raise ValueError(f"variant {variant!r}; allowed: one of {', '.join(OPTIMIZERS)}; with it, joined by a comma, smoke")
    c = default.get_config()
    c.optimizer.name = names.pop()
    c.title = f"Predictors of a rise, {c.optimizer.name}"
    tasks.images(c, "cifar2")
    c.data.by_seed = True
    c.data.test_size = 16
    c.steps = 160
    c.members.seed = (200, 201, 202, 203, 204)
    c.members.lr = (0.3, 0.6, 1.0, 1.5)
    c.optimizer.lr_unit = "critical_lr0"
    c.optimizer.batch_size = 32
    c.model.depth, c.model.width = 5, 256
    c.measure.loss_batch_after_every = c.measure.directional_batch_every = c.measure.directional_train_every = 1
    if c.optimizer.name in ("adam", "adagrad", "rmsprop"):  # their exact kernel takes the gradients of each example
        c.measure.method, c.measure.top_k = "matrix_free", 1
    c.run.chunk_steps = 20
    c.run.checkpoint_every = 160
    c.claims = ("directional_predicts_the_step",)
    if "smoke" in words:
        tasks.smoke(c)
        c.model.width, c.optimizer.batch_size, c.data.image_size, c.members.lr = 32, 5, 16, (0.6, 1.5)
    return c
