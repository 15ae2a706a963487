"""Predictors: which criterion tells that the loss rises, in this step and in the next ones? Six optimizers, every criterion.

    python -m experiments.main --config=configs/predictors.py            # sgd; also heavy_ball, nesterov, adam, adagrad, rmsprop
    python -m experiments.main --config=configs/predictors.py:sgd,rank2  # a second task; also with the others
    python -m experiments.main --config=configs/predictors.py:adam,smoke
    python -m experiments.predictor_tables runs/DIRECTORY                # the complete tables

Published (Zhu et al. 2024, Fig. 5): with batch size one the loss of the batch rises exactly where lr > critical lr. For larger batches that
criterion says what may grow over many steps; the directional one (ours, after arXiv 2412.20553 and 2601.16979) says
what this step does. The criteria, their costs and the protocol are on docs/predictors.md.

Hypotheses, fixed before the confirming runs with the seeds 300 to 304 (CIFAR-10) and 310 to 319 (rank2). The trials used the seeds 0 and 1.

- H4 and H5 (claim ``directional_predicts_the_step``): the directional criteria say more about this step than the spectral one, c3 about
  the loss of the batch and c5 about the training loss.
- H6 (claim ``spectral_predicts_the_horizon``): "directional predicts this step, spectral the horizon". For the onset of a spike of factor
  1.5 within the next 5 steps, the area under the ROC curve of the noise kernel's trace (c7 in its trace form, the member of the spectral
  family that a trial had named) is above that of c3 and above that of c5. It is decided for each optimizer.

CIFAR-10 (airplane, bird) at 8 x 8 pixels, 128 images, FCN of five layers and width 128, batches of 32, lr 0.3 to 2 times the critical lr
at the start. Images and network are this small because the kernel of the training set with a preconditioner takes all products of the
gradients of two examples, at every step of each of the 25 members. rank2: a synthetic target, 128 examples, a two-layer FCN of width 128.
"""

from ml_collections import ConfigDict

from configs import default, tasks

OPTIMIZERS = ("sgd", "heavy_ball", "nesterov", "adam", "adagrad", "rmsprop")


def get_config(variant: str = "sgd") -> ConfigDict:
    words = set(variant.split(","))
    names, unknown = words & set(OPTIMIZERS), words - set(OPTIMIZERS) - {"rank2", "smoke"}
    if unknown or len(names) != 1:
        raise ValueError(
            f"variant {variant!r}; allowed: one of {', '.join(OPTIMIZERS)}; with it, joined by commas, rank2, smoke"
        )
    c = default.get_config()
    c.optimizer.name = names.pop()
    c.title = f"Predictors of a rise, {c.optimizer.name}"
    if "rank2" in words:
        c.title += ", rank2"
        tasks.choose(c, "rank2")
        c.run.stop_loss = c.measure.agop_reference = None
        c.members.seed = tuple(range(310, 320))
        c.model.depth = 2
    else:
        tasks.images(c, "cifar2")
        c.data.image_size = 8
        c.members.seed = (300, 301, 302, 303, 304)
        c.model.depth = 5
    c.model.width = 128
    c.data.by_seed = True
    c.data.train_size, c.data.test_size = 128, 16
    c.steps = 120
    c.members.lr = (0.3, 0.6, 1.0, 1.5, 2.0)
    c.optimizer.lr_unit = "critical_lr0"
    c.optimizer.batch_size = 32
    c.measure.loss_batch_after_every = c.measure.directional_batch_every = c.measure.directional_train_every = 1
    c.measure.criteria_every = 1
    c.run.chunk_steps = 20
    c.run.checkpoint_every = 120
    c.claims = ("directional_predicts_the_step", "spectral_predicts_the_horizon")
    if "smoke" in words:
        tasks.smoke(c)
        c.model.width, c.optimizer.batch_size, c.members.lr = 32, 5, (0.6, 1.5)
    return c
