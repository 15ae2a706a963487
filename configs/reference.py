"""The reference models of the AGOP on images: a wider network, trained on many more examples than the runs that use it.

    python -m experiments.main --config=configs/reference.py:cifar2 --workdir=runs/reference-cifar2
    # also svhn2, fmnist2, usps, celeba; cifar2,smoke takes seconds
    python -m experiments.main --config=configs/reference.py:cifar2,second --workdir=runs/reference-cifar2-second   # the same with seed 1

The run writes model.npz: the trained parameters and their test error. Every run that uses it records the SHA-256 of the file. The test
errors are in docs/claims.md.
The alignment of the first and the second reference is the ceiling of every alignment with the first. A run takes the second one from
measure.agop_second_reference, for example runs/reference-cifar2-second/model.npz, and records the ceiling in run.json.

All settings are our choice.
"""

from ml_collections import ConfigDict

from configs import default, tasks

# Training and test examples: most of the data of these classes. cifar2: of 10,000 images.
_SIZES = {
    "cifar2": (2000, 580),
    "svhn2": (10000, 2000),
    "fmnist2": (12000, 2000),
    "usps": (5000, 1470),
    "celeba": (10000, 2000),
}


def get_config(variant: str = "cifar2") -> ConfigDict:
    task, words = tasks.split(variant, ("second", "smoke"))
    if task in tasks.SYNTHETIC:
        raise ValueError(
            f"variant {variant!r}; allowed: one of {', '.join(tasks.IMAGES)}, since synthetic targets have a closed form"
        )
    c = default.get_config()
    c.title = f"AGOP reference, {task}" + (", second seed" if "second" in words else "")
    c.seed = 1 if "second" in words else 0
    tasks.images(c, task)
    c.data.train_size, c.data.test_size = _SIZES[task]
    c.steps = 1500
    c.model.depth, c.model.width = 3, 512
    c.optimizer.batch_size = 64
    c.optimizer.momentum = 0.9
    c.optimizer.lr_unit = "critical_lr0"
    c.optimizer.lr = 0.1
    c.measure.lambda_max_batch_every = 0
    c.measure.loss_train_every = 0
    c.measure.loss_test_every = 100
    c.measure.probe_size = 64
    c.run.chunk_steps = 50
    c.run.checkpoint_every = 1500
    c.run.save_model = True
    if "smoke" in words:
        tasks.smoke(c)
        c.members.seed = None
        c.data.train_size, c.optimizer.batch_size, c.measure.probe_size, c.measure.loss_test_every = 40, 10, 10, 1
        c.model.name, c.model.depth, c.model.strides = "fcn", 2, None
    return c
