"""Prepare a data set for a run: classes, sizes, scaling of inputs, target encoding."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from catapult_jax.data.sources import Arrays

SCALINGS = ("sqrt_d", "standardize", "none")
_LEAST_NORM = 1e-15  # in float32 the squares of smaller inputs are not exact
TARGET_ENCODINGS = ("sign", "one_hot", "integer", "binary", "value")
TARGET_ENCODINGS_OF_LOSS = {
    "mse": ("sign", "one_hot", "value"),
    "softmax_cross_entropy": ("integer",),
    "logistic": ("binary",),
}


class Data(NamedTuple):
    """The arrays of a run."""

    x_train: np.ndarray  # (n, ...) float32; float64 after :func:`in_float64`
    y_train: np.ndarray  # (n, o) as x_train, or (n,) int32
    x_test: np.ndarray  # as x_train
    y_test: np.ndarray  # as y_train
    outputs: int  # o of the model
    name: str  # of the data set
    source: str  # where it comes from
    checksum: str  # SHA-256 of the arrays
    x_val: np.ndarray | None = None  # validation examples, from the training examples of the source; None: there are none
    y_val: np.ndarray | None = None  # as y_train
    # input Jacobian of the AGOP reference at the first training examples, (examples * outputs, inputs); None: no AGOP is measured
    agop_reference: np.ndarray | None = None
    # Data of each member, if each member's seed draws its own. The fields above are then those of the first member, but for source and
    # checksum. Members share an array that is the same object for all of them.
    draws: tuple[Data, ...] = ()


def prepare(
    arrays: Arrays,
    *,
    classes: tuple[int, ...] | None = None,
    train_size: int,
    test_size: int | None = None,
    scaling: str,
    target_encoding: str,
    validation_size: int = 0,
    seed: int | None = None,
) -> Data:
    """Select examples of a data set, scale their inputs and encode their targets.

    Each class gives its first examples in the order of the source, and as many as every other class. If the size is not a
    multiple of the number of classes, the first classes give one more. ``target_encoding="value"`` takes the first examples of all.
    With a ``seed``, training and validation examples are drawn at random in place of the first ones.

    Args:
      arrays: data set, from :func:`read` or :func:`synthetic`.
      classes: class numbers to keep, encoded as 0, 1, ... in this order; None: all, in ascending order.
      train_size: number of training examples.
      test_size: number of test examples; None: all.
      scaling: ``"sqrt_d"`` scales each example to norm ``sqrt(d)``, without centring; ``"standardize"`` subtracts the mean and
        divides by the standard deviation per channel, both of the training examples (images ``(n, h, w)`` have one channel);
        ``"none"``.
      target_encoding: ``"sign"`` -1, +1; ``"one_hot"``; ``"integer"``; ``"binary"`` 0, 1; ``"value"`` targets as they are.
      validation_size: number of validation examples, from the training split of the source. They are the next examples of each
        class after the training examples.
      seed: training and validation examples are drawn with it, without replacement, from the training split of the source; None: they
        are the first ones. The test examples are always the first ones.

    Returns:
      A :class:`Data`; inputs in float32.

    Raises:
      ValueError: a class does not exist; too few examples; a two-class encoding of another number of classes; an example of zeros
        with ``scaling="sqrt_d"``; numbers that are not finite.

    >>> x, y = np.ones((4, 2)), np.array([7, 9, 7, 9])
    >>> arrays = Arrays(x, y, x, y, "toy", "memory")
    >>> prepare(arrays, train_size=2, scaling="none", target_encoding="sign").y_train.tolist()
    [[-1.0], [1.0]]
    """
    _check_sizes(train_size, test_size, validation_size)
    rng = None if seed is None else np.random.default_rng(seed)
    if target_encoding == "value":
        if classes:
            raise ValueError(f"data.classes={classes!r} with data.target_encoding='value'; allowed: no classes")
        selection = _select_values(arrays, train_size, test_size, validation_size, rng)
    else:
        selection = _select_classes(arrays, classes, train_size, test_size, validation_size, target_encoding, rng)
    splits = {
        "train": (arrays.x_train, arrays.y_train, selection.train),
        "test": (arrays.x_test, arrays.y_test, selection.test),
    }
    if validation_size:
        splits["val"] = (arrays.x_train, arrays.y_train, selection.val)
    if scaling == "sqrt_d":
        for split, (x, _, rows) in splits.items():
            _refuse_zeros(split, x, rows, arrays.name)
    if not arrays.x_train[0].size:
        raise ValueError(f"{arrays.name}: examples of shape {arrays.x_train.shape[1:]} have no entry; allowed: one or more")
    scaled = _scale([x[rows] for x, _, rows in splits.values()], scaling)
    prepared = {}
    for (split, (_, y, rows)), x in zip(splits.items(), scaled, strict=True):
        prepared |= {f"x_{split}": x, f"y_{split}": selection.encode(y[rows])}
    for name, array in prepared.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{arrays.name}: {name} holds numbers that are not finite; allowed: finite numbers")
    checksum = _checksum(tuple(prepared.values()))
    return Data(**prepared, outputs=selection.outputs, name=arrays.name, source=arrays.source, checksum=checksum)


def _check_sizes(train_size: int, test_size: int | None, validation_size: int) -> None:
    if train_size < 1:
        raise ValueError(f"data.train_size={train_size!r}; allowed: 1 or more")
    if test_size is not None and test_size < 1:
        raise ValueError(f"data.test_size={test_size!r}; allowed: 1 or more, or None")
    if validation_size < 0:
        raise ValueError(f"data.validation_size={validation_size!r}; allowed: 0 or more")


class _Selection(NamedTuple):
    """Rows of a data set, and the encoding of their targets."""

    train: np.ndarray  # rows of the training split
    test: np.ndarray  # rows of the test split
    val: np.ndarray  # rows of the training split
    outputs: int  # o of the model
    encode: Callable[[np.ndarray], np.ndarray]  # targets of the source -> targets of the run


def _select_values(
    arrays: Arrays, train_size: int, test_size: int | None, validation_size: int, rng: np.random.Generator | None
) -> _Selection:
    """The first examples, or examples drawn with ``rng``; their targets are numbers."""
    train, test = np.arange(train_size), np.arange(test_size or len(arrays.x_test))
    for split, rows, x in (("train", train, arrays.x_train), ("test", test, arrays.x_test)):
        if len(rows) > len(x):
            raise ValueError(f"data.{split}_size={len(rows)}; allowed for {arrays.name}: 1 to {len(x)}")
    rest = np.arange(train_size, len(arrays.x_train))
    if validation_size > len(rest):
        raise ValueError(
            f"data.validation_size={validation_size}; allowed for {arrays.name} after data.train_size={train_size}: up to "
            f"{len(rest)}"
        )
    val = rest[:validation_size]
    if rng is not None:
        rows = rng.permutation(len(arrays.x_train))[: train_size + validation_size]
        train, val = np.sort(rows[:train_size]), np.sort(rows[train_size:])
    return _Selection(train, test, val, 1, lambda y: y.reshape(-1, 1).astype(np.float32))


def _select_classes(
    arrays: Arrays,
    classes: tuple[int, ...] | None,
    train_size: int,
    test_size: int | None,
    validation_size: int,
    target_encoding: str,
    rng: np.random.Generator | None,
) -> _Selection:
    """The first examples of each class, or examples drawn with ``rng``."""
    kept = _check_classes(arrays, classes, target_encoding)
    train = _first_of_each(arrays.y_train, kept, train_size, "data.train_size", arrays.name, rng)
    test = _first_of_each(arrays.y_test, kept, test_size, "data.test_size", arrays.name)
    rest = np.setdiff1d(np.arange(len(arrays.y_train)), train)  # in the order of the source
    val = rest[:0]
    if validation_size:
        name = f"{arrays.name} after data.train_size={train_size}"
        val = rest[_first_of_each(arrays.y_train[rest], kept, validation_size, "data.validation_size", name, rng)]
    codes = {c: i for i, c in enumerate(kept)}
    integer = lambda y: np.array([codes[int(c)] for c in y], np.int32)
    outputs, encode = {
        "sign": (1, lambda y: (2.0 * integer(y) - 1).astype(np.float32)[:, None]),
        "binary": (1, lambda y: integer(y).astype(np.float32)[:, None]),
        "one_hot": (len(kept), lambda y: np.eye(len(kept), dtype=np.float32)[integer(y)]),
        "integer": (len(kept), integer),
    }[target_encoding]
    return _Selection(train, test, val, outputs, encode)


def _check_classes(arrays: Arrays, classes: tuple[int, ...] | None, target_encoding: str) -> list[int]:
    """The classes to keep, by default all of the training split, after checks."""
    for split, y in (("train", arrays.y_train), ("test", arrays.y_test)):
        if not (np.isfinite(y).all() and (y == np.rint(y)).all()):
            raise ValueError(f"{arrays.name}: y_{split} holds numbers that are no class; allowed: whole numbers")
    present = [int(c) for c in np.unique(arrays.y_train)]
    kept = present if classes is None else [int(c) for c in classes]
    if not set(kept) <= set(present):
        raise ValueError(f"data.classes={tuple(kept)!r}; allowed for {arrays.name}: {present}")
    if target_encoding in ("sign", "binary") and len(kept) != 2:
        raise ValueError(
            f"data.target_encoding={target_encoding!r} with {len(kept)} classes; allowed: 2 classes, or one_hot, integer"
        )
    if len(kept) < 2:
        raise ValueError(f"{arrays.name} has {len(kept)} class here; allowed: 2 or more")
    return kept


def _refuse_zeros(split: str, x: np.ndarray, rows: np.ndarray, name: str) -> None:
    """An example of zeros has no norm to scale."""
    zeros = rows[~x[rows].reshape(len(rows), -1).any(axis=1)]
    if len(zeros):
        array = "x_test" if split == "test" else "x_train"  # validation examples come from x_train
        raise ValueError(
            f"data.scaling='sqrt_d': example {zeros[0]} of {array} of {name} is all zero ({len(zeros)} of {len(rows)} in the "
            f"{split} split are); allowed: standardize, none, or data without it"
        )


def most_examples(y: np.ndarray, classes: Sequence[int] | None = None) -> int:
    """The largest number of examples with equally many of each class.

    Args:
      y: class numbers.
      classes: classes to keep; None: all.

    Returns:
      The number of examples.

    >>> most_examples(np.array([0, 0, 0, 1, 1, 2]), (0, 1))
    4
    """
    kept = np.unique(y) if classes is None else np.array(classes)
    return min(int((y == c).sum()) for c in kept) * len(kept)


def _first_of_each(
    y: np.ndarray,
    classes: Sequence[int],
    size: int | None,
    field: str,
    name: str,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Sorted rows of the first examples of each class, or of examples drawn with ``rng``; ``size=None``: all of them."""
    rows = [np.flatnonzero(y == c) for c in classes]
    if rng is not None:
        rows = [rng.permutation(r) for r in rows]
    if size is not None:
        counts = [size // len(classes) + (i < size % len(classes)) for i in range(len(classes))]
        if any(len(r) < n for r, n in zip(rows, counts, strict=True)):
            most = most_examples(y, classes)
            raise ValueError(f"{field}={size}; allowed for {name}, classes {list(classes)}: up to {most}")
        rows = [r[:n] for r, n in zip(rows, counts, strict=True)]
    return np.sort(np.concatenate(rows))


def _scale(splits: list[np.ndarray], scaling: str) -> list[np.ndarray]:
    """The inputs of each split in float32, scaled; the training examples come first."""
    with np.errstate(over="ignore", invalid="ignore"):  # results that are not finite are refused later
        singles = [x.astype(np.float32) for x in splits]
        if any(x.any() and not single.any() for x, single in zip(splits, singles, strict=True)):
            raise ValueError("the inputs are below 1e-45, which is 0 in float32; allowed: larger inputs")
        if scaling == "sqrt_d":
            return [_to_norm_sqrt_d(x) for x in singles]
        if scaling == "standardize":
            has_channels = singles[0].ndim != 3
            axes = tuple(range(singles[0].ndim - has_channels))
            mean, std = singles[0].mean(axes), singles[0].std(axes)
            if not np.isfinite(std).all() or not std.any():  # squares beyond float32
                mean, std = singles[0].mean(axes, dtype=np.float64), singles[0].std(axes, dtype=np.float64)
            std = np.where(std > 0, std, 1)
            return [((x - mean) / std).astype(np.float32) for x in singles]
        return singles


def _to_norm_sqrt_d(x: np.ndarray) -> np.ndarray:
    norm_of = lambda x: np.linalg.norm(x.reshape(len(x), -1), axis=1)
    wide = lambda row: row.reshape(-1, *([1] * (x.ndim - 1))).astype(np.float32)
    norm = norm_of(x)
    if not (np.isfinite(norm) & (norm > _LEAST_NORM)).all():  # squares beyond float32
        x = x / wide(np.abs(x.reshape(len(x), -1)).max(1))
        norm = norm_of(x)
    return x * wide(np.sqrt(x[0].size) / norm)


def by_member(draws: Sequence[Data]) -> Data:
    """The data of a run in which each member has its own examples.

    Args:
      draws: data of each member; an entry may come several times. All have the same shapes.

    Returns:
      The data of the first member, with the data of all members in ``draws``. Equal arrays become one object, which the members share.
      The checksum is that of all draws.

    Raises:
      ValueError: two different draws have the same examples.

    >>> x, y = np.arange(40.0).reshape(20, 2), np.array([7, 9] * 10)
    >>> arrays = Arrays(x, y, x, y, "toy", "memory")
    >>> draws = [prepare(arrays, train_size=6, scaling="none", target_encoding="sign", seed=seed) for seed in (0, 1)]
    >>> data = by_member(draws)
    >>> data.draws[1].x_train is data.x_train, data.draws[1].x_test is data.x_test
    (False, True)
    """
    different = {id(draw): draw for draw in draws}
    if len({draw.checksum for draw in different.values()}) < len(different):
        raise ValueError(
            f"data.train_size={len(draws[0].x_train)}: two seeds draw the same examples of {draws[0].name}; allowed with data.by_seed: fewer "
            "examples than the data set has"
        )
    first = draws[0]
    arrays = {name: array for name, array in first._asdict().items() if isinstance(array, np.ndarray)}
    shared = {n: a for n, a in arrays.items() if all(np.array_equal(getattr(d, n), a) for d in different.values())}
    different = {key: draw._replace(**shared) for key, draw in different.items()}
    checksum = hashlib.sha256("".join(draw.checksum for draw in different.values()).encode()).hexdigest()
    source = f"{first.source}; drawn again for each seed"
    return first._replace(checksum=checksum, source=source, draws=tuple(different[id(draw)] for draw in draws))


def in_float64(data: Data) -> Data:
    """The same data with inputs and targets in float64, for runs in double precision. Arrays that members share stay shared.

    Args:
      data: from :func:`prepare` or :func:`by_member`.

    Returns:
      A :class:`Data`; integer targets and the checksum stay as they are.

    >>> from catapult_jax.data.targets import synthetic
    >>> arrays = synthetic(dimension=3, rank=2, target="product", noise=0.0, train_size=4, test_size=2, seed=0)
    >>> in_float64(prepare(arrays, train_size=4, scaling="none", target_encoding="value")).x_train.dtype.name
    'float64'
    """
    wide: dict[int, np.ndarray] = {}

    def cast(array: np.ndarray | None) -> np.ndarray | None:
        if array is None or array.dtype != np.float32:
            return array
        if id(array) not in wide:
            wide[id(array)] = array.astype(np.float64)
        return wide[id(array)]

    def of(each: Data) -> Data:
        names = ("x_train", "y_train", "x_test", "y_test", "x_val", "y_val")
        return each._replace(**{name: cast(getattr(each, name)) for name in names}, draws=tuple(map(of, each.draws)))

    return of(data)


def _checksum(arrays: tuple[np.ndarray, ...]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
