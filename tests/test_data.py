"""Data sources in their order, and what is made of them."""

import hashlib
import sys

import numpy as np
import pytest

from catapult_jax import data

SMALL = dict(classes=(0, 1), train_size=6, test_size=4, scaling="none", coding="integer")


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
        ({"x_train": np.array([{}] * 40)}, "can't be read|Object arrays"),
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
    assert "tensorflow" not in sys.modules


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


def test_first_of_each_class_and_codings(tmp_path):
    arrays = write_npz(tmp_path)
    found = data.read("toy", directory=str(tmp_path))
    made = {
        c: data.prepare(found, **SMALL | {"classes": (3, 1), "coding": c}) for c in ("sign", "binary", "one_hot", "integer")
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


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": (0, 9)}, r"data.classes=\(0, 9\); allowed for toy: \[0, 1, 2, 3\]"),
        ({"classes": (), "coding": "sign"}, "data.coding='sign' with 4 classes"),
        ({"train_size": 100}, "data.train_size=100; allowed for toy.*up to 20"),
        ({"coding": "value"}, "with data.coding='value'"),
    ],
)
def test_bad_preparation(tmp_path, changed, message):
    write_npz(tmp_path)
    with pytest.raises(ValueError, match=message):
        data.prepare(data.read("toy", directory=str(tmp_path)), **SMALL | changed)


def test_numbers_that_are_not_finite_and_images_of_zeros(tmp_path):
    x = np.ones((40, 4, 4, 3), np.float32)
    x[0, 0, 0, 0] = np.nan
    write_npz(tmp_path, x_train=x)
    with pytest.raises(ValueError, match="x_train holds numbers that are not finite"):
        data.prepare(data.read("toy", directory=str(tmp_path)), **SMALL)
    write_npz(tmp_path, x_train=np.zeros((40, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="an example is all zero"):
        data.prepare(data.read("toy", directory=str(tmp_path)), **SMALL | {"scaling": "sqrt_d"})


def test_the_real_files(real_data):
    for name, size in (("cifar10", 32 * 32 * 3), ("mnist", 784), ("fashion_mnist", 784), ("usps", 256)):
        made = data.prepare(
            data.read(name, directory=real_data), classes=(0, 2), train_size=20, test_size=10, scaling="sqrt_d", coding="sign"
        )
        assert made.x_train[0].size == size and made.y_train.sum() == 0
