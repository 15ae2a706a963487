"""SGD on CIFAR-10, airplane against bird: spikes of the training loss, and the critical lr of each batch (Zhu et al. 2024).

Claims: spikes of the training loss are catapults, in the top eigenspace of the kernel; the loss of a batch rises in a step whose lr is
above the critical lr of that batch. Results: docs/claims.md.

    python -m experiments.main --config=configs/cifar_sgd.py:fcn            # also cnn, wrn, vit
    python -m experiments.main --config=configs/cifar_sgd.py:fcn,ce         # logistic loss in place of mse
    python -m experiments.main --config=configs/cifar_sgd.py:fcn,momentum   # heavy ball, 0.9
    python -m experiments.main --config=configs/cifar_sgd.py:fcn,smoke      # seconds; with any of them

Measured at every step: the critical lr of the batch, the kernel of the training set, and the loss of the batch after its update.
With momentum beta the critical lr is 2 (1 + beta) / lambda_max, and an exceedance explains a spike within 1 / (1 - beta) steps.

From the paper: SGD, these data, FCN and CNN (the architectures of Fig. 3). Everything else is our choice: 128 examples, batches of 32,
lr 0.8 times the critical lr of the training set at initialisation, networks smaller than in cifar_gd.py, so that five seeds take
minutes. Wide ResNet has GroupNorm and ViT has LayerNorm, since both treat each example alone.
"""

from ml_collections import ConfigDict

from configs import default, tasks

_MODELS = {
    "fcn": dict(name="fcn", depth=5, width=512),
    "cnn": dict(name="cnn", depth=5, width=64, strides=(4, 2, 1, 1)),
    "wrn": dict(name="wide_resnet", depth=10, width=16, stem_stride=2),
    "vit": dict(name="vit", depth=2, width=64, activation="gelu", patch_size=8),
}


def get_config(variant: str = "fcn") -> ConfigDict:
    words = set(variant.split(","))
    nets, unknown = words & set(_MODELS), words - set(_MODELS) - {"ce", "momentum", "smoke"}
    if unknown or len(nets) != 1:
        raise ValueError(
            f"variant {variant!r}; allowed: one of {', '.join(_MODELS)}; with it, joined by commas, ce, momentum, smoke"
        )
    c = default.get_config()
    c.title = "SGD on 128 images" + (", logistic loss" if "ce" in words else "") + (", momentum" if "momentum" in words else "")
    tasks.images(c, "cifar2")
    c.data.test_size = 500
    c.steps = 200
    c.members.seed = (0, 1, 2, 3, 4)
    c.model.update(_MODELS[nets.pop()])
    c.measure.loss_test_every = 10
    if c.model.name != "fcn":  # slow: a step has two kernels, and members of convolutional networks run one by one
        c.steps = 100
        c.measure.loss_test_every = 0  # saves compiling a program
    c.optimizer.batch_size = 32
    c.optimizer.lr_unit = "critical_lr0"
    c.optimizer.lr = 0.8
    c.measure.lambda_max_train_every = 1
    c.measure.loss_batch_after_every = 1
    c.run.chunk_steps = 20
    c.run.checkpoint_every = 200
    c.claims = ("sgd_spikes_are_catapults", "exceedance_predicts_rise")
    if "ce" in words:
        c.loss, c.data.target_encoding = "logistic", "binary"
    if "momentum" in words:
        c.optimizer.momentum = 0.9
    if "smoke" in words:
        width = 8 if c.model.name in ("wide_resnet", "vit") else 32
        tasks.smoke(c)
        c.model.width, c.optimizer.batch_size = width, 5
        c.data.image_size = 16
        c.steps = c.run.chunk_steps = c.run.checkpoint_every = 4
        c.members.seed = (0,)
    return c
