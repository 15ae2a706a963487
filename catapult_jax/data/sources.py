"""Where images come from: a folder of .npz files, TFDS, or what is embedded in the installed packages."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from catapult_jax.data.npz import npz_arrays

EMBEDDED = ("digits", "natural_patches", "synthetic")
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_TFDS_NAMES = {"celeba": "celeb_a", "svhn": "svhn_cropped"}
# Data sets that are known by name where TFDS is not installed, or does not have them.
KNOWN = ("cifar10", "cifar100", "fashion_mnist", "kmnist", "mnist", "usps", *_TFDS_NAMES)


class DataUnavailable(Exception):
    """The data set can't be had here; the message lists the ways out."""


class UnknownData(DataUnavailable):
    """No source knows a data set of that name; the message has the nearest one."""


class Arrays(NamedTuple):
    """A data set as it was found."""

    x_train: np.ndarray  # (n, ...)
    y_train: np.ndarray  # (n,) class numbers, or targets of a synthetic set
    x_test: np.ndarray
    y_test: np.ndarray
    name: str  # what it is
    source: str  # where it came from


def read(
    name: str,
    *,
    directory: str | None = None,
    tfds_dir: str | None = None,
    download: bool = False,
    attribute: str | None = None,
    image_size: int | None = None,
    limit: int | None = None,
) -> Arrays:
    """Reads an image data set: embedded ones directly, others from a folder of ``.npz`` files, then from TFDS.

    Args:
      name: ``"digits"``, ``"natural_patches"``, or the name of a file (``NAME.npz``) or of a TFDS data set.
      directory: folder with ``NAME.npz`` (arrays x_train, y_train, x_test, y_test); default: ``$CATAPULT_DATA_DIR``. Where y_*
        are (n, k), one column per attribute, an array ``attributes`` names the columns.
      tfds_dir: TFDS folder; default: the package's own.
      download: let TFDS download and prepare what is missing.
      attribute: for a data set that has attributes in place of class labels (CelebA): the one that y holds, as 0 or 1.
      image_size: crops every image to its central square and resizes that to so many pixels a side; None: as they are.
      limit: reads so many examples of each split at most, the first in the order of the source; None: all.

    Raises:
      DataUnavailable: with the ways out.
      UnknownData: the name is not embedded, not that of a file or a TFDS data set, and not in ``KNOWN``.
      ValueError: a file that is there but not of the form above, images with the channels first, an attribute that the data set
        does not have, an image size for what is no images.
    """
    for field, value in (("data.image_size", image_size), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{field}={value!r}; allowed: 1 or more, or None")
    directory = directory or os.environ.get("CATAPULT_DATA_DIR") or None
    file = Path(directory, f"{name}.npz") if directory else None
    if name in ("digits", "natural_patches"):
        _check_attribute(attribute, (), name)
        arrays = _shrink(_digits() if name == "digits" else _natural_patches(), image_size, limit)
    elif file and file.is_file():
        arrays = _shrink(_read_npz(file, name, attribute), image_size, limit)
    else:
        tried = f"no file {file}" if file else "neither data.dir nor CATAPULT_DATA_DIR names a folder"
        ways_out = (
            f"Ways out: a folder with {name}.npz (x_train, y_train, x_test, y_test) in data.dir or CATAPULT_DATA_DIR; a TFDS data set "
            "prepared as array_record in data.tfds_dir; data.download=True; or data.name=" + " | ".join(EMBEDDED)
        )
        of_tfds = _tfds_names()
        names = sorted({*EMBEDDED, *KNOWN, *(found.stem for found in Path(directory or os.devnull).glob("*.npz"))})
        if name not in (*names, *of_tfds):
            near = lambda among: difflib.get_close_matches(name.lower(), among, n=1)
            nearest = near(names) or near(of_tfds)
            raise UnknownData(
                f"data.name={name!r}; allowed: a name that a source knows{f', such as {nearest[0]!r}' if nearest else ''} ({tried}; "
                f"{'no TFDS data set' if of_tfds else 'tensorflow-datasets is not installed'}). {ways_out}"
            )
        try:
            arrays = _read_tfds(name, tfds_dir, download, attribute, image_size, limit)
        except DataUnavailable as error:
            raise DataUnavailable(f"data.name={name!r} can't be had: {tried}; {error}. {ways_out}") from error
    source = arrays.source
    source += f", attribute {attribute}" if attribute is not None else ""
    source += f", images {image_size}x{image_size}" if image_size else ""
    source += f", first {limit} of each split" if limit else ""
    return arrays._replace(source=source)


def _check_attribute(attribute: str | None, names: Sequence[str], name: str) -> None:
    """``names`` are those of the data set's attributes; none: it has class labels."""
    if names and attribute not in names:
        raise ValueError(f"data.attribute={attribute!r}; allowed: {', '.join(names)}")
    if not names and attribute is not None:
        raise ValueError(f"data.attribute={attribute!r}; allowed: None, {name} has class labels")


def _resize(image: np.ndarray, size: int | None, name: str) -> np.ndarray:
    """The central square of an image (h, w) or (h, w, channels), resized; as it is if ``size`` is None."""
    if size is None:
        return image
    if image.ndim not in (2, 3):
        raise ValueError(f"data.image_size={size}; allowed for {name}, examples of shape {image.shape}: None")
    from PIL import Image

    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side].reshape(side, side, -1).astype(np.float32)
    # Channel by channel in floating point, which Pillow has for one channel only, so that any dtype and number will do.
    resized = [Image.fromarray(square[:, :, c]).resize((size, size), Image.Resampling.BILINEAR) for c in range(square.shape[2])]
    pixels = np.stack([np.asarray(channel) for channel in resized], -1)
    if np.issubdtype(image.dtype, np.integer):
        pixels = np.rint(pixels)
    return pixels.astype(image.dtype).reshape(size, size, *image.shape[2:])


def _shrink(arrays: Arrays, image_size: int | None, limit: int | None) -> Arrays:
    x_train, y_train, x_test, y_test = (array[:limit] for array in arrays[:4])
    if image_size:
        x_train, x_test = (np.stack([_resize(image, image_size, arrays.name) for image in x]) for x in (x_train, x_test))
    return Arrays(x_train, y_train, x_test, y_test, arrays.name, arrays.source)


def _read_npz(file: Path, name: str, attribute: str | None) -> Arrays:
    try:
        arrays = npz_arrays(file, (*_ARRAYS, "attributes"))
    except ValueError as error:
        raise ValueError(f"{error}; allowed: an .npz file with {', '.join(_ARRAYS)}") from error
    if missing := [key for key in _ARRAYS if key not in arrays]:
        raise ValueError(f"{file} lacks {', '.join(missing)}; allowed: a file with {', '.join(_ARRAYS)}")
    for key in _ARRAYS:
        if arrays[key].dtype.kind not in "biuf":
            raise ValueError(
                f"{file}: {key} has dtype {arrays[key].dtype}; allowed: whole or floating-point numbers, or booleans"
            )
    attributes = arrays.pop("attributes", None)
    names, columns = [], ()
    if attributes is not None and arrays["y_train"].ndim == 2:
        if attributes.ndim != 1 or attributes.dtype.kind != "U" or not attributes.size:
            raise ValueError(f"{file}: attributes {attributes.dtype} {attributes.shape}; allowed: text (k,), k above 0")
        names, columns = attributes.tolist(), attributes.shape
    for split in ("train", "test"):
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        if x.ndim < 2 or len(x) == 0 or y.shape != (len(x), *columns):
            allowed = f"(n, {len(names)}), n above 0" if names else "(n,), n above 0, or (n, k) with attributes, their k names"
            raise ValueError(f"{file}: x_{split} {x.shape} and y_{split} {y.shape}; allowed: (n, ...) and {allowed}")
    if (train := arrays["x_train"].shape[1:]) != (test := arrays["x_test"].shape[1:]):
        raise ValueError(f"{file}: examples of shape {train} in x_train and {test} in x_test; allowed: one shape")
    if _is_channels_first(train):
        height, width = train[1:]
        raise ValueError(
            f"{file}: images of shape {train} have the channels first; allowed: channels last, {(height, width, train[0])}, as "
            "x.transpose(0, 2, 3, 1) makes them"
        )
    _check_attribute(attribute, names, name)
    if names:
        for key in ("y_train", "y_test"):  # above 0: booleans, 0 and 1, or the -1 and 1 of the original CelebA lists
            arrays[key] = (arrays[key][:, names.index(attribute)] > 0).astype(np.int32)
    return Arrays(*(arrays[key] for key in _ARRAYS), name=name, source=f"npz file {file.name}")


def _is_channels_first(shape: tuple[int, ...]) -> bool:
    """Few rows, and then a square (or three rows, and two long axes): no image (height, width, channels) looks so."""
    if len(shape) != 3:
        return False
    first, second, third = shape
    return (first <= 4 < second == third) or (first == 3 and min(second, third) >= 16)


def _tfds_names() -> list[str]:
    """Data sets that TFDS has; none where it is not installed."""
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        return []
    return tfds.list_builders(with_community_datasets=False)


def _read_tfds(
    name: str, tfds_dir: str | None, download: bool, attribute: str | None, image_size: int | None, limit: int | None
) -> Arrays:
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
        first = split[0]
        attributes = first.get("attributes")
        names = list(attributes) if isinstance(attributes, dict) and "label" not in first else []
        missing = {"image", *([] if names else ["label"])} - set(first)
        if missing:
            raise DataUnavailable(f"TFDS data set {tfds_name!r} lacks the features {', '.join(sorted(missing))}")
        _check_attribute(attribute, names, name)
        x, y = [], []
        for i in range(min(len(split), limit or len(split))):  # one at a time: only what is kept is held
            record = split[i]
            x.append(_resize(record["image"], image_size, name))
            y.append(int(record["attributes"][attribute]) if names else record["label"])
        read += [np.stack(x), np.array(y)]
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
