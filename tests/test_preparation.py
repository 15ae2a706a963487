"""The arrays of a run from a data set: rows, scaling, encoding, checksum."""

import hashlib

import numpy as np
import pytest

from catapult_jax import data
from catapult_jax.data import most_examples
from tests.helpers_data import SMALL, write_npz


def toy(folder, **changed):
    """The data set of :func:`write_npz`."""
    write_npz(folder, **changed)
    return data.read("toy", directory=str(folder))


ENCODINGS = {
    "integer": (2, lambda number: number),
    "sign": (1, lambda number: 2 * number[:, None] - 1),
    "binary": (1, lambda number: number[:, None]),
    "one_hot": (2, lambda number: np.eye(2)[number]),
}


@pytest.mark.parametrize("target_encoding", ENCODINGS)
def test_prepare_takes_the_first_of_each_class_and_encodes_them(tmp_path, target_encoding):
    arrays = toy(tmp_path)
    rows = np.sort(np.concatenate([np.flatnonzero(arrays.y_train == c)[:3] for c in (3, 1)]))
    number = np.array([{3: 0, 1: 1}[c] for c in arrays.y_train[rows]])

    prepared = data.prepare(arrays, **SMALL | {"classes": (3, 1), "target_encoding": target_encoding})

    outputs, encode = ENCODINGS[target_encoding]
    np.testing.assert_array_equal(prepared.x_train, arrays.x_train[rows])
    np.testing.assert_array_equal(prepared.y_train, encode(number))
    assert prepared.outputs == outputs


def test_prepare_scales_to_norm_sqrt_d(tmp_path):
    prepared = data.prepare(toy(tmp_path), **SMALL | {"scaling": "sqrt_d"}, validation_size=4)

    for x in (prepared.x_train, prepared.x_test, prepared.x_val):
        np.testing.assert_allclose(np.linalg.norm(x.reshape(len(x), -1), axis=1), np.sqrt(48), rtol=1e-5)


@pytest.mark.parametrize("scaling", ["sqrt_d", "standardize"])
@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_prepare_scales_inputs_whose_squares_leave_the_range_of_float32(tmp_path, scaling, size):
    """As those of size one, up to rounding."""
    arrays = toy(tmp_path)
    scaled = arrays._replace(x_train=arrays.x_train * np.float64(size), x_test=arrays.x_test * np.float64(size))

    expected, found = (data.prepare(a, **SMALL | {"scaling": scaling}) for a in (arrays, scaled))

    np.testing.assert_allclose(found.x_train, expected.x_train, rtol=1e-4, atol=1e-5)


def test_prepare_refuses_inputs_below_the_range_of_float32(tmp_path):
    arrays = toy(tmp_path)
    tiny = arrays._replace(x_train=arrays.x_train.astype(float) * 1e-300, x_test=arrays.x_test.astype(float) * 1e-300)
    with pytest.raises(ValueError, match="inputs are below 1e-45, which is 0 in float32; allowed: larger inputs"):
        data.prepare(tiny, **SMALL)


def test_prepare_standardizes_by_channel(tmp_path):
    prepared = data.prepare(toy(tmp_path), **SMALL | {"scaling": "standardize"})

    np.testing.assert_allclose(prepared.x_train.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(prepared.x_train.std((0, 1, 2)), 1, rtol=1e-5)


def test_prepare_standardizes_gray_images_as_one_channel(tmp_path):
    x = np.random.default_rng(0).integers(0, 255, (60, 5, 6), dtype=np.uint8)
    settings = SMALL | {"scaling": "standardize"}

    gray, one_channel = (
        data.prepare(toy(tmp_path, x_train=images[:40], x_test=images[40:]), **settings).x_test for images in (x, x[..., None])
    )

    np.testing.assert_allclose(gray, one_channel[..., 0], rtol=1e-6)


def test_prepare_gives_a_checksum_that_tells_arrays_apart(tmp_path):
    arrays, changes = toy(tmp_path), ({}, {}, {"train_size": 4}, {"scaling": "sqrt_d"})

    checksums = [data.prepare(arrays, **SMALL | change).checksum for change in changes]

    assert checksums[0] == checksums[1] and len(set(checksums)) == 3


def test_prepare_without_validation_has_the_checksum_of_four_arrays(tmp_path):
    prepared = data.prepare(toy(tmp_path), **SMALL)

    digest = hashlib.sha256()
    for array in prepared[:4]:
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    assert prepared.checksum == digest.hexdigest()


def test_prepare_takes_validation_examples_after_the_training_examples_of_their_class(tmp_path):
    arrays = toy(tmp_path)
    settings = SMALL | {"classes": (3, 1), "train_size": 7}
    places = [np.flatnonzero(arrays.y_train == c) for c in (3, 1)]
    rows = np.sort(np.concatenate([places[0][4:7], places[1][3:5]]))  # 4 + 3 for training, then 3 + 2

    prepared = data.prepare(arrays, **settings, validation_size=5)
    one_hot = data.prepare(arrays, **settings | {"target_encoding": "one_hot"}, validation_size=5)

    np.testing.assert_array_equal(prepared.x_val, arrays.x_train[rows])
    np.testing.assert_array_equal(prepared.y_val, [{3: 0, 1: 1}[c] for c in arrays.y_train[rows]])
    assert not {x.tobytes() for x in prepared.x_train} & {x.tobytes() for x in prepared.x_val}
    np.testing.assert_array_equal(one_hot.y_val, np.eye(2)[prepared.y_val])


def test_prepare_with_validation_keeps_the_other_arrays(tmp_path):
    arrays, settings = toy(tmp_path), SMALL | {"classes": (3, 1), "train_size": 7}

    without, prepared = data.prepare(arrays, **settings), data.prepare(arrays, **settings, validation_size=5)

    assert (without.x_val, without.y_val) == (None, None)
    for name in ("x_train", "y_train", "x_test", "y_test"):
        np.testing.assert_array_equal(getattr(prepared, name), getattr(without, name))
    assert prepared.checksum != without.checksum


def test_prepare_scales_validation_examples_by_the_training_examples():
    arrays = data.synthetic(dimension=3, rank=2, noise=0.1, train_size=10 + 6, test_size=5, seed=0)
    train, val = arrays.x_train[:10], arrays.x_train[10:]
    settings = dict(train_size=10, test_size=5, scaling="standardize", target_encoding="value", validation_size=6)

    prepared = data.prepare(arrays, **settings)

    np.testing.assert_allclose(prepared.x_val, (val - train.mean(0)) / train.std(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(prepared.y_val, arrays.y_train[10:, None])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"validation_size": -1}, "data.validation_size=-1; allowed: 0 or more"),
        (
            {"validation_size": 15},
            r"data.validation_size=15; allowed for toy after data.train_size=6, classes \[0, 1\]: up to 14",
        ),
        ({"train_size": 0, "validation_size": 1}, "data.train_size=0; allowed: 1 or more"),
        (
            {"classes": None, "target_encoding": "value", "validation_size": 35},
            "data.validation_size=35; allowed for toy after data.train_size=6: up to 34",
        ),
    ],
)
def test_prepare_refuses_a_bad_validation_size(tmp_path, changed, message):
    arrays = toy(tmp_path)

    with pytest.raises(ValueError, match=message):
        data.prepare(arrays, **SMALL | changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": (0, 9)}, r"data.classes=\(0, 9\); allowed for toy: \[0, 1, 2, 3\]"),
        ({"classes": None, "target_encoding": "sign"}, "data.target_encoding='sign' with 4 classes"),
        ({"train_size": 100}, "data.train_size=100; allowed for toy.*up to 20"),
        ({"target_encoding": "value"}, "with data.target_encoding='value'"),
        ({"classes": None, "target_encoding": "value", "train_size": 41}, "data.train_size=41; allowed for toy: 1 to 40"),
    ],
)
def test_prepare_refuses_what_the_data_set_does_not_have(tmp_path, changed, message):
    arrays = toy(tmp_path)

    with pytest.raises(ValueError, match=message):
        data.prepare(arrays, **SMALL | changed)


@pytest.mark.parametrize("y", [np.full(40, 0.5), np.array([0.0, np.nan] * 20)], ids=["a half", "NaN"])
def test_prepare_refuses_class_numbers_that_are_not_whole(tmp_path, y):
    arrays = toy(tmp_path, y_train=y)

    with pytest.raises(ValueError, match="toy: y_train holds numbers that are no class; allowed: whole numbers"):
        data.prepare(arrays, **SMALL)


def test_prepare_refuses_numbers_that_are_not_finite(tmp_path):
    x = np.ones((40, 4, 4, 3), np.float32)
    x[0, 0, 0, 0] = np.nan
    arrays = toy(tmp_path, x_train=x)

    with pytest.raises(ValueError, match="x_train holds numbers that are not finite"):
        data.prepare(arrays, **SMALL)


@pytest.mark.parametrize(
    ("array", "index", "message"),
    [
        ("x_train", 5, r"example 5 of x_train of toy is all zero \(1 of 6 in the train split are\)"),
        ("x_train", 13, r"example 13 of x_train of toy is all zero \(1 of 4 in the val split are\)"),
        ("x_test", 4, r"example 4 of x_test of toy is all zero \(1 of 4 in the test split are\)"),
    ],
)
def test_prepare_names_an_example_that_is_all_zero(tmp_path, array, index, message):
    arrays = write_npz(tmp_path)
    arrays[array][index] = 0
    zeroed = toy(tmp_path, **{array: arrays[array]})

    with pytest.raises(ValueError, match=message + "; allowed"):
        data.prepare(zeroed, **SMALL | {"scaling": "sqrt_d"}, validation_size=4)
    data.prepare(zeroed, **SMALL, validation_size=4)  # other scalings take it


def test_most_examples_is_limited_by_the_rarest_class():
    y = np.array([0, 0, 0, 1, 1, 2])

    assert most_examples(y, (0, 1)) == 4
    assert most_examples(y) == 3


def test_prepare_of_the_real_files(real_data):
    for name, size in (("cifar10", 32 * 32 * 3), ("mnist", 784), ("fashion_mnist", 784), ("usps", 256)):
        prepared = data.prepare(
            data.read(name, directory=real_data),
            classes=(0, 2),
            train_size=20,
            test_size=10,
            scaling="sqrt_d",
            target_encoding="sign",
        )
        assert prepared.x_train[0].size == size and prepared.y_train.sum() == 0


def rows_of(x, source):
    """The row of the source that each example is; the images of the toy data set differ."""
    return [int(np.flatnonzero((source == example).all((1, 2, 3)))[0]) for example in x]


@pytest.mark.parametrize("seed", [0, 3])
def test_prepare_with_a_seed_draws_as_many_of_each_class_and_each_once(tmp_path, seed):
    arrays = toy(tmp_path)

    drawn = data.prepare(arrays, **SMALL, validation_size=4, seed=seed)

    train, val = rows_of(drawn.x_train, arrays.x_train), rows_of(drawn.x_val, arrays.x_train)
    assert len({*train, *val}) == 6 + 4
    assert np.bincount(drawn.y_train).tolist() == [3, 3] and np.bincount(drawn.y_val).tolist() == [2, 2]
    assert arrays.y_train[train].tolist() == drawn.y_train.tolist() and arrays.y_train[val].tolist() == drawn.y_val.tolist()
    np.testing.assert_array_equal(drawn.x_test, data.prepare(arrays, **SMALL).x_test)


def test_prepare_with_a_seed_draws_every_example_equally_often(tmp_path):
    arrays, counts = toy(tmp_path), np.zeros(40)

    for seed in range(200):
        counts[rows_of(data.prepare(arrays, **SMALL, seed=seed).x_train, arrays.x_train)] += 1

    of_classes = counts[arrays.y_train < 2]  # 3 of 10 in each draw: 60 +- 6.5 of 200
    assert counts.sum() == of_classes.sum() == 200 * 6 and of_classes.min() > 60 - 5 * 6.5 and of_classes.max() < 60 + 5 * 6.5


def test_prepare_with_a_seed_of_real_targets_keeps_inputs_and_targets_together():
    x = np.arange(20.0).reshape(20, 1)
    arrays = data.Arrays(x, 2 * x[:, 0], x, x[:, 0], "toy", "memory")
    draw = lambda seed: data.prepare(
        arrays, train_size=6, test_size=3, scaling="none", target_encoding="value", validation_size=5, seed=seed
    )

    first, second = draw(0), draw(1)

    for drawn in (first, second):
        np.testing.assert_array_equal(drawn.y_train, 2 * drawn.x_train)
        assert len({*drawn.x_train[:, 0], *drawn.x_val[:, 0]}) == 6 + 5 and drawn.x_test[:, 0].tolist() == [0, 1, 2]
    assert set(first.x_train[:, 0]) != set(second.x_train[:, 0])


def test_by_member_shares_what_is_equal(tmp_path):
    arrays = toy(tmp_path)
    draws = [data.prepare(arrays, **SMALL, validation_size=4, seed=seed) for seed in (3, 5)]

    whole = data.by_member([draws[0], draws[1], draws[0]])

    first, second, third = whole.draws
    assert third is first and second.x_test is first.x_test is whole.x_test and second.x_train is not whole.x_train
    np.testing.assert_array_equal(second.x_train, draws[1].x_train)
    assert len({whole.checksum, first.checksum, second.checksum}) == 3
    assert whole.checksum != data.by_member(draws[::-1]).checksum == data.by_member(draws[::-1]).checksum


def test_in_float64_keeps_values_and_what_is_shared(tmp_path):
    settings = SMALL | {"target_encoding": "sign", "validation_size": 4}
    whole = data.by_member([data.prepare(toy(tmp_path), **settings, seed=seed) for seed in (3, 5)])

    wide = data.in_float64(whole)

    for name in ("x_train", "y_train", "x_test", "y_test", "x_val", "y_val"):
        assert getattr(wide, name).dtype == np.float64
        np.testing.assert_array_equal(getattr(wide, name), getattr(whole, name))
    first, second = wide.draws
    assert second.x_test is first.x_test is wide.x_test and second.x_train is not wide.x_train
    assert wide.checksum == whole.checksum


def test_in_float64_leaves_integer_targets(tmp_path):
    labels = data.prepare(toy(tmp_path), **SMALL | {"target_encoding": "integer"})

    assert data.in_float64(labels).y_train is labels.y_train


def test_by_member_standardizes_the_test_examples_of_each_draw(tmp_path):
    settings = SMALL | {"scaling": "standardize"}
    draws = [data.prepare(toy(tmp_path), **settings, seed=seed) for seed in (3, 5)]

    first, second = data.by_member(draws).draws

    assert not np.array_equal(first.x_test, second.x_test) and first.y_test is second.y_test


def test_by_member_refuses_two_equal_draws(tmp_path):
    arrays = toy(tmp_path)
    draws = [data.prepare(arrays, **SMALL | {"train_size": 20}, seed=seed) for seed in (0, 1)]  # all of both classes

    with pytest.raises(ValueError, match=r"data.train_size=20: two seeds draw the same examples of toy; allowed with data.by_"):
        data.by_member(draws)
