"""Arrays of an ``.npz`` file that may come from anywhere."""

from __future__ import annotations

import io
import lzma
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Container
from pathlib import Path

import numpy as np

# What zipfile, its decompressors and numpy's reader raise for bytes that are not what they should be.
_UNREADABLE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, SyntaxError, OSError, EOFError, MemoryError, RuntimeError,
    LookupError, ArithmeticError, TypeError, AttributeError, ValueError,
)  # fmt: skip


def npz_arrays(file: str | Path | io.BytesIO, wanted: Container[str] | None = None) -> dict[str, np.ndarray]:
    """The wanted arrays of a file, by default all. What they claim to be is checked before memory is taken for it; nothing is unpickled.

    Raises:
      ValueError: a file that is not of that form, or larger than the memory of the machine.
    """
    try:
        with zipfile.ZipFile(file) as stored:
            named = {entry.filename.removesuffix(".npy"): entry for entry in stored.infolist()}
            entries = {name: entry for name, entry in named.items() if wanted is None or name in wanted}
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            if (claimed := sum(entry.file_size for entry in entries.values())) > memory:
                raise ValueError(f"its arrays claim {claimed} bytes, this machine has {memory}")
            for entry in entries.values():
                with stored.open(entry) as array:
                    version = np.lib.format.read_magic(array)
                    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                    shape, _, dtype = header(array)
                    if dtype.hasobject:
                        raise ValueError(f"{entry.filename} holds Python objects")
                    if array.tell() + math.prod(shape) * dtype.itemsize != entry.file_size:
                        raise ValueError(f"{entry.filename} claims shape {shape} of {dtype}, which is not its size")
            found = {}
            for name, entry in entries.items():
                with stored.open(entry) as array:
                    found[name] = np.lib.format.read_array(array, allow_pickle=False)
            return found
    except _UNREADABLE as error:
        what = "it" if isinstance(file, io.BytesIO) else str(file)
        raise ValueError(f"{what} can't be read ({error or type(error).__name__})") from error
