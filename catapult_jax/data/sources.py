"""Where images come from: a folder of .npz files, TFDS, or what is embedded in the installed packages."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

EMBEDDED = ("digits", "natural_patches", "synthetic")
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_TFDS_NAMES = {"svhn": "svhn_cropped"}


class DataUnavailable(Exception):
    """The data set can't be had here; the message lists the ways out."""


class Arrays(NamedTuple):
    """A data set as it was found."""

    x_train: np.ndarray  # (n, ...)
    y_train: np.ndarray  # (n,) class numbers, or targets of a synthetic set
    x_test: np.ndarray
    y_test: np.ndarray
    name: str  # what it is
    source: str  # where it came from


def read(name: str, *, directory: str | None = None, tfds_dir: str | None = None, download: bool = False) -> Arrays:
    """Reads an image data set: embedded ones directly, others from a folder of ``.npz`` files, then from TFDS.

    Args:
      name: ``"digits"``, ``"natural_patches"``, or the name of a file (``NAME.npz``) or of a TFDS data set.
      directory: folder with ``NAME.npz`` (arrays x_train, y_train, x_test, y_test); default: ``$CATAPULT_DATA_DIR``.
      tfds_dir: TFDS folder; default: the package's own.
      download: let TFDS download and prepare what is missing.

    Raises:
      DataUnavailable: with the ways out.
      ValueError: a file that is there but not of the form above.
    """
    if name == "digits":
        return _digits()
    if name == "natural_patches":
        return _natural_patches()
    directory = directory or os.environ.get("CATAPULT_DATA_DIR") or None
    file = Path(directory, f"{name}.npz") if directory else None
    if file and file.is_file():
        return _read_npz(file, name)
    tried = f"no file {file}" if file else "neither data.dir nor CATAPULT_DATA_DIR names a folder"
    try:
        return _read_tfds(name, tfds_dir, download)
    except DataUnavailable as error:
        raise DataUnavailable(
            f"data.name={name!r} can't be had: {tried}; {error}. Ways out: a folder with {name}.npz (x_train, y_train, x_test, "
            "y_test) in data.dir or CATAPULT_DATA_DIR; a TFDS data set prepared as array_record in data.tfds_dir; "
            "data.download=True; or data.name=" + " | ".join(EMBEDDED)
        ) from error


def _read_npz(file: Path, name: str) -> Arrays:
    try:
        with file.open("rb") as handle, np.load(handle, allow_pickle=False) as stored:
            missing = [key for key in _ARRAYS if key not in stored]
            if missing:
                raise ValueError(f"{file} lacks {', '.join(missing)}; allowed: a file with {', '.join(_ARRAYS)}")
            arrays = {key: stored[key] for key in _ARRAYS}
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} can't be read ({error}); allowed: an .npz file with {', '.join(_ARRAYS)}") from error
    for split in ("train", "test"):
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        if y.ndim != 1 or len(x) != len(y) or x.ndim < 2 or len(x) == 0:
            raise ValueError(f"{file}: x_{split} {x.shape} and y_{split} {y.shape}; allowed: (n, ...) and (n,), n above 0")
    return Arrays(*(arrays[key] for key in _ARRAYS), name=name, source=f"npz file {file.name}")


def _read_tfds(name: str, tfds_dir: str | None, download: bool) -> Arrays:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataUnavailable(f"tensorflow-datasets is not installed ({error})") from error
    tfds_name = _TFDS_NAMES.get(name, name)
    if tfds_name not in tfds.list_builders(with_community_datasets=False):
        raise DataUnavailable(f"TFDS has no data set {tfds_name!r}")
    try:
        builder = tfds.builder(tfds_name, data_dir=tfds_dir, **({"file_format": "array_record"} if download else {}))
        if download:
            builder.download_and_prepare()
    except ImportError as error:
        raise DataUnavailable(
            f"preparing TFDS data set {tfds_name!r} needs TensorFlow: pip install 'catapult_jax[tfds-prepare]'"
        ) from error
    except (OSError, tfds.download.DownloadError) as error:
        raise DataUnavailable(f"TFDS data set {tfds_name!r} could not be downloaded ({type(error).__name__})") from error
    if not builder.is_prepared():
        raise DataUnavailable(
            f"TFDS data set {tfds_name!r} is not prepared in {builder.data_path.parent} (data.download=True prepares it; that "
            "needs the network and 'catapult_jax[tfds-prepare]')"
        )
    try:
        splits = [builder.as_data_source(split=split) for split in ("train", "test")]
    except NotImplementedError as error:
        raise DataUnavailable(
            f"TFDS data set {tfds_name!r} was prepared as tfrecord, which only TensorFlow reads; prepare it again with "
            "file_format='array_record'"
        ) from error
    read = []
    for split in splits:
        records = [split[i] for i in range(len(split))]
        missing = {"image", "label"} - set(records[0])
        if missing:
            raise DataUnavailable(f"TFDS data set {tfds_name!r} lacks the features {', '.join(sorted(missing))}")
        read += [np.stack([r["image"] for r in records]), np.array([r["label"] for r in records])]
    return Arrays(*read, name=name, source=f"TFDS {builder.info.full_name}")


def _digits() -> Arrays:
    """scikit-learn's 8x8 handwritten digits; the last fifth of the writers' order is the test set."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = digits.images[..., None].astype(np.float32), digits.target.astype(np.int32)
    split = len(x) * 4 // 5
    return Arrays(x[:split], y[:split], x[split:], y[split:], "digits", "embedded: scikit-learn load_digits")


def _natural_patches(size: int = 32, stride: int = 16) -> Arrays:
    """Crops of the two photographs that scikit-learn ships; train from their left halves, test from their right halves."""
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images
    splits = []
    for left in (True, False):
        x, y = [], []
        for label, photograph in enumerate(photographs):
            middle = photograph.shape[1] // 2
            half = photograph[:, :middle] if left else photograph[:, middle:]
            for row in range(0, half.shape[0] - size + 1, stride):
                for column in range(0, half.shape[1] - size + 1, stride):
                    x.append(half[row : row + size, column : column + size])
                    y.append(label)
        order = np.random.default_rng(0).permutation(len(x))  # so that the first n are spread over the photographs
        splits += [np.stack(x)[order], np.array(y, np.int32)[order]]
    return Arrays(*splits, "natural_patches", "embedded: scikit-learn load_sample_images")
