"""Batch size: catapults, AGOP alignment and test loss, at a shared lr and at an lr tuned for each batch size (Zhu et al. 2024).

Claims: at the same lr smaller batches give more catapults, a higher AGOP alignment and a better test performance; ours: the same where each
size has its own lr; with momentum they help without a catapult. Results: docs/claims.md.

    python -m experiments.sweep --config=configs/batch_size.py:rank2            # also rank3, rank4, cifar2, svhn2, fmnist2, usps, celeba
    python -m experiments.sweep --config=configs/batch_size.py:cifar2,ce        # two classes: logistic loss
    python -m experiments.sweep --config=configs/batch_size.py:rank2,momentum   # heavy ball, 0.9
    python -m experiments.main --config=configs/batch_size.py:rank2             # a single batch size
    python -m experiments.sweep --config=configs/batch_size.py:rank2,smoke      # seconds

Each batch size is a run. It has ten seeds (images: five) at every lr of a grid, in multiples of the critical lr at initialisation. The grid is the
same for all batch sizes, and every run ends at the same training loss.
The shared lr is the largest of the grid at which every seed of every batch size reaches that loss.
The tuned lr of a batch size is the one with the smallest mean loss on validation examples. It is needed because a smaller
batch has a smaller critical lr: a shared lr confounds batch size with lr / critical lr.

From the paper: the claim and the names of the data sets. Everything else is our choice.
"""

from ml_collections import ConfigDict

from configs import default, tasks


def get_config(variant: str = "rank2") -> ConfigDict:
    task, words = tasks.split(variant, ("ce", "momentum", "smoke"))
    c = default.get_config()
    c.title = (
        f"Batch size, {task}" + (", logistic loss" if "ce" in words else "") + (", momentum" if "momentum" in words else "")
    )
    tasks.choose(c, task)
    if "ce" in words and c.data.target_encoding != "sign":
        raise ValueError(f"variant {variant!r}; allowed: ce with a task of two classes")
    c.data.validation_size = 256
    c.steps = 3000
    c.sweep = ("optimizer.batch_size=4,8,16,32,64,128",)
    c.members.seed = tuple(range(500, 510) if task in tasks.SYNTHETIC else range(510, 515))
    c.optimizer.lr_unit = "critical_lr0"
    c.members.lr = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0)
    c.optimizer.batch_size = 16
    c.measure.loss_test_every = 20
    c.measure.agop_alignment_every = 20
    c.run.chunk_steps = 100
    c.run.checkpoint_every = 1000
    if task in tasks.IMAGES:  # larger networks: fewer steps
        c.steps = 1000
    if task == "usps":  # 100 examples, and ten outputs for each: kernels of 500 and 1,000 rows take too long, products do not
        c.sweep = ("optimizer.batch_size+measure.method=5+exact,10+exact,20+exact,25+exact,50+matrix_free,100+matrix_free",)
        c.members.seed, c.measure.top_k = tuple(range(520, 525)), 1
    c.claims = ("small_batches_help", "small_batches_help_at_tuned_lrs")
    if "ce" in words:
        c.loss, c.data.target_encoding = "logistic", "binary"
    if "momentum" in words:
        c.optimizer.momentum = 0.9
        c.members.lr = tuple(round(0.1 * lr, 3) for lr in c.members.lr)
        c.claims = (*c.claims, "small_batches_help_without_catapults")
    if "smoke" in words:
        tasks.smoke(c)
        c.data.validation_size, c.optimizer.batch_size, c.sweep = 10, 5, ("optimizer.batch_size=5,10",)
        c.members.lr, c.measure.loss_test_every, c.measure.agop_alignment_every = (0.1, 0.2), 2, 2
    return c
