"""The data of a run, from the fields of ``config.data``."""

from __future__ import annotations

import os
import sys

from ml_collections import ConfigDict

from catapult_jax import data
from experiments import config as configs

_READ = 3  # examples of a data set with attributes that are read for each one wanted


def load_data(config: ConfigDict) -> tuple[data.Data, str | None]:
    """The data of a run, and the name of the set that they stand in for, if they do.

    Raises:
      ConfigError: data that can't be had, or that the config does not fit.
    """
    c, fallback_for, classes = config.data, None, config.data.classes
    sizes = {name: c[name] for name in ("train_size", "validation_size", "test_size")}
    try:
        if c.name == "synthetic":
            size = 8 * c.synthetic.dimension * (c.train_size + c.validation_size + c.test_size)  # drawn in double precision
            if size > (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
                raise configs.ConfigError(
                    f"data.synthetic.dimension={c.synthetic.dimension}, data.train_size={c.train_size}, data.test_size={c.test_size}; "
                    f"allowed: examples of less than the {memory} bytes of this machine, not {size}"
                )
            arrays = data.synthetic(
                dimension=c.synthetic.dimension, rank=c.synthetic.rank, target=c.synthetic.target, noise=c.synthetic.noise,
                train_size=c.train_size + c.validation_size, test_size=c.test_size, seed=c.synthetic.seed,
            )  # fmt: skip
        else:
            try:
                # Attributes are unevenly spread: enough examples that each side of one has its share.
                limit = _READ * (c.train_size + c.validation_size + c.test_size) if c.attribute and c.test_size else None
                arrays = data.read(
                    c.name, directory=c.dir, tfds_dir=c.tfds_dir, download=c.download,
                    attribute=c.attribute, image_size=c.image_size, limit=limit,
                )  # fmt: skip
            except data.DataUnavailable as error:
                if c.strict or c.fallback is None or isinstance(error, data.UnknownData):
                    raise configs.ConfigError(configs.one_line(error)) from error
                arrays, fallback_for = data.read(c.fallback, image_size=c.image_size), c.name
                classes = c.fallback_classes
                # Fallback data may be smaller than what it stands for.
                most = data.most_examples(arrays.y_train, classes)
                sizes["validation_size"] = min(sizes["validation_size"], most // 4)
                sizes["train_size"] = min(sizes["train_size"], most - sizes["validation_size"])
                if c.test_size is not None:
                    sizes["test_size"] = min(c.test_size, data.most_examples(arrays.y_test, classes))
                print(
                    f"{'!' * 78}\nWARNING: {c.name} is not available; this run is on {c.fallback} instead, and says nothing about {c.name}."
                    f"\n{error}\n{'!' * 78}",
                    file=sys.stderr,
                )
        if config.model.name != "fcn":
            arrays = _as_images(arrays, config.model.name)
        prepared = data.prepare(arrays, classes=classes, **sizes, scaling=c.scaling, target_encoding=c.target_encoding)
    except ValueError as error:
        raise configs.ConfigError(configs.one_line(error)) from error
    except (OSError, MemoryError, OverflowError) as error:
        why = configs.one_line(error) or type(error).__name__
        raise configs.ConfigError(f"data.name={c.name!r} can't be had ({why}); allowed: data that fit here") from error
    return prepared, fallback_for


def _as_images(arrays: data.Arrays, model: str) -> data.Arrays:
    """Examples (h, w, channels) for convolutions and patches; gray images get their axis of channels."""
    shape = arrays.x_train.shape[1:]
    if len(shape) == 2:
        return arrays._replace(x_train=arrays.x_train[..., None], x_test=arrays.x_test[..., None])
    if len(shape) != 3:
        raise configs.ConfigError(
            f"model.name={model!r} with {arrays.name}, whose examples have shape {shape}; allowed: images (h, w) or (h, w, channels), or "
            "model.name='fcn'"
        )
    return arrays
