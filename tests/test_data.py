"""Data sources in their order, and what is made of them."""

import hashlib
import io
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catapult_jax import data
from configs import default
from experiments.build import load_data
from experiments.config import ConfigError

SMALL = dict(classes=(0, 1), train_size=6, test_size=4, scaling="none", target_encoding="integer")


def write_npz(folder, name="toy", **changed):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(1, 255, (40, 4, 4, 3), dtype=np.uint8),
        "y_train": np.arange(40, dtype=np.uint8) % 4,
        "x_test": rng.integers(1, 255, (20, 4, 4, 3), dtype=np.uint8),
        "y_test": np.arange(20, dtype=np.uint8) % 4,
    } | changed
    np.savez(folder / f"{name}.npz", **{k: v for k, v in arrays.items() if v is not None})
    return arrays


def test_folder_of_npz_by_argument_and_by_environment(tmp_path, monkeypatch):
    arrays = write_npz(tmp_path)
    read = data.read("toy", directory=str(tmp_path))
    np.testing.assert_array_equal(read.x_test, arrays["x_test"])
    assert read.source == "npz file toy.npz"
    monkeypatch.setenv("CATAPULT_DATA_DIR", str(tmp_path))
    np.testing.assert_array_equal(data.read("toy").y_train, arrays["y_train"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y_test": None}, "lacks y_test"),
        ({"y_train": np.zeros(3)}, r"x_train \(40, 4, 4, 3\) and y_train \(3,\)"),
        ({"y_train": np.zeros((40, 2))}, r"y_train \(40, 2\); allowed: .*attributes"),
        ({"x_train": np.array([{}] * 40)}, "toy.npz can't be read .*holds Python objects"),
    ],
)
def test_bad_npz(tmp_path, changed, message):
    write_npz(tmp_path, **changed)
    with pytest.raises(ValueError, match=message):
        data.read("toy", directory=str(tmp_path))


def test_truncated_npz(tmp_path):
    write_npz(tmp_path)
    file = tmp_path / "toy.npz"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"toy.npz can't be read"):
        data.read("toy", directory=str(tmp_path))


def test_missing_data_lists_the_ways_out(tmp_path, monkeypatch):
    monkeypatch.delenv("CATAPULT_DATA_DIR", raising=False)
    with pytest.raises(
        data.DataUnavailable, match=r"data.name='nope'.*Ways out: .*CATAPULT_DATA_DIR.*array_record.*natural_patches"
    ):
        data.read("nope")
    with pytest.raises(data.DataUnavailable, match=r"not prepared in .*data.download=True.*tfds-prepare"):
        data.read("mnist", tfds_dir=str(tmp_path))


def test_tfds_prepared_as_array_record_is_read_without_tensorflow(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds
    from PIL import Image

    monkeypatch.delenv("CATAPULT_DATA_DIR", raising=False)

    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (12, 28, 28, 1), dtype=np.uint8)

    class Mnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """A builder with the stock name and version, and twelve images of noise."""

        name = "mnist"
        VERSION = tfds.core.Version("3.0.1")

        def _info(self):
            features = {"image": tfds.features.Image(shape=(28, 28, 1)), "label": tfds.features.ClassLabel(num_classes=10)}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(range(8)), "test": self._generate_examples(range(8, 12))}

        def _generate_examples(self, rows):
            for i in rows:
                yield i, {"image": Image.fromarray(images[i, :, :, 0]), "label": i % 2}

    Mnist(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    read = data.read("mnist", tfds_dir=str(tmp_path))
    assert (read.x_train.shape, read.x_test.shape) == ((8, 28, 28, 1), (4, 28, 28, 1))
    assert sorted(map(bytes, read.x_train)) == sorted(map(bytes, images[:8]))  # in a hash order
    lookup = {bytes(image): i % 2 for i, image in enumerate(images)}
    assert [lookup[bytes(x)] for x in read.x_train] == read.y_train.tolist()
    assert read.source.startswith("TFDS mnist")
    small = data.read("mnist", tfds_dir=str(tmp_path), image_size=14, limit=3)
    assert (small.x_train.shape, small.x_test.shape) == ((3, 14, 14, 1), (3, 14, 14, 1))
    with pytest.raises(ValueError, match=r"data.attribute='Smiling'; allowed: None, mnist has class labels"):
        data.read("mnist", tfds_dir=str(tmp_path), attribute="Smiling")
    assert "tensorflow" not in sys.modules


def write_attributes(folder, **changed):
    """A file with attributes instead of class numbers; the columns as booleans."""
    columns = np.random.default_rng(1).integers(0, 2, (60, 3)).astype(bool)
    named = {"y_train": columns[:40], "y_test": columns[40:], "attributes": np.array(["Bangs", "Smiling", "Young"])}
    return write_npz(folder, "celeba", **named | changed), columns


@pytest.mark.parametrize("coded", [lambda y: y, lambda y: 2 * y.astype(int) - 1], ids=["booleans", "signs"])
def test_attribute_of_a_file(tmp_path, coded):
    arrays, columns = write_attributes(tmp_path)
    write_attributes(tmp_path, y_train=coded(arrays["y_train"]), y_test=coded(arrays["y_test"]))
    for i, name in enumerate(("Bangs", "Smiling", "Young")):
        read = data.read("celeba", directory=str(tmp_path), attribute=name)
        np.testing.assert_array_equal(np.concatenate([read.y_train, read.y_test]), columns[:, i])
        assert set(read.y_train) == {0, 1}
        assert read.source == f"npz file celeba.npz, attribute {name}"
    prepared = data.prepare(read, **SMALL | {"target_encoding": "sign"})
    assert prepared.y_train.sum() == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"attributes": None}, r"y_train \(40, 3\); allowed: .*attributes"),
        ({"attributes": np.arange(3)}, r"attributes int64 \(3,\); allowed: text \(k,\)"),
        ({"attributes": np.array(["Bangs"])}, r"y_train \(40, 3\); allowed: \(n, ...\) and \(n, 1\)"),
        ({"y_test": np.zeros(20)}, r"y_test \(20,\); allowed: \(n, ...\) and \(n, 3\)"),
    ],
)
def test_bad_attributes_of_a_file(tmp_path, changed, message):
    write_attributes(tmp_path, **changed)
    with pytest.raises(ValueError, match=message):
        data.read("celeba", directory=str(tmp_path), attribute="Bangs")


def test_attributes_are_asked_for_by_name_and_only_where_there_are_some(tmp_path):
    write_attributes(tmp_path)
    for attribute in (None, "Smile"):
        with pytest.raises(ValueError, match=rf"^data.attribute={attribute!r}; allowed: Bangs, Smiling, Young$"):
            data.read("celeba", directory=str(tmp_path), attribute=attribute)
    write_npz(tmp_path, attributes=np.array(["Bangs"]))  # names without columns: class numbers stay what they are
    assert set(data.read("toy", directory=str(tmp_path)).y_train) == {0, 1, 2, 3}
    for name in ("toy", "digits"):
        with pytest.raises(ValueError, match=f"data.attribute='Bangs'; allowed: None, {name} has class labels"):
            data.read(name, directory=str(tmp_path), attribute="Bangs")


@pytest.mark.parametrize("shape", [(9, 6, 3), (6, 9, 1), (9, 6)])
def test_images_are_cropped_to_the_centre_and_resized(tmp_path, shape):
    from PIL import Image

    x = np.random.default_rng(0).integers(0, 255, (40, *shape), dtype=np.uint8)
    write_npz(tmp_path, x_train=x, x_test=x[:20])
    read = data.read("toy", directory=str(tmp_path), image_size=4, limit=10)
    assert (read.x_train.shape, read.x_test.shape) == ((10, 4, 4, *shape[2:]), (10, 4, 4, *shape[2:]))
    assert read.source == "npz file toy.npz, images 4x4, first 10 of each split"
    assert read.x_train.dtype == np.uint8
    square = (x[:10, 1:7] if shape[0] > shape[1] else x[:10, :, 1:7]).squeeze()
    by_pillow = np.stack([Image.fromarray(image).resize((4, 4), Image.Resampling.BILINEAR) for image in square])
    off = np.abs(read.x_train.squeeze().astype(int) - by_pillow)  # Pillow rounds bytes twice, once for each axis
    assert off.max() <= 1 and off.mean() < 0.25
    exact = data.read("toy", directory=str(tmp_path), image_size=6)
    np.testing.assert_array_equal(exact.x_train[:10].squeeze(), square)


def test_bad_image_size_and_limit(tmp_path):
    write_npz(tmp_path, x_train=np.ones((40, 16)), x_test=np.ones((20, 16)))
    with pytest.raises(ValueError, match=r"data.image_size=4; allowed for toy, examples of shape \(16,\): None"):
        data.read("toy", directory=str(tmp_path), image_size=4)
    for field in ("image_size", "limit"):
        with pytest.raises(ValueError, match=f"{field}=-1; allowed: 1 or more, or None"):
            data.read("digits", **{field: -1})


@pytest.fixture(scope="module")
def celeb_a(tmp_path_factory):
    """The stock CelebA, features and all, of twelve grey images; every attribute but three is False. Returns folder, truth."""
    import tensorflow_datasets as tfds
    from PIL import Image

    stock = tfds.builder_cls("celeb_a")
    truth = {20 * i: {"Bangs": i % 2 == 0, "Smiling": i % 3 == 0, "Young": i > 6} for i in range(12)}

    class CelebA(stock, skip_registration=True):
        name = "celeb_a"
        pkg_dir_path = stock._get_pkg_dir_path()

        def _split_generators(self, dl_manager):
            levels = list(truth)
            return {"train": self._generate_examples(levels[:8]), "test": self._generate_examples(levels[8:])}

        def _generate_examples(self, levels):
            for level in levels:
                image = np.full((218, 178, 3), level, np.uint8)
                image[:16] = image[-10:] = 255 - level  # cropped away
                made = {name: dict.fromkeys(self.info.features[name], 0) for name in ("landmarks", "attributes", "identity")}
                file = io.BytesIO()
                Image.fromarray(image).save(file, "jpeg")
                file.seek(0)
                yield level, made | {"image": file, "attributes": made["attributes"] | truth[level]}

    folder = tmp_path_factory.mktemp("tfds")
    CelebA(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return str(folder), truth


def test_celeba_of_tfds(celeb_a, monkeypatch):
    monkeypatch.delenv("CATAPULT_DATA_DIR", raising=False)
    folder, truth = celeb_a
    for attribute in ("Smiling", "Bangs"):
        read = data.read("celeba", tfds_dir=folder, attribute=attribute, image_size=8)
        assert (read.x_train.shape, read.x_test.shape) == ((8, 8, 8, 3), (4, 8, 8, 3))
        x, y = np.concatenate([read.x_train, read.x_test]).astype(int), np.concatenate([read.y_train, read.y_test])
        assert np.ptp(x, axis=(1, 2, 3)).max() <= 4  # the crop is all of one level, but for what JPEG does
        levels = 20 * np.rint(x.mean((1, 2, 3)) / 20).astype(int)
        assert sorted(levels[:8]) == list(truth)[:8] and sorted(levels[8:]) == list(truth)[8:]
        assert y.tolist() == [truth[level][attribute] for level in levels]
        assert read.source == f"TFDS celeb_a/2.1.0, attribute {attribute}, images 8x8"
    few = data.read("celeba", tfds_dir=folder, attribute="Bangs", limit=5)
    assert (few.x_train.shape, few.x_test.shape) == ((5, 218, 178, 3), (4, 218, 178, 3))
    np.testing.assert_array_equal(few.y_train, read.y_train[:5])
    assert "tensorflow" not in sys.modules


def test_attributes_of_tfds_are_asked_for_by_name(celeb_a, monkeypatch):
    monkeypatch.delenv("CATAPULT_DATA_DIR", raising=False)
    for attribute in (None, "Smile"):
        with pytest.raises(
            ValueError, match=rf"^data.attribute={attribute!r}; allowed: 5_o_Clock_Shadow, .*, Smiling, .*Young$"
        ):
            data.read("celeba", tfds_dir=celeb_a[0], attribute=attribute)


def test_embedded_sets_are_there_and_split_apart():
    digits = data.read("digits")
    assert digits.x_train.shape == (1437, 8, 8, 1) and set(digits.y_train) == set(range(10))
    patches = data.read("natural_patches")
    assert patches.x_train.shape[1:] == (32, 32, 3) and set(patches.y_test) == {0, 1}
    train = {hashlib.sha256(x.tobytes()).digest() for x in patches.x_train}
    test = {hashlib.sha256(x.tobytes()).digest() for x in patches.x_test}
    assert not train & test


def test_synthetic_targets():
    made = data.synthetic(dimension=5, rank=3, noise=0.5, train_size=2000, test_size=10, seed=1)
    np.testing.assert_allclose(made.y_test, made.x_test[:, :3].prod(1))
    assert np.std(made.y_train - made.x_train[:, :3].prod(1)) == pytest.approx(0.5, rel=0.1)
    with pytest.raises(ValueError, match="rank=6; allowed: 1 to dimension=5"):
        data.synthetic(dimension=5, rank=6, noise=0.0, train_size=2, test_size=2, seed=0)


def by_hand(target, rank, x):
    """The target and its gradient, (n,) and (n, d), term by term."""
    y, gradient = np.zeros(len(x)), np.zeros_like(x)
    for n, z in enumerate(x):
        if target == "product":
            y[n] = math.prod(z[:rank])
            for i in range(rank):
                gradient[n, i] = math.prod(z[j] for j in range(rank) if j != i)
        elif target == "squares":
            y[n] = sum(z[i] ** 2 - 1 for i in range(rank)) / math.sqrt(2 * rank)
            gradient[n, :rank] = 2 * z[:rank] / math.sqrt(2 * rank)
        else:
            terms = [(i, i + 1) if i + 1 < rank else (i,) for i in range(0, rank, 2)]
            for term in terms:
                y[n] += math.prod(z[i] for i in term) / math.sqrt(len(terms))
                for i in term:
                    gradient[n, i] = math.prod(z[j] for j in term if j != i) / math.sqrt(len(terms))
    return y, gradient


@pytest.mark.parametrize("target", data.TARGETS)
def test_targets_and_their_gradients(target, strict):
    for rank in (1, 2, 3, 4, 6):
        made = data.synthetic(dimension=6, rank=rank, target=target, noise=0.5, train_size=7, test_size=5, seed=rank)
        x = made.x_test.copy()
        assert made.y_test.shape == (5,) and made.y_test.dtype == made.y_train.dtype == np.float32
        np.testing.assert_allclose(made.y_test, by_hand(target, rank, x)[0], rtol=1e-5, atol=1e-6)
        noiseless = data.synthetic(dimension=6, rank=rank, target=target, noise=0.0, train_size=7, test_size=5, seed=rank)
        np.testing.assert_array_equal(noiseless.x_train, made.x_train)
        np.testing.assert_allclose(noiseless.y_train, by_hand(target, rank, made.x_train)[0], rtol=1e-5, atol=1e-6)
        assert (noiseless.y_train != made.y_train).all()
        x[0, :2] = 0  # a factor of the product, or two of them
        value, gradient = jax.vmap(jax.value_and_grad(data.target_function(target, rank)))(jnp.asarray(x))
        np.testing.assert_allclose(value, by_hand(target, rank, x)[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(gradient, by_hand(target, rank, x)[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", data.TARGETS)
def test_targets_have_mean_zero_and_variance_one(target):
    for rank in (2, 3, 4):
        y = data.synthetic(dimension=5, rank=rank, target=target, noise=0.0, train_size=1, test_size=200_000, seed=0).y_test
        assert y.mean() == pytest.approx(0, abs=0.02)
        assert y.std() == pytest.approx(1, rel=0.05)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(data.TARGETS), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_only_the_first_coordinates_count(target, rank, seed):
    x, other = np.random.default_rng(seed).standard_normal((2, 6)).astype(np.float32)
    function = data.target_function(target, rank)
    gradient = np.asarray(jax.grad(function)(jnp.asarray(x)))
    assert (gradient[rank:] == 0).all() and (gradient[:rank] != 0).all()
    other[:rank] = x[:rank]
    assert function(x) == function(other)


def test_product_keeps_its_random_stream():
    made = data.synthetic(dimension=3, rank=2, noise=0.5, train_size=2, test_size=1, seed=0)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 3)).astype(np.float32)
    np.testing.assert_array_equal(np.concatenate([made.x_train, made.x_test]), x)
    noise = np.float32(0.5) * rng.standard_normal(2).astype(np.float32)
    np.testing.assert_array_equal(made.y_train, x[:2, 0] * x[:2, 1] + noise)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target": "cubes"}, "target='cubes'; allowed: product, pairs, squares"),
        ({"rank": 0}, "rank=0; allowed: 1 or more"),
        ({"rank": 6, "target": "pairs"}, "rank=6; allowed: 1 to dimension=5"),
    ],
)
def test_bad_targets(changed, message):
    with pytest.raises(ValueError, match=message):
        data.synthetic(**dict(dimension=5, rank=2, noise=0.0, train_size=2, test_size=2, seed=0) | changed)
    chosen = {"target": "product", "rank": 2} | changed
    with pytest.raises(ValueError, match=message):
        data.target_function(**chosen)(jnp.ones(5))


def test_first_of_each_class_and_codings(tmp_path):
    arrays = write_npz(tmp_path)
    found = data.read("toy", directory=str(tmp_path))
    made = {
        c: data.prepare(found, **SMALL | {"classes": (3, 1), "target_encoding": c})
        for c in ("sign", "binary", "one_hot", "integer")
    }
    rows = np.sort(np.concatenate([np.flatnonzero(arrays["y_train"] == c)[:3] for c in (3, 1)]))
    np.testing.assert_array_equal(made["integer"].x_train, arrays["x_train"][rows])
    number = np.array([{3: 0, 1: 1}[c] for c in arrays["y_train"][rows]])
    np.testing.assert_array_equal(made["integer"].y_train, number)
    np.testing.assert_array_equal(made["sign"].y_train[:, 0], 2 * number - 1)
    np.testing.assert_array_equal(made["binary"].y_train[:, 0], number)
    np.testing.assert_array_equal(made["one_hot"].y_train, np.eye(2)[number])
    assert [made[c].outputs for c in ("sign", "binary", "one_hot", "integer")] == [1, 1, 2, 2]


def test_scalings(tmp_path):
    write_npz(tmp_path)
    found = data.read("toy", directory=str(tmp_path))
    root = data.prepare(found, **SMALL | {"scaling": "sqrt_d"})
    np.testing.assert_allclose(np.linalg.norm(root.x_train.reshape(6, -1), axis=1), np.sqrt(48), rtol=1e-5)
    standard = data.prepare(found, **SMALL | {"scaling": "standardize"})
    np.testing.assert_allclose(standard.x_train.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(standard.x_train.std((0, 1, 2)), 1, rtol=1e-5)


def test_checksum_tells_arrays_apart_and_repeats(tmp_path):
    write_npz(tmp_path)
    found = data.read("toy", directory=str(tmp_path))
    sums = {data.prepare(found, **SMALL | change).checksum for change in ({}, {}, {"train_size": 4}, {"scaling": "sqrt_d"})}
    assert len(sums) == 3


def test_validation_examples_follow_the_training_examples_of_their_class(tmp_path):
    arrays = write_npz(tmp_path)
    found = data.read("toy", directory=str(tmp_path))
    chosen = SMALL | {"classes": (3, 1), "train_size": 7}
    without, made = data.prepare(found, **chosen), data.prepare(found, **chosen, validation_size=5)
    places = [np.flatnonzero(arrays["y_train"] == c) for c in (3, 1)]
    rows = np.sort(np.concatenate([places[0][4:7], places[1][3:5]]))  # 4 + 3 for training, then 3 + 2
    np.testing.assert_array_equal(made.x_val, arrays["x_train"][rows])
    np.testing.assert_array_equal(made.y_val, [{3: 0, 1: 1}[c] for c in arrays["y_train"][rows]])
    assert not {x.tobytes() for x in made.x_train} & {x.tobytes() for x in made.x_val}
    assert (without.x_val, without.y_val) == (None, None)
    for name in ("x_train", "y_train", "x_test", "y_test"):
        np.testing.assert_array_equal(getattr(made, name), getattr(without, name))
    assert made.checksum != without.checksum
    one_hot = data.prepare(found, **chosen | {"target_encoding": "one_hot"}, validation_size=5)
    np.testing.assert_array_equal(one_hot.y_val, np.eye(2)[made.y_val])


def test_checksum_is_of_four_arrays_without_validation_examples(tmp_path):
    write_npz(tmp_path)
    made = data.prepare(data.read("toy", directory=str(tmp_path)), **SMALL)
    digest = hashlib.sha256()
    for array in made[:4]:
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    assert made.checksum == digest.hexdigest()


def test_validation_rows_of_values_and_scaling_by_training_examples(tmp_path):
    found = data.synthetic(dimension=3, rank=2, noise=0.1, train_size=10 + 6, test_size=5, seed=0)
    chosen = dict(train_size=10, test_size=5, scaling="standardize", target_encoding="value", validation_size=6)
    made = data.prepare(found, **chosen)
    train, val = found.x_train[:10], found.x_train[10:]
    np.testing.assert_allclose(made.x_val, (val - train.mean(0)) / train.std(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(made.y_val, found.y_train[10:, None])
    write_npz(tmp_path)
    scaled = data.prepare(data.read("toy", directory=str(tmp_path)), **SMALL | {"scaling": "sqrt_d"}, validation_size=4)
    np.testing.assert_allclose(np.linalg.norm(scaled.x_val.reshape(4, -1), axis=1), np.sqrt(48), rtol=1e-5)


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
def test_bad_validation_size(tmp_path, changed, message):
    write_npz(tmp_path)
    with pytest.raises(ValueError, match=message):
        data.prepare(data.read("toy", directory=str(tmp_path)), **SMALL | changed)


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
def test_bad_preparation(tmp_path, changed, message):
    write_npz(tmp_path)
    with pytest.raises(ValueError, match=message):
        data.prepare(data.read("toy", directory=str(tmp_path)), **SMALL | changed)


def test_prepare_refuses_numbers_that_are_not_finite(tmp_path):
    x = np.ones((40, 4, 4, 3), np.float32)
    x[0, 0, 0, 0] = np.nan
    write_npz(tmp_path, x_train=x)
    with pytest.raises(ValueError, match="x_train holds numbers that are not finite"):
        data.prepare(data.read("toy", directory=str(tmp_path)), **SMALL)


@pytest.mark.parametrize(
    ("array", "index", "message"),
    [
        ("x_train", 5, r"example 5 of x_train of toy is all zero \(1 of 6 in the train split are\)"),
        ("x_train", 13, r"example 13 of x_train of toy is all zero \(1 of 4 in the val split are\)"),
        ("x_test", 4, r"example 4 of x_test of toy is all zero \(1 of 4 in the test split are\)"),
    ],
)
def test_prepare_says_which_example_is_all_zero(tmp_path, array, index, message):
    arrays = write_npz(tmp_path)
    arrays[array][index] = 0
    write_npz(tmp_path, **{array: arrays[array]})
    found = data.read("toy", directory=str(tmp_path))
    with pytest.raises(ValueError, match=message + "; allowed"):
        data.prepare(found, **SMALL | {"scaling": "sqrt_d"}, validation_size=4)
    data.prepare(found, **SMALL, validation_size=4)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 5, 5), (4, 16, 16), (3, 218, 178)])
def test_read_refuses_images_with_the_channels_first(tmp_path, shape):
    write_npz(tmp_path, x_train=np.ones((40, *shape), np.uint8), x_test=np.ones((20, *shape), np.uint8))
    last = (*shape[1:], shape[0])
    message = re.escape(f"images of shape {shape} have the channels first; allowed: channels last, {last}")
    for image_size in (None, 4):
        with pytest.raises(ValueError, match=message):
            data.read("toy", directory=str(tmp_path), image_size=image_size)


@pytest.mark.parametrize(
    "shape", [(32, 32, 3), (28, 28, 1), (3, 3, 3), (4, 4, 4), (1, 100, 9), (64, 3, 3), (32, 32, 32), (28, 28)]
)
def test_read_takes_images_with_the_channels_last(tmp_path, shape):
    write_npz(tmp_path, x_train=np.ones((40, *shape), np.uint8), x_test=np.ones((20, *shape), np.uint8))
    assert data.read("toy", directory=str(tmp_path)).x_train.shape == (40, *shape)


def test_standardize_of_gray_images_is_that_of_one_channel(tmp_path):
    x = np.random.default_rng(0).integers(0, 255, (60, 5, 6), dtype=np.uint8)
    chosen = SMALL | {"scaling": "standardize"}
    made = []
    for images in (x, x[..., None]):
        write_npz(tmp_path, x_train=images[:40], x_test=images[40:])
        made.append(data.prepare(data.read("toy", directory=str(tmp_path)), **chosen))
    np.testing.assert_allclose(made[0].x_test, made[1].x_test[..., 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("cifar11", "cifar10"), ("MNIST", "mnist"), ("natural_patch", "natural_patches"), ("toys", "toy"), ("celebA", "celeba")],
)
@pytest.mark.parametrize("with_tfds", [True, False])
def test_read_of_a_name_that_no_source_knows_has_the_nearest(tmp_path, monkeypatch, name, nearest, with_tfds):
    write_npz(tmp_path)
    if not with_tfds:
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(
        data.UnknownData, match=rf"^data.name='{name}'; allowed: a name that a source knows, such as '{nearest}' \(no file"
    ):
        data.read(name, directory=str(tmp_path))


def test_known_data_sets_that_are_missing_are_unavailable_not_unknown(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    for name in data.KNOWN:
        with pytest.raises(data.DataUnavailable) as raised:
            data.read(name, directory=str(tmp_path))
        assert not isinstance(raised.value, data.UnknownData)


def _config(tmp_path, **fields):
    config = default.get_config()
    config.data.dir = str(tmp_path)
    config.data.train_size, config.data.test_size, config.data.fallback = 6, 4, "digits"
    config.data.fallback_classes = (0, 1)
    config.data.update({key: value for key, value in fields.items() if key != "model"})
    config.model.name = fields.get("model", "fcn")
    return config


def test_load_data_falls_back_only_for_known_names(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert load_data(_config(tmp_path, name="mnist"))[1] == "mnist"
    assert "WARNING: mnist" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"data.name='cifar11'; allowed: .* such as 'cifar10'"):
        load_data(_config(tmp_path, name="cifar11"))


@pytest.mark.parametrize("model", ["cnn", "wide_resnet", "vit"])
def test_load_data_gives_gray_images_their_channel(tmp_path, model):
    write_npz(tmp_path, x_train=np.ones((40, 8, 8), np.uint8), x_test=np.ones((20, 8, 8), np.uint8))
    fields = dict(name="toy", classes=(0, 1))
    assert load_data(_config(tmp_path, model=model, **fields))[0].x_train.shape == (6, 8, 8, 1)
    assert load_data(_config(tmp_path, model="fcn", **fields))[0].x_train.shape == (6, 8, 8)
    write_npz(tmp_path, x_train=np.ones((40, 64)), x_test=np.ones((20, 64)))
    with pytest.raises(
        ConfigError, match=rf"model.name='{model}' with toy, whose examples have shape \(64,\); allowed: images"
    ):
        load_data(_config(tmp_path, model=model, **fields))


def test_the_real_files(real_data):
    for name, size in (("cifar10", 32 * 32 * 3), ("mnist", 784), ("fashion_mnist", 784), ("usps", 256)):
        made = data.prepare(
            data.read(name, directory=real_data),
            classes=(0, 2),
            train_size=20,
            test_size=10,
            scaling="sqrt_d",
            target_encoding="sign",
        )
        assert made.x_train[0].size == size and made.y_train.sum() == 0
