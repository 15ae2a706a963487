"""From a data set as found to the arrays of a run: classes, size, scaling of inputs, coding of labels."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from catapult_jax.data.sources import Arrays

SCALINGS = ("sqrt_d", "standardize", "none")
CODINGS = ("sign", "one_hot", "integer", "binary", "value")
CODINGS_OF_LOSS = {
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
    checksum: str  # SHA-256 of the four arrays


def prepare(
    arrays: Arrays, *, classes: tuple[int, ...] = (), train_size: int, test_size: int, scaling: str, coding: str
) -> Data:
    """Selects, scales and codes.

    Examples are the first of each class in the order of the source, as many from each class (one more from the first ones
    where the size does not divide).

    Args:
      arrays: data as found.
      classes: class numbers to keep, coded 0, 1, ... in this order; empty: all, in ascending order.
      train_size, test_size: number of examples; a ``test_size`` of 0 keeps all.
      scaling: ``"sqrt_d"`` scales every example to norm ``sqrt(d)``, without centring; ``"standardize"`` takes mean and
        standard deviation per channel from the training examples; ``"none"``.
      coding: ``"sign"`` -1, +1; ``"one_hot"``; ``"integer"``; ``"binary"`` 0, 1; ``"value"``: targets as they are.

    Raises:
      ValueError: a class that is not there, too few examples, two-class coding of other than two classes.
    """
    x_train, y_train, x_test, y_test = arrays[:4]
    if coding == "value":
        if classes:
            raise ValueError(f"data.classes={classes!r} with data.coding='value'; allowed: no classes")
        take_train, take_test = np.arange(train_size), np.arange(test_size or len(x_test))
        for split, take, x in (("train", take_train, x_train), ("test", take_test, x_test)):
            if len(take) > len(x):
                raise ValueError(f"data.{split}_size={len(take)}; allowed for {arrays.name}: 1 to {len(x)}")
        outputs, code = 1, lambda y: y.reshape(-1, 1).astype(np.float32)
    else:
        present = np.unique(y_train)
        kept = np.array(classes) if classes else present
        missing = [int(c) for c in kept if c not in present]
        if missing:
            raise ValueError(f"data.classes={tuple(map(int, kept))!r}; allowed for {arrays.name}: {[int(c) for c in present]}")
        if coding in ("sign", "binary") and len(kept) != 2:
            raise ValueError(f"data.coding={coding!r} with {len(kept)} classes; allowed: 2 classes, or one_hot, integer")
        take_train = _first_of_each(y_train, kept, train_size, "data.train_size", arrays.name)
        take_test = _first_of_each(y_test, kept, test_size, "data.test_size", arrays.name)
        place = {int(c): i for i, c in enumerate(kept)}
        number = lambda y: np.array([place[int(c)] for c in y], np.int32)
        outputs, code = {
            "sign": (1, lambda y: (2.0 * number(y) - 1).astype(np.float32)[:, None]),
            "binary": (1, lambda y: number(y).astype(np.float32)[:, None]),
            "one_hot": (len(kept), lambda y: np.eye(len(kept), dtype=np.float32)[number(y)]),
            "integer": (len(kept), number),
        }[coding]
    x_train, x_test = _scale(x_train[take_train], x_test[take_test], scaling)
    y_train, y_test = code(y_train[take_train]), code(y_test[take_test])
    prepared = (x_train, y_train, x_test, y_test)
    for name, array in zip(("x_train", "y_train", "x_test", "y_test"), prepared, strict=True):
        if not np.isfinite(array).all():
            raise ValueError(f"{arrays.name}: {name} holds numbers that are not finite; allowed: finite numbers")
    return Data(*prepared, outputs, arrays.name, arrays.source, _checksum(prepared))


def _first_of_each(y: np.ndarray, classes: np.ndarray, size: int, field: str, name: str) -> np.ndarray:
    """Sorted positions of the first examples of each class; all of them if ``size`` is 0."""
    places = [np.flatnonzero(y == c) for c in classes]
    if size:
        wanted = [size // len(classes) + (i < size % len(classes)) for i in range(len(classes))]
        if any(len(p) < n for p, n in zip(places, wanted, strict=True)):
            least = min(len(p) for p in places) * len(classes)
            raise ValueError(f"{field}={size}; allowed for {name}, classes {classes.tolist()}: up to {least}")
        places = [p[:n] for p, n in zip(places, wanted, strict=True)]
    return np.sort(np.concatenate(places))


def _scale(x_train: np.ndarray, x_test: np.ndarray, scaling: str) -> tuple[np.ndarray, np.ndarray]:
    x_train, x_test = x_train.astype(np.float32), x_test.astype(np.float32)
    if scaling == "sqrt_d":

        def to_sqrt_d(x):
            norm = np.linalg.norm(x.reshape(len(x), -1), axis=1)
            if (norm == 0).any():
                raise ValueError("data.scaling='sqrt_d': an example is all zero; allowed: standardize, none")
            return x * (np.sqrt(x[0].size) / norm).reshape(-1, *([1] * (x.ndim - 1))).astype(np.float32)

        return to_sqrt_d(x_train), to_sqrt_d(x_test)
    if scaling == "standardize":
        axes = tuple(range(x_train.ndim - 1))
        mean, std = x_train.mean(axes), x_train.std(axes)
        std = np.where(std > 0, std, 1)
        return (x_train - mean) / std, (x_test - mean) / std
    return x_train, x_test


def _checksum(arrays: tuple[np.ndarray, ...]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
