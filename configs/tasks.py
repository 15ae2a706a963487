"""The tasks that several configs share: data, and a network that learns them in seconds. This is not a config.

Synthetic: ``x ~ N(0, I_20)``, 256 points, a two-layer network of width 512.
Images: two classes (USPS: ten), a three-layer network of width 256. The AGOP reference is the model that ``reference.py`` trains.
fmnist2 (T-shirt against dress) has 1,000 examples and ends with a test error below 0.1. The others have few examples, for time: CIFAR-10 has
large inputs, and gradient descent on 1,000 digits of USPS, with ten outputs, has a kernel of 10,000 rows.
All settings are our choice: the paper (Zhu et al. 2024) names CelebA, SVHN and CIFAR-10, and no sizes.
"""

from ml_collections import ConfigDict

IMAGES = {
    # name: (data set, classes, training examples, test examples)
    "cifar2": ("cifar10", (0, 2), 128, 580),
    "svhn2": ("svhn", (0, 1), 128, 1000),
    "fmnist2": ("fashion_mnist", (0, 3), 1000, 1000),
    "usps": ("usps", None, 100, 1000),
    "celeba": ("celeba", (0, 1), 128, 1000),
}
SYNTHETIC = {"rank2": ("product", 2), "rank3": ("pairs", 3), "rank4": ("pairs", 4)}
TASKS = (*SYNTHETIC, *IMAGES)


def split(variant: str, flags: tuple[str, ...]) -> tuple[str, set[str]]:
    """Split a variant such as ``rank2,smoke`` into the task and the other words.

    Raises:
      ValueError: an unknown word, or not exactly one task.
    """
    words = variant.split(",")
    unknown = set(words) - set(TASKS) - set(flags)
    tasks = [word for word in words if word in TASKS]
    if unknown or len(tasks) != 1:
        allowed = f"one of {', '.join(TASKS)}" + (f"; with it, joined by commas, {', '.join(flags)}" if flags else "")
        raise ValueError(f"variant {variant!r}; allowed: {allowed}")
    return tasks[0], set(words) - set(tasks)


def images(c: ConfigDict, task: str) -> None:
    """Set the data of an image task."""
    c.data.name, c.data.classes, c.data.train_size, c.data.test_size = IMAGES[task]
    if task == "celeba":
        c.data.attribute, c.data.image_size = "Smiling", 96
    c.data.target_encoding = "one_hot" if task == "usps" else "sign"
    c.data.fallback = "digits" if task == "usps" else "natural_patches"
    c.data.fallback_classes = None if task == "usps" else (0, 1)


def choose(c: ConfigDict, task: str) -> None:
    """Set data, model and AGOP reference of a task, and the loss at which training ends. Images have a higher one: they learn slowly.

    Each seed draws its own training examples.
    """
    c.data.by_seed = task != "celeba"  # its attribute is rare, so that its examples are read in order
    c.run.stop_loss = 0.01 if task in SYNTHETIC else 0.05 if task == "usps" else 0.2
    c.model.depth, c.model.width = (2, 512) if task in SYNTHETIC else (3, 256)
    if task in SYNTHETIC:
        c.data.name, c.data.target_encoding, c.data.scaling = "synthetic", "value", "none"
        c.data.synthetic.target, c.data.synthetic.rank = SYNTHETIC[task]
        c.data.train_size, c.data.test_size = 256, 1024
        c.measure.agop_reference = "closed_form"
    else:
        images(c, task)
        c.measure.agop_reference = f"runs/reference-{task}/model.npz"


def smoke(c: ConfigDict) -> None:
    """Make any of these configs take seconds."""
    c.steps, c.model.width, c.members.seed = 12, 32, (0, 1)
    c.data.train_size, c.data.test_size = 20, 20
    c.run.chunk_steps = c.run.checkpoint_every = 6
    if c.run.stop_loss:
        c.run.stop_loss = 0.9
    if c.measure.agop_reference:
        c.measure.agop_reference = c.measure.agop_reference.replace("/model.npz", "-smoke/model.npz")
