"""Read a data set from a folder of .npz files, from TFDS, or from installed packages."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from catapult_jax.data.npz import npz_arrays

EMBEDDED = ("digits", "natural_patches", "synthetic")
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_TFDS_NAMES = {"celeba": "celeb_a", "svhn": "svhn_cropped"}
# Names of data sets that are allowed even if TFDS is not installed or does not have them.
KNOWN = ("cifar10", "cifar100", "fashion_mnist", "kmnist", "mnist", "usps", *_TFDS_NAMES)


class DataUnavailable(Exception):
    """The data set is not available here; the message lists the ways out."""


class UnknownData(DataUnavailable):
    """No source has a data set of that name; the message has the nearest name."""


class Arrays(NamedTuple):
    """A data set as its source has it."""

    x_train: np.ndarray  # (n, ...)
    y_train: np.ndarray  # (n,) class numbers, or targets of a synthetic set
    x_test: np.ndarray  # as x_train
    y_test: np.ndarray  # as y_train
    name: str  # of the data set
    source: str  # where it comes from


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
    """Read a data set: embedded ones directly, others from a folder of ``.npz`` files, else from TFDS.

    Args:
      name: ``"digits"``, ``"natural_patches"``, or the name of a file (``NAME.npz``) or of a TFDS data set.
      directory: folder with ``NAME.npz``; default: ``$CATAPULT_DATA_DIR``. The file has arrays x_train, y_train, x_test, y_test. If
        y_* are (n, k), with one column per attribute, an array ``attributes`` has the names of the columns.
      tfds_dir: TFDS folder; default: that of TFDS.
      download: whether TFDS may download and prepare the data set.
      attribute: for a data set with attributes instead of class labels (CelebA): the attribute that y holds, as 0 or 1.
      image_size: pixels along a side: each image is cropped to its central square and resized; None: images stay as they are.
      limit: largest number of examples of each split, the first in the order of the source; None: all.

    Returns:
      The :class:`Arrays`.

    Raises:
      DataUnavailable: the data set is not available here; the message has the ways out.
      UnknownData: the name is not embedded, not that of a file or a TFDS data set, and not in ``KNOWN``.
      ValueError: a file of another form, images with the channels first, an attribute that the data set does not have, or an
        image size for data that are not images.

    >>> read("digits", limit=3).x_train.shape
    (3, 8, 8, 1)
    """
    for field, value in (("data.image_size", image_size), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{field}={value!r}; allowed: 1 or more, or None")
    directory = directory or os.environ.get("CATAPULT_DATA_DIR") or None
    file = Path(os.path.expanduser(directory), f"{name}.npz") if directory else None
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
        tfds_names = _tfds_names()
        names = sorted({*EMBEDDED, *KNOWN, *(npz.stem for npz in Path(directory or os.devnull).glob("*.npz"))})
        if name not in (*names, *tfds_names):
            closest = lambda candidates: difflib.get_close_matches(name.lower(), candidates, n=1)
            nearest = closest(names) or closest(tfds_names)
            raise UnknownData(
                f"data.name={name!r}; allowed: a name that a source knows{f', such as {nearest[0]!r}' if nearest else ''} ({tried}; "
                f"{'no TFDS data set' if tfds_names else 'tensorflow-datasets is not installed'}). {ways_out}"
            )
        try:
            arrays = _read_tfds(name, tfds_dir, download, attribute, image_size, limit)
        except DataUnavailable as error:
            raise DataUnavailable(f"data.name={name!r} is not available: {tried}; {error}. {ways_out}") from error
    source = arrays.source
    source += f", attribute {attribute}" if attribute is not None else ""
    source += f", images {image_size}x{image_size}" if image_size else ""
    source += f", first {limit} of each split" if limit else ""
    return arrays._replace(source=source)


def _check_attribute(attribute: str | None, names: Sequence[str], data_name: str) -> None:
    """Refuse an attribute that the data set does not have. Without ``names`` it has class labels: refuse any."""
    if names and attribute not in names:
        raise ValueError(f"data.attribute={attribute!r}; allowed: {', '.join(names)}")
    if not names and attribute is not None:
        raise ValueError(f"data.attribute={attribute!r}; allowed: None, {data_name} has class labels")


def _resize(image: np.ndarray, size: int | None, name: str) -> np.ndarray:
    """The central square of an image (h, w) or (h, w, channels), resized to ``size`` pixels; None: the image itself."""
    if size is None:
        return image
    if image.ndim not in (2, 3):
        raise ValueError(f"data.image_size={size}; allowed for {name}, examples of shape {image.shape}: None")
    from PIL import Image

    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side].reshape(side, side, -1).astype(np.float32)
    # Channel by channel in floating point, so that any dtype and number of channels works. Pillow has floats for one channel only.
    resized = [Image.fromarray(square[:, :, c]).resize((size, size), Image.Resampling.BILINEAR) for c in range(square.shape[2])]
    pixels = np.stack([np.asarray(channel) for channel in resized], -1)
    if np.issubdtype(image.dtype, np.integer):
        pixels = np.rint(pixels)
    return pixels.astype(image.dtype).reshape(size, size, *image.shape[2:])


def _shrink(arrays: Arrays, image_size: int | None, limit: int | None) -> Arrays:
    """The first examples, with their images resized."""
    x_train, y_train, x_test, y_test = (array[:limit] for array in arrays[:4])
    if image_size:
        x_train, x_test = (np.stack([_resize(image, image_size, arrays.name) for image in x]) for x in (x_train, x_test))
    return Arrays(x_train, y_train, x_test, y_test, arrays.name, arrays.source)


def _read_npz(file: Path, name: str, attribute: str | None) -> Arrays:
    """The data set of a file, after checks of its form."""
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
        for key in ("y_train", "y_test"):  # booleans, 0 and 1, or the -1 and 1 of the original CelebA lists
            arrays[key] = (arrays[key][:, names.index(attribute)] > 0).astype(np.int32)
    return Arrays(*(arrays[key] for key in _ARRAYS), name=name, source=f"npz file {file.name}")


def _is_channels_first(shape: tuple[int, ...]) -> bool:
    """Whether a shape is (channels, height, width): a short axis before a square, or three channels before two long axes."""
    if len(shape) != 3:
        return False
    first, second, third = shape
    return (first <= 4 < second == third) or (first == 3 and min(second, third) >= 16)


def _tfds_names() -> list[str]:
    """Names of the data sets of TFDS; none if it is not installed."""
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        return []
    return tfds.list_builders(with_community_datasets=False)


def _read_tfds(
    name: str, tfds_dir: str | None, download: bool, attribute: str | None, image_size: int | None, limit: int | None
) -> Arrays:
    """The data set of TFDS. It reads one example at a time and holds only what it keeps."""
    builder = _tfds_builder(_TFDS_NAMES.get(name, name), tfds_dir, download)
    splits = []
    for source in _tfds_splits(builder):
        first = source[0]
        attributes = first.get("attributes")
        names = list(attributes) if isinstance(attributes, dict) and "label" not in first else []
        missing = {"image", *([] if names else ["label"])} - set(first)
        if missing:
            raise DataUnavailable(f"TFDS data set {builder.name!r} lacks the features {', '.join(sorted(missing))}")
        _check_attribute(attribute, names, name)
        x, y = [], []
        for i in range(min(len(source), limit or len(source))):
            example = source[i]
            x.append(_resize(example["image"], image_size, name))
            y.append(int(example["attributes"][attribute]) if names else example["label"])
        splits.append((np.stack(x), np.array(y)))
    (x_train, y_train), (x_test, y_test) = splits
    return Arrays(x_train, y_train, x_test, y_test, name, f"TFDS {builder.info.full_name}")


def _tfds_builder(tfds_name: str, tfds_dir: str | None, download: bool) -> Any:
    """The builder of a data set that is prepared."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataUnavailable(f"tensorflow-datasets is not installed ({error})") from error
    if tfds_name not in tfds.list_builders(with_community_datasets=False):
        raise DataUnavailable(f"TFDS has no data set {tfds_name!r}")
    try:
        options: dict[str, Any] = {"file_format": "array_record"} if download else {}
        builder = tfds.builder(tfds_name, data_dir=tfds_dir, **options)
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
    return builder


def _tfds_splits(builder: Any) -> list:
    """Training and test split, each as a sequence of examples."""
    try:
        return [builder.as_data_source(split=split) for split in ("train", "test")]
    except NotImplementedError as error:
        raise DataUnavailable(
            f"TFDS data set {builder.name!r} is prepared as tfrecord, which only TensorFlow reads; prepare it again with "
            "file_format='array_record'"
        ) from error


def _digits() -> Arrays:
    """scikit-learn's 8x8 handwritten digits; the test set is the last fifth, in the order of the writers."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    x, y = digits.images[..., None].astype(np.float32), digits.target.astype(np.int32)
    split = len(x) * 4 // 5
    return Arrays(x[:split], y[:split], x[split:], y[split:], "digits", "embedded: scikit-learn load_digits")


def _natural_patches(size: int = 32, stride: int = 16) -> Arrays:
    """Crops of scikit-learn's two photographs, labelled by photograph: train from the left halves, test from the right halves."""
    from sklearn.datasets import load_sample_images

    images: Any = load_sample_images()
    photographs = images.images
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
        order = np.random.default_rng(0).permutation(len(x))  # so that the first n come from all places of both photographs
        splits.append((np.stack(x)[order], np.array(y, np.int32)[order]))
    (x_train, y_train), (x_test, y_test) = splits
    return Arrays(x_train, y_train, x_test, y_test, "natural_patches", "embedded: scikit-learn load_sample_images")
