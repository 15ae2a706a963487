"""Batch size: catapults, AGOP alignment and test loss, at one shared lr and at an lr tuned for each batch size.

    python -m experiments.sweep --config=configs/batch_size.py:rank2         # also rank3, rank4, cifar2, svhn2, fmnist2, usps, celeba
    python -m experiments.sweep --config=configs/batch_size.py:cifar2,ce     # two classes: logistic loss
    python -m experiments.sweep --config=configs/batch_size.py:rank2,momentum
    python -m experiments.main --config=configs/batch_size.py:rank2          # one batch size alone
    python -m experiments.sweep --config=configs/batch_size.py:rank2,smoke   # seconds

One run for each batch size, in each five seeds at every lr of one grid, which is the same for all batch sizes: multiples of the
critical lr at initialisation. Every run ends at the same training loss. (a) takes the largest lr of the grid at which every seed of
every batch size gets there, (b) for each batch size the lr with the smallest mean loss on validation examples: since a smaller batch has
a smaller critical lr, (a) alone would confound batch size with lr / critical lr.

Measured on 2 CPU cores, five seeds, three batch sizes (`--scale=cpu` of experiments.claims), 40 s (rank2) to 5 min (cifar2):

- rank2, batches 4, 16, 64. (a) at 0.6 times the critical lr: test loss 0.171, 0.297, 0.310, alignment 0.975, 0.944, 0.939, catapults 31, 0.2, 0.
  (b) at 0.6, 1.2, 1.5: test loss 0.171, 0.173, 0.178, alignment 0.975, 0.974, 0.976. So the effect at a shared lr is strong, and it is gone when
  the lr is tuned. rank4 the same: (a) 0.274, 0.380, 0.392; (b) 0.274, 0.304, 0.311.
- usps, batches 5, 15, 40, at the largest lr of the grid: test loss 0.612, 0.646, 0.671, fewer than one catapult a run. cifar2, fmnist2 and cifar2,ce: no
  order of the test loss, and for mse more catapults with *larger* batches.
- rank2,momentum: (a) test loss 0.151, 0.297, 0.310 without a single exceedance at an onset.

The claim as a whole is reported as reproduced on rank3 alone, and as not reproduced on each of the others.

From the published text: the claim, and the names of the data sets. Everything else is our choice.
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
    c.sweep = ("optimizer.batch_size=4,8,16,32,64",)
    c.members.seed = (0, 1, 2, 3, 4)
    c.optimizer.lr_unit = "critical_lr0"
    c.members.lr = (0.4, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0)
    c.optimizer.batch_size = 16
    c.measure.loss_test_every = 20
    c.measure.agop_alignment_every = 20
    c.run.chunk_steps = 100
    c.run.checkpoint_every = 1000
    if task in tasks.IMAGES:  # larger networks: fewer rates and steps
        c.members.lr = (0.4, 0.8, 1.2, 1.6)
        c.sweep = ("optimizer.batch_size=5,10,20,40" if task == "usps" else "optimizer.batch_size=8,16,32,64",)
        c.steps = 1000
    c.claims = ("small_batches_help",)
    if "ce" in words:
        c.loss, c.data.target_encoding = "logistic", "binary"
    if "momentum" in words:
        c.optimizer.momentum = 0.9
        c.members.lr = tuple(0.1 * rate for rate in c.members.lr)
    if "smoke" in words:
        tasks.smoke(c)
        c.data.validation_size, c.optimizer.batch_size, c.sweep = 10, 5, ("optimizer.batch_size=5,10",)
        c.members.lr, c.measure.loss_test_every, c.measure.agop_alignment_every = (0.1, 0.2), 2, 2
    return c
