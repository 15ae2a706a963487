"""One catapult of gradient descent on 128 CIFAR-10 images, airplane against bird (Zhu et al. 2024, Fig. 3).

Claims: above the critical lr a catapult comes at once, in the top eigenspace; a spike needs an lr above the critical lr of that step; ours: the
wider the network, the higher the spike. Results: docs/claims.md.

    python -m experiments.main --config=configs/cifar_gd.py            # 5-layer FCN, width 1024, 1.67 times critical
    python -m experiments.main --config=configs/cifar_gd.py:cnn        # 5-layer CNN, 512 channels, 1.78 times critical
    python -m experiments.main --config=configs/cifar_gd.py:ratios     # FCN at 0.5, 0.9, 1.67, 2.5 times critical
    python -m experiments.sweep --config=configs/cifar_gd.py:width     # FCN, width 256 to 4096, 1.67 times critical
    python -m experiments.main --config=configs/cifar_gd.py:cnn,gpu    # CNN with stride one: needs a GPU
    python -m experiments.main --config=configs/cifar_gd.py:smoke      # seconds; also with the others

From the paper: gradient descent, 128 points, five layers, the ratios 1.67 and 1.78, critical lr 3.6 (FCN) and 4.5 (CNN), top-5 split.
Our choice: the classes, inputs scaled to norm sqrt(d), width, strides, gain 1, no bias, targets -1 and +1.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "fcn") -> ConfigDict:
    chosen = variant.split(",")
    unknown = set(chosen) - {"fcn", "cnn", "ratios", "width", "gpu", "smoke"}
    if unknown or ("gpu" in chosen and "cnn" not in chosen):
        raise ValueError(f"variant {variant!r}; allowed: fcn, cnn, ratios, width, smoke, joined by commas; with cnn also gpu")
    c = default.get_config()
    c.title = "GD on 128 images"
    c.steps = 60
    c.data.by_seed = True
    c.members.seed = (540, 541, 542, 543, 544)
    c.optimizer.lr_unit = "critical_lr0"
    c.optimizer.lr = 1.67
    c.data.name = "cifar10"
    c.data.classes = (0, 2)
    c.data.fallback = "natural_patches"
    c.data.fallback_classes = (0, 1)
    c.claims = ("first_catapult", "spikes_are_catapults")
    c.published_critical_lr = 3.6
    if "cnn" in chosen:
        c.model.name = "cnn"
        c.model.width = 512
        c.model.strides = (4, 2, 1, 1)
        c.optimizer.lr = 1.78
        c.published_critical_lr = 4.5
        c.steps = 20
        c.members.seed = (500, 501, 502, 503, 504)  # widths and strides were tried on the seeds 0 to 4
    if "gpu" in chosen:
        c.model.strides, c.steps = None, 60
    if "ratios" in chosen:
        c.steps = 150
        c.measure.loss_modes = 128
        c.members.lr = (0.5, 0.9, 1.67, 2.5)
        c.members.seed = (530, 531, 532, 533, 534)
        c.claims = ("spikes_are_catapults", "spikes_need_few_directions", "spikes_need_fewer_directions_than_other_rises")
    if "width" in chosen:
        c.steps = 30
        c.members.seed = (500, 501, 502, 503, 504)
        c.sweep = ("model.width=256,512,1024,2048,4096",)
        c.claims = ("peak_grows_with_width",)
    if "smoke" in chosen:
        c.steps = 6
        c.data.train_size = 16
        c.data.test_size = 16
        c.model.width = 32
        c.measure.loss_modes = min(c.measure.loss_modes, 16)
        c.members.seed = (0, 1)
        c.sweep = c.sweep and ("model.width=16,32,64",)
        c.run.chunk_steps = 3
        c.run.checkpoint_every = 3
    return c
