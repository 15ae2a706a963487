"""The reader of .npz files that are not trusted: it gives the arrays, or refuses the file in one line."""

import io
import zipfile

import numpy as np
import pytest

from catapult_jax.data.npz import npz_arrays


def test_npz_arrays_are_those_that_were_saved(tmp_path):
    arrays = {"x": np.arange(6, dtype=np.uint8).reshape(2, 3), "names": np.array(["a", "bc"]), "scalar": np.float64(0.5)}
    np.savez_compressed(tmp_path / "file.npz", **arrays)

    read = npz_arrays(tmp_path / "file.npz")

    assert set(read) == set(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == np.asarray(array).dtype
        np.testing.assert_array_equal(read[name], array)


def test_npz_arrays_reads_the_wanted_ones_of_bytes():
    file = io.BytesIO()
    np.savez(file, x=np.ones(2), y=np.zeros(2), objects=np.array([{}]))

    assert set(npz_arrays(file, ("x", "z"))) == {"x"}


@pytest.mark.parametrize("size", [0, 10, 100, 200])
def test_npz_arrays_refuses_a_truncated_file(tmp_path, size):
    file = tmp_path / "file.npz"
    np.savez(file, x=np.arange(10))
    file.write_bytes(file.read_bytes()[:size])

    with pytest.raises(ValueError, match=r"file.npz can't be read \(") as raised:
        npz_arrays(file)
    assert "\n" not in str(raised.value)


def test_npz_arrays_refuses_python_objects():
    file = io.BytesIO()
    np.savez(file, x=np.array([{}]))

    with pytest.raises(ValueError, match=r"it can't be read .*x.npy holds Python objects"):
        npz_arrays(file)


def test_npz_arrays_refuses_a_shape_that_is_not_the_size():
    """A header that claims more than its file has: no memory is taken for it."""
    array, file = io.BytesIO(), io.BytesIO()
    np.save(array, np.zeros(4))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", array.getvalue().replace(b"(4,)", b"(9,)"))

    with pytest.raises(ValueError, match=r"x.npy claims shape \(9,\) of float64, which is not its size"):
        npz_arrays(file)
