"""The data of a run, from the fields of ``config.data``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
from ml_collections import ConfigDict

from catapult_jax import data
from experiments import config as configs
from experiments.build.model import member_columns

_READ = 3  # with an attribute: so many examples are read for each example of the run


def load_data(config: ConfigDict) -> tuple[data.Data, str | None]:
    """Load the data of a run. Where they are not available, load the fallback data of the config and print a warning.

    Returns:
      The data, with ``data.by_seed`` those of each member; and the name of the data set that is not available, or None.

    Raises:
      ConfigError: data that are not available, or that do not fit the config.
    """
    try:
        prepare, fallback_for = _preparation(config)
        if config.data.by_seed:
            seeds = member_columns(config)["seed"]
            draws = {seed: prepare(seed) for seed in dict.fromkeys(seeds)}
            loaded = data.by_member([draws[seed] for seed in seeds])
        else:
            loaded = prepare(None)
        return data.in_float64(loaded) if config.run.float64 else loaded, fallback_for
    except ValueError as error:
        raise configs.ConfigError(configs.one_line(error)) from error
    except (OSError, MemoryError, OverflowError) as error:
        reason = configs.one_line(error) or type(error).__name__
        raise configs.ConfigError(
            f"data.name={config.data.name!r} is not available ({reason}); allowed: data that this machine can read and hold in memory"
        ) from error


def _preparation(config: ConfigDict) -> tuple[Callable[[int | None], data.Data], str | None]:
    """A function from the seed of a member to its data, from None to the data of all; and the data set that is not available, or None."""
    c, fallback_for, classes = config.data, None, config.data.classes
    sizes = {name: c[name] for name in ("train_size", "validation_size", "test_size")}
    prepare = partial(data.prepare, scaling=c.scaling, target_encoding=c.target_encoding)
    if c.name == "synthetic":
        return lambda seed: prepare(_synthetic(c, seed), classes=classes, **sizes), None
    try:
        # An attribute may be rare: read enough examples for both of its values.
        limit = _READ * (c.train_size + c.validation_size + c.test_size) if c.attribute and c.test_size else None
        arrays = data.read(
            c.name, directory=c.dir, tfds_dir=c.tfds_dir, download=c.download,
            attribute=c.attribute, image_size=c.image_size, limit=limit,
        )  # fmt: skip
    except data.DataUnavailable as error:
        if (
            c.strict or c.fallback is None or c.dir or isinstance(error, data.UnknownData)
        ):  # a folder that is named must have the file
            raise configs.ConfigError(configs.one_line(error)) from error
        arrays, fallback_for = data.read(c.fallback, image_size=c.image_size), c.name
        classes, sizes = c.fallback_classes, _fallback_sizes(c, arrays)
        _warn_of_fallback(c, error)
    if config.model.name != "fcn":
        arrays = _as_images(arrays, config.model.name)
    return lambda seed: prepare(arrays, classes=classes, **sizes, seed=seed), fallback_for


def _synthetic(c: ConfigDict, seed: int | None) -> data.Arrays:
    """Draw inputs and targets, unless they are larger than the memory of this machine. ``seed``: of a member; None: of all."""
    size = 8 * c.synthetic.dimension * (c.train_size + c.validation_size + c.test_size)  # drawn in double precision
    if size > (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
        raise configs.ConfigError(
            f"data.synthetic.dimension={c.synthetic.dimension}, data.train_size={c.train_size}, data.test_size={c.test_size}; "
            f"allowed: examples of less than the {memory} bytes of this machine, not {size}"
        )
    return data.synthetic(
        dimension=c.synthetic.dimension, rank=c.synthetic.rank, target=c.synthetic.target, noise=c.synthetic.noise,
        train_size=c.train_size + c.validation_size, test_size=c.test_size,
        seed=c.synthetic.seed if seed is None else (c.synthetic.seed, seed),
    )  # fmt: skip


def _fallback_sizes(c: ConfigDict, arrays: data.Arrays) -> dict[str, int | None]:
    """The sizes of the config, or less where the fallback data have fewer examples."""
    most = data.most_examples(arrays.y_train, c.fallback_classes)
    classes = len(c.fallback_classes or np.unique(arrays.y_train))
    validation_size = min(
        c.validation_size, most // 4 // classes * classes
    )  # equal shares, so that the rest has equal shares too
    test_size = None if c.test_size is None else min(c.test_size, data.most_examples(arrays.y_test, c.fallback_classes))
    train_size = min(c.train_size, most - validation_size)
    return {"train_size": train_size, "validation_size": validation_size, "test_size": test_size}


def _warn_of_fallback(c: ConfigDict, error: Exception) -> None:
    bar = "!" * 78
    print(
        f"{bar}\nWARNING: {c.name} is not available. This run uses {c.fallback} instead, and says nothing about {c.name}.\n{error}\n{bar}",
        file=sys.stderr,
    )


def _as_images(arrays: data.Arrays, model: str) -> data.Arrays:
    """Examples of shape (h, w, channels), for convolutions and patches. Gray images get an axis of one channel."""
    shape = arrays.x_train.shape[1:]
    if len(shape) == 2:
        return arrays._replace(x_train=arrays.x_train[..., None], x_test=arrays.x_test[..., None])
    if len(shape) != 3:
        raise configs.ConfigError(
            f"model.name={model!r} with {arrays.name}, whose examples have shape {shape}; allowed: images (h, w) or (h, w, channels), or "
            "model.name='fcn'"
        )
    return arrays
