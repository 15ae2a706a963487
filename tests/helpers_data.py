"""A small data set in a file, and settings to prepare it."""

import numpy as np

SMALL = dict(classes=(0, 1), train_size=6, test_size=4, scaling="none", target_encoding="integer")


def write_npz(folder, name="toy", **changed):
    """Write 40 training and 20 test images of four classes; ``changed`` replaces arrays, None leaves one out."""
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(1, 255, (40, 4, 4, 3), dtype=np.uint8),
        "y_train": np.arange(40, dtype=np.uint8) % 4,
        "x_test": rng.integers(1, 255, (20, 4, 4, 3), dtype=np.uint8),
        "y_test": np.arange(20, dtype=np.uint8) % 4,
    } | changed
    np.savez(folder / f"{name}.npz", **{k: v for k, v in arrays.items() if v is not None})
    return arrays
