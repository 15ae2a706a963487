"""From a data set as found to the arrays of a run: classes, size, scaling of inputs, target encoding of labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from catapult_jax.data.sources import Arrays

SCALINGS = ("sqrt_d", "standardize", "none")
TARGET_ENCODINGS = ("sign", "one_hot", "integer", "binary", "value")
TARGET_ENCODINGS_OF_LOSS = {
    "mse": ("sign", "one_hot", "value"),
    "softmax_cross_entropy": ("integer",),
    "logistic": ("binary",),
}


class Data(NamedTuple):
    """The arrays of a run."""

    x_train: np.ndarray  # (n, ...) float32
    y_train: np.ndarray  # (n, o) float32, or (n,) int32
    x_test: np.ndarray
    y_test: np.ndarray
    outputs: int  # o of the model
    name: str
    source: str
    checksum: str  # SHA-256 of the arrays
    x_val: np.ndarray | None = None  # validation examples, from the source's training examples; None: there are none
    y_val: np.ndarray | None = None


def prepare(
    arrays: Arrays,
    *,
    classes: tuple[int, ...] | None = None,
    train_size: int,
    test_size: int | None = None,
    scaling: str,
    target_encoding: str,
    validation_size: int = 0,
) -> Data:
    """Selects, scales and codes.

    Examples are the first of each class in the order of the source, as many from each class (one more from the first ones
    where the size does not divide). With ``target_encoding="value"`` they are the first of all.

    Args:
      arrays: data as found.
      classes: class numbers to keep, coded 0, 1, ... in this order; None: all, in ascending order.
      train_size, test_size: number of examples; a ``test_size`` of None keeps all.
      scaling: ``"sqrt_d"`` scales every example to norm ``sqrt(d)``, without centring; ``"standardize"`` takes mean and
        standard deviation per channel from the training examples (images ``(n, h, w)`` have one channel); ``"none"``.
      target_encoding: ``"sign"`` -1, +1; ``"one_hot"``; ``"integer"``; ``"binary"`` 0, 1; ``"value"``: targets as they are.
      validation_size: number of examples for validation, chosen like the training examples from those that they leave of the
        source's training split: of each class the ones right after them.

    Raises:
      ValueError: a class that is not there, too few examples, two-class target encoding of other than two classes, an example of zeros that has
        no norm to scale.
    """
    _check_sizes(train_size, test_size, validation_size)
    x_train, y_train, x_test, y_test = arrays[:4]
    if target_encoding == "value":
        if classes:
            raise ValueError(f"data.classes={classes!r} with data.target_encoding='value'; allowed: no classes")
        take_train, take_test = np.arange(train_size), np.arange(test_size or len(x_test))
        for split, take, x in (("train", take_train, x_train), ("test", take_test, x_test)):
            if len(take) > len(x):
                raise ValueError(f"data.{split}_size={len(take)}; allowed for {arrays.name}: 1 to {len(x)}")
        left = np.arange(train_size, len(x_train))
        if validation_size > len(left):
            raise ValueError(
                f"data.validation_size={validation_size}; allowed for {arrays.name} after data.train_size={train_size}: up to "
                f"{len(left)}"
            )
        take_val = left[:validation_size]
        outputs, code = 1, lambda y: y.reshape(-1, 1).astype(np.float32)
    else:
        for split, y in (("train", y_train), ("test", y_test)):
            if not (np.isfinite(y).all() and (y == np.rint(y)).all()):
                raise ValueError(f"{arrays.name}: y_{split} holds numbers that are no class; allowed: whole numbers")
        present = np.unique(y_train)
        kept = present if classes is None else np.array(classes)
        missing = [int(c) for c in kept if c not in present]
        if missing:
            raise ValueError(f"data.classes={tuple(map(int, kept))!r}; allowed for {arrays.name}: {[int(c) for c in present]}")
        if target_encoding in ("sign", "binary") and len(kept) != 2:
            raise ValueError(
                f"data.target_encoding={target_encoding!r} with {len(kept)} classes; allowed: 2 classes, or one_hot, integer"
            )
        if len(kept) < 2:
            raise ValueError(f"{arrays.name} has {len(kept)} class here; allowed: 2 or more")
        take_train = _first_of_each(y_train, kept, train_size, "data.train_size", arrays.name)
        take_test = _first_of_each(y_test, kept, test_size, "data.test_size", arrays.name)
        # Disjoint by construction, and in the order of the source like the others.
        left = np.setdiff1d(np.arange(len(y_train)), take_train)
        after = f"{arrays.name} after data.train_size={train_size}"
        take_val = left[:0]
        if validation_size:
            take_val = left[_first_of_each(y_train[left], kept, validation_size, "data.validation_size", after)]
        place = {int(c): i for i, c in enumerate(kept)}
        number = lambda y: np.array([place[int(c)] for c in y], np.int32)
        outputs, code = {
            "sign": (1, lambda y: (2.0 * number(y) - 1).astype(np.float32)[:, None]),
            "binary": (1, lambda y: number(y).astype(np.float32)[:, None]),
            "one_hot": (len(kept), lambda y: np.eye(len(kept), dtype=np.float32)[number(y)]),
            "integer": (len(kept), number),
        }[target_encoding]
    rows = {"train": (x_train, y_train, take_train), "test": (x_test, y_test, take_test)}
    if validation_size:
        rows["val"] = (x_train, y_train, take_val)
    if scaling == "sqrt_d":
        for split, (x, _, take) in rows.items():
            zero = take[~x[take].reshape(len(take), -1).any(axis=1)]
            if len(zero):
                name = "x_test" if split == "test" else "x_train"  # validation examples are some of these
                raise ValueError(
                    f"data.scaling='sqrt_d': example {zero[0]} of {name} of {arrays.name} is all zero ({len(zero)} of {len(take)} in the "
                    f"{split} split are); allowed: standardize, none, or data without it"
                )
    scaled = _scale([x[take] for x, _, take in rows.values()], scaling)
    prepared = {}
    for (split, (_, y, take)), x in zip(rows.items(), scaled, strict=True):
        prepared |= {f"x_{split}": x, f"y_{split}": code(y[take])}
    for name, array in prepared.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{arrays.name}: {name} holds numbers that are not finite; allowed: finite numbers")
    checksum = _checksum(tuple(prepared.values()))
    return Data(**prepared, outputs=outputs, name=arrays.name, source=arrays.source, checksum=checksum)


def _check_sizes(train_size: int, test_size: int | None, validation_size: int) -> None:
    if train_size < 1:
        raise ValueError(f"data.train_size={train_size!r}; allowed: 1 or more")
    if test_size is not None and test_size < 1:
        raise ValueError(f"data.test_size={test_size!r}; allowed: 1 or more, or None")
    if validation_size < 0:
        raise ValueError(f"data.validation_size={validation_size!r}; allowed: 0 or more")


def most_examples(y: np.ndarray, classes: Sequence[int] | None = None) -> int:
    """The largest number of examples that labels have in equal shares of some classes, or of all.

    >>> most_examples(np.array([0, 0, 0, 1, 1, 2]), (0, 1))
    4
    """
    kept = np.unique(y) if classes is None else np.array(classes)
    return min(int((y == c).sum()) for c in kept) * len(kept)


def _first_of_each(y: np.ndarray, classes: np.ndarray, size: int | None, field: str, name: str) -> np.ndarray:
    """Sorted positions of the first examples of each class; all of them if ``size`` is None."""
    places = [np.flatnonzero(y == c) for c in classes]
    if size is not None:
        wanted = [size // len(classes) + (i < size % len(classes)) for i in range(len(classes))]
        if any(len(p) < n for p, n in zip(places, wanted, strict=True)):
            most = most_examples(y, classes)
            raise ValueError(f"{field}={size}; allowed for {name}, classes {classes.tolist()}: up to {most}")
        places = [p[:n] for p, n in zip(places, wanted, strict=True)]
    return np.sort(np.concatenate(places))


def _scale(splits: list[np.ndarray], scaling: str) -> list[np.ndarray]:
    """The training examples come first."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite afterwards is refused
        return _scaled([x.astype(np.float32) for x in splits], scaling)


def _scaled(splits: list[np.ndarray], scaling: str) -> list[np.ndarray]:
    if scaling == "sqrt_d":

        def to_sqrt_d(x):
            norm = np.linalg.norm(x.reshape(len(x), -1), axis=1)
            return x * (np.sqrt(x[0].size) / norm).reshape(-1, *([1] * (x.ndim - 1))).astype(np.float32)

        return [to_sqrt_d(x) for x in splits]
    if scaling == "standardize":
        is_gray = splits[0].ndim == 3  # images without an axis of channels
        axes = tuple(range(splits[0].ndim - (not is_gray)))
        mean, std = splits[0].mean(axes), splits[0].std(axes)
        std = np.where(std > 0, std, 1)
        return [(x - mean) / std for x in splits]
    return splits


def _checksum(arrays: tuple[np.ndarray, ...]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
