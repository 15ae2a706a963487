"""Data sets from files, TFDS and installed packages, and what is refused."""

import hashlib
import io
import re
import sys

import numpy as np
import pytest

from catapult_jax import data
from tests.helpers_data import SMALL, write_npz


def test_read_of_a_folder_of_npz_files(tmp_path):
    arrays = write_npz(tmp_path)

    read = data.read("toy", directory=str(tmp_path))

    np.testing.assert_array_equal(read.x_test, arrays["x_test"])
    assert read.source == "npz file toy.npz"


def test_read_of_the_folder_of_the_environment(tmp_path, monkeypatch):
    arrays = write_npz(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    for folder in (str(tmp_path), "~"):
        monkeypatch.setenv("CATAPULT_DATA_DIR", folder)
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
def test_read_refuses_a_bad_file(tmp_path, changed, message):
    write_npz(tmp_path, **changed)

    with pytest.raises(ValueError, match=message):
        data.read("toy", directory=str(tmp_path))


def test_read_refuses_a_truncated_file(tmp_path):
    write_npz(tmp_path)
    file = tmp_path / "toy.npz"
    file.write_bytes(file.read_bytes()[:500])

    with pytest.raises(ValueError, match=r"toy.npz can't be read"):
        data.read("toy", directory=str(tmp_path))


def test_read_of_missing_data_lists_the_ways_out(monkeypatch):
    monkeypatch.delenv("CATAPULT_DATA_DIR", raising=False)

    with pytest.raises(
        data.DataUnavailable, match=r"data.name='nope'.*Ways out: .*CATAPULT_DATA_DIR.*array_record.*natural_patches"
    ):
        data.read("nope")


def test_read_of_tfds_data_that_are_not_prepared(tmp_path, monkeypatch):
    monkeypatch.delenv("CATAPULT_DATA_DIR", raising=False)

    with pytest.raises(data.DataUnavailable, match=r"not prepared in .*data.download=True.*tfds-prepare"):
        data.read("mnist", tfds_dir=str(tmp_path))


def test_read_of_tfds_array_record_needs_no_tensorflow(tmp_path, monkeypatch):
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
    assert sorted(map(bytes, read.x_train)) == sorted(map(bytes, images[:8]))  # TFDS stores them in the order of a hash
    lookup = {bytes(image): i % 2 for i, image in enumerate(images)}
    assert [lookup[bytes(x)] for x in read.x_train] == read.y_train.tolist()
    assert read.source.startswith("TFDS mnist")
    small = data.read("mnist", tfds_dir=str(tmp_path), image_size=14, limit=3)
    assert (small.x_train.shape, small.x_test.shape) == ((3, 14, 14, 1), (3, 14, 14, 1))
    with pytest.raises(ValueError, match=r"data.attribute='Smiling'; allowed: None, mnist has class labels"):
        data.read("mnist", tfds_dir=str(tmp_path), attribute="Smiling")
    assert "tensorflow" not in sys.modules


def write_attributes(folder, **changed):
    """Write a file with attributes instead of class numbers; returns its arrays and the columns as booleans."""
    columns = np.random.default_rng(1).integers(0, 2, (60, 3)).astype(bool)
    named = {"y_train": columns[:40], "y_test": columns[40:], "attributes": np.array(["Bangs", "Smiling", "Young"])}
    return write_npz(folder, "celeba", **named | changed), columns


@pytest.mark.parametrize("encode", [lambda y: y, lambda y: 2 * y.astype(int) - 1], ids=["booleans", "signs"])
def test_read_of_an_attribute_of_a_file(tmp_path, encode):
    arrays, columns = write_attributes(tmp_path)
    write_attributes(tmp_path, y_train=encode(arrays["y_train"]), y_test=encode(arrays["y_test"]))

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
def test_read_refuses_bad_attributes_of_a_file(tmp_path, changed, message):
    write_attributes(tmp_path, **changed)

    with pytest.raises(ValueError, match=message):
        data.read("celeba", directory=str(tmp_path), attribute="Bangs")


@pytest.mark.parametrize("attribute", [None, "Smile"])
def test_read_of_a_file_with_attributes_needs_the_name_of_one(tmp_path, attribute):
    write_attributes(tmp_path)

    with pytest.raises(ValueError, match=rf"^data.attribute={attribute!r}; allowed: Bangs, Smiling, Young$"):
        data.read("celeba", directory=str(tmp_path), attribute=attribute)


def test_read_keeps_class_numbers_of_a_file_with_names_without_columns(tmp_path):
    write_npz(tmp_path, attributes=np.array(["Bangs"]))

    assert set(data.read("toy", directory=str(tmp_path)).y_train) == {0, 1, 2, 3}


@pytest.mark.parametrize("name", ["toy", "digits"])
def test_read_refuses_an_attribute_of_data_with_class_labels(tmp_path, name):
    write_npz(tmp_path)

    with pytest.raises(ValueError, match=f"data.attribute='Bangs'; allowed: None, {name} has class labels"):
        data.read(name, directory=str(tmp_path), attribute="Bangs")


@pytest.mark.parametrize("shape", [(9, 6, 3), (6, 9, 1), (9, 6)])
def test_read_crops_images_to_the_centre_and_resizes_them(tmp_path, shape):
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


def test_read_refuses_to_resize_vectors(tmp_path):
    write_npz(tmp_path, x_train=np.ones((40, 16)), x_test=np.ones((20, 16)))

    with pytest.raises(ValueError, match=r"data.image_size=4; allowed for toy, examples of shape \(16,\): None"):
        data.read("toy", directory=str(tmp_path), image_size=4)


@pytest.mark.parametrize("field", ["image_size", "limit"])
def test_read_refuses_sizes_below_one(field):
    with pytest.raises(ValueError, match=f"{field}=-1; allowed: 1 or more, or None"):
        data.read("digits", **{field: -1})


@pytest.fixture(scope="module")
def celeb_a(tmp_path_factory):
    """Folder with the stock CelebA of TFDS, of twelve grey images, and three of its attributes by grey level; the others are False."""
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
                image[:16] = image[-10:] = 255 - level  # outside the central square
                features = {
                    name: dict.fromkeys(self.info.features[name], 0) for name in ("landmarks", "attributes", "identity")
                }
                file = io.BytesIO()
                Image.fromarray(image).save(file, "jpeg")
                file.seek(0)
                yield level, features | {"image": file, "attributes": features["attributes"] | truth[level]}

    folder = tmp_path_factory.mktemp("tfds")
    CelebA(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return str(folder), truth


def test_read_of_celeba_of_tfds(celeb_a, monkeypatch):
    monkeypatch.delenv("CATAPULT_DATA_DIR", raising=False)
    folder, truth = celeb_a
    for attribute in ("Smiling", "Bangs"):
        read = data.read("celeba", tfds_dir=folder, attribute=attribute, image_size=8)
        assert (read.x_train.shape, read.x_test.shape) == ((8, 8, 8, 3), (4, 8, 8, 3))
        x, y = np.concatenate([read.x_train, read.x_test]).astype(int), np.concatenate([read.y_train, read.y_test])
        assert np.ptp(x, axis=(1, 2, 3)).max() <= 4  # the crop has one level, up to the error of JPEG
        levels = 20 * np.rint(x.mean((1, 2, 3)) / 20).astype(int)
        assert sorted(levels[:8]) == list(truth)[:8] and sorted(levels[8:]) == list(truth)[8:]
        assert y.tolist() == [truth[level][attribute] for level in levels]
        assert read.source == f"TFDS celeb_a/2.1.0, attribute {attribute}, images 8x8"

    few = data.read("celeba", tfds_dir=folder, attribute="Bangs", limit=5)
    assert (few.x_train.shape, few.x_test.shape) == ((5, 218, 178, 3), (4, 218, 178, 3))
    np.testing.assert_array_equal(few.y_train, read.y_train[:5])
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("attribute", [None, "Smile"])
def test_read_of_celeba_of_tfds_needs_the_name_of_an_attribute(celeb_a, monkeypatch, attribute):
    monkeypatch.delenv("CATAPULT_DATA_DIR", raising=False)

    message = rf"^data.attribute={attribute!r}; allowed: 5_o_Clock_Shadow, .*, Smiling, .*Young$"
    with pytest.raises(ValueError, match=message):
        data.read("celeba", tfds_dir=celeb_a[0], attribute=attribute)


def test_read_of_digits():
    digits = data.read("digits")

    assert digits.x_train.shape == (1437, 8, 8, 1) and set(digits.y_train) == set(range(10))


def test_read_of_natural_patches_has_disjoint_splits():
    patches = data.read("natural_patches")

    assert patches.x_train.shape[1:] == (32, 32, 3) and set(patches.y_test) == {0, 1}
    hashes = lambda images: {hashlib.sha256(x.tobytes()).digest() for x in images}
    assert not hashes(patches.x_train) & hashes(patches.x_test)


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


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("cifar11", "cifar10"), ("MNIST", "mnist"), ("natural_patch", "natural_patches"), ("toys", "toy"), ("celebA", "celeba")],
)
@pytest.mark.parametrize("with_tfds", [True, False])
def test_read_of_an_unknown_name_has_the_nearest(tmp_path, monkeypatch, name, nearest, with_tfds):
    write_npz(tmp_path)
    if not with_tfds:
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)

    with pytest.raises(
        data.UnknownData, match=rf"^data.name='{name}'; allowed: a name that a source knows, such as '{nearest}' \(no file"
    ):
        data.read(name, directory=str(tmp_path))


@pytest.mark.parametrize("name", data.KNOWN)
def test_read_of_a_known_name_that_is_missing_is_unavailable(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)

    with pytest.raises(data.DataUnavailable) as raised:
        data.read(name, directory=str(tmp_path))

    assert not isinstance(raised.value, data.UnknownData)
