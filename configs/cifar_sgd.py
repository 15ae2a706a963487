"""SGD on CIFAR-10, airplane against bird: spikes of the training loss (Zhu et al. 2024).

Claims: the spikes lie in the top eigenspace of the kernel; they lower its norm; on their way the lr exceeds the critical lr of a batch.
Results: docs/claims.md.

    python -m experiments.main --config=configs/cifar_sgd.py:fcn            # also cnn, wrn, vit
    python -m experiments.main --config=configs/cifar_sgd.py:fcn,ce         # logistic loss in place of mse
    python -m experiments.main --config=configs/cifar_sgd.py:fcn,momentum   # heavy ball, 0.9
    python -m experiments.main --config=configs/cifar_sgd.py:fcn,smoke      # seconds; with any of them

Measured at every step: the critical lr of the batch, and the kernel of the training set.
With momentum beta the critical lr is 2 (1 + beta) / lambda_max, and an exceedance explains a spike within 1 / (1 - beta) steps.

From the paper: SGD, these data, FCN and CNN (the architectures of Fig. 3). Everything else is our choice: 128 examples, batches of 32,
the lrs, in multiples of the critical lr of the training set at initialisation, and networks smaller than in cifar_gd.py, so that a run takes
minutes. The lr 0.8 was chosen on the seeds 0 to 4; the seeds here are fresh. Wide ResNet has GroupNorm and ViT has LayerNorm, since both treat each example alone.
"""

from ml_collections import ConfigDict

from configs import default, tasks

_MODELS = {
    "fcn": dict(name="fcn", depth=5, width=256),
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
    c.data.by_seed = True
    c.data.test_size = 500
    c.steps = 500
    c.members.seed = tuple(range(500, 510))
    c.members.lr = (0.4, 0.6, 0.8, 1.0)
    c.model.update(_MODELS[nets.pop()])
    c.measure.loss_test_every = 10
    c.measure.loss_modes = 128
    if c.model.name != "fcn":  # slow: a step has two kernels, and members of convolutional networks run one by one
        c.steps = 100
        c.members.seed, c.members.lr = tuple(range(500, 505)), (0.8,)
        c.measure.loss_test_every = 0  # saves compiling a program
    c.optimizer.batch_size = 32
    c.optimizer.lr_unit = "critical_lr0"
    c.measure.lambda_max_train_every = 1
    c.run.chunk_steps = 20
    c.run.checkpoint_every = 200
    c.claims = (
        "spikes_lie_in_the_top_space",
        "spikes_lie_there_more_than_other_rises",
        "spikes_lower_lambda_max",
        "spikes_have_exceedances",
        "spikes_need_few_directions",
        "spikes_need_fewer_directions_than_other_rises",
    )
    if "ce" in words:
        c.loss, c.data.target_encoding = "logistic", "binary"
    if "momentum" in words:
        c.optimizer.momentum = 0.9
    if "smoke" in words:
        width = 8 if c.model.name in ("wide_resnet", "vit") else 32
        tasks.smoke(c)
        c.model.width, c.optimizer.batch_size = width, 5
        c.data.image_size, c.measure.loss_modes = 16, 20
        c.steps = c.run.chunk_steps = c.run.checkpoint_every = 4
        c.members.seed = (0,)
    return c
