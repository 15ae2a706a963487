"""Data sets from .npz files, TFDS, installed packages and synthetic targets, behind one interface."""

from catapult_jax.data.preparation import (
    SCALINGS,
    TARGET_ENCODINGS,
    TARGET_ENCODINGS_OF_LOSS,
    Data,
    by_member,
    in_float64,
    most_examples,
    prepare,
)
from catapult_jax.data.sources import EMBEDDED, KNOWN, Arrays, DataUnavailable, UnknownData, read
from catapult_jax.data.targets import TARGETS, synthetic, target_function

__all__ = [
    "EMBEDDED",
    "KNOWN",
    "SCALINGS",
    "TARGETS",
    "TARGET_ENCODINGS",
    "TARGET_ENCODINGS_OF_LOSS",
    "Arrays",
    "Data",
    "DataUnavailable",
    "UnknownData",
    "by_member",
    "in_float64",
    "most_examples",
    "prepare",
    "read",
    "synthetic",
    "target_function",
]
