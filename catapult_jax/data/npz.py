"""Read the arrays of an ``.npz`` file that is not trusted."""

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

# Exceptions of zipfile, its decompressors and NumPy's reader for malformed bytes.
_UNREADABLE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, SyntaxError, OSError, EOFError, MemoryError, RuntimeError,
    LookupError, ArithmeticError, TypeError, AttributeError, ValueError,
)  # fmt: skip


def npz_arrays(file: str | Path | io.BytesIO, wanted: Container[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of a file by name.

    Sizes and types are checked before any memory is allocated for an array. Nothing is unpickled.

    Args:
      file: path, or the bytes of a file.
      wanted: names of the arrays to read, where the file has them; None: all.

    Returns:
      The arrays.

    Raises:
      ValueError: the file has another format, or its arrays are larger than the memory of the machine.

    >>> file = io.BytesIO()
    >>> np.savez(file, a=np.arange(2), b=np.ones(3))
    >>> npz_arrays(file, ("a",))
    {'a': array([0, 1])}
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            entries = {name: entry for name, entry in members.items() if wanted is None or name in wanted}
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            if (size := sum(entry.file_size for entry in entries.values())) > memory:
                raise ValueError(f"its arrays claim {size} bytes, this machine has {memory}")
            for entry in entries.values():
                _check_header(archive, entry)
            arrays = {}
            for name, entry in entries.items():
                with archive.open(entry) as stream:
                    arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
            return arrays
    except _UNREADABLE as error:
        name = "it" if isinstance(file, io.BytesIO) else str(file)
        raise ValueError(f"{name} can't be read ({error or type(error).__name__})") from error


def _check_header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Refuse an array of objects, or one whose shape does not agree with its size."""
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        if dtype.hasobject:
            raise ValueError(f"{entry.filename} holds Python objects")
        if stream.tell() + math.prod(shape) * dtype.itemsize != entry.file_size:
            raise ValueError(f"{entry.filename} claims shape {shape} of {dtype}, which is not its size")
