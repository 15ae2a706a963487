"""A run on disk: labelled arrays over (member, step), and small files that are written whole and have a checksum."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import xarray
    import zarr

_ARRAYS, _PROGRESS, _METADATA = "record.zarr", "progress.json", "zarr.json"
_CHUNK, _MOST_CHUNKS = 4096, 50  # steps in one file of an array; files of an array
WATCH = "watch.json"  # beside the record of a catapult_jax.Recorder: what its watch was told, and where it ran
LOSS_TOLERANCE = 0.05  # between the losses of a step and of its watch, relative; the rounding of bfloat16 is smaller
_EXTRA_AXES = {"eigenvalues": ("eigenvalue",), "eigenvalue_bounds": ("eigenvalue",)} | dict.fromkeys(
    ("loss_modes", "loss_train_modes", "loss_probe_modes"), ("mode",)
)
# Names that a series of single numbers can't have: arrays with one more axis, and the file of the whole record.
RESERVED = (*_EXTRA_AXES, "zarr.json")
UNITS = {
    "lr_over_critical": "1",
    "lr": "learning rate",
    "critical_lr": "learning rate",
    "lambda_max": "1 / learning rate",
    "eigenvalues": "1 / learning rate",
    "eigenvalue_bounds": "1 / learning rate",
}


class DamagedFile(ValueError):
    """A file of a run is not as the run wrote it. The message is one line that names the file."""


class Damage(NamedTuple):
    """A damaged or missing file of a record."""

    file: str  # below the directory of the run
    array: str | None  # None: progress.json, or the metadata of the whole record
    first_step: int  # first step whose numbers are lost
    end_step: int  # the step after the last one whose values are lost; 0: none are lost
    reason: str  # in words

    def __str__(self) -> str:
        steps = f", steps {self.first_step} to {self.end_step - 1}" if self.end_step else ""
        return f"{self.file} is damaged: {self.reason}" + (f" (array {self.array}{steps})" if self.array else "")


def create(
    run_dir: str | Path,
    *,
    members: dict[str, np.ndarray],
    steps: int,
    shapes: dict[str, Any],
    about: dict[str, Any],
    chunk: int | None = None,
) -> None:
    """Creates the empty arrays of a run: NaN (-1 for integers, False for booleans) where nothing is written yet.

    Each chunk ends with its CRC-32C. All chunks up to the last written step are on disk, so that a missing chunk is damage.

    Args:
      run_dir: directory of the run.
      members: coordinates of the member axis, each ``(m,)``.
      steps: length of the step axis.
      shapes: name -> anything with ``shape`` (m, n, ...) and ``dtype``.
      about: attributes of the whole record: what the run is, on which data.
      chunk: steps in one file; None: 4096, or more in a long run, so that no array has more than 50 files.
    """
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec

    count = len(next(iter(members.values())))
    chunk = chunk or max(_CHUNK, -(-steps // _MOST_CHUNKS))
    _write_progress(run_dir, 0, over=False, metadata=None)  # first, so that an older record there no longer counts
    Path(run_dir).mkdir(parents=True, exist_ok=True)
    group = zarr.open_group(str(Path(run_dir, _ARRAYS)), mode="w", zarr_format=3)

    def add(name, shape, dtype, dims, fill, chunks, **attributes):
        compressors = [ZstdCodec(), Crc32cCodec()]
        return group.create_array(
            name, shape=shape, dtype=dtype, chunks=chunks, dimension_names=dims, fill_value=fill, attributes=attributes,
            compressors=compressors,
        )  # fmt: skip

    add("step", (steps,), "int64", ("step",), 0, (steps,))
    for name, values in members.items():
        add(name, (count,), values.dtype, ("member",), 0, (count,))
    for name, value in shapes.items():
        dtype, rest = np.dtype(value.dtype), tuple(value.shape[2:])
        fill = False if dtype.kind == "b" else -1 if np.issubdtype(dtype, np.integer) else np.nan
        prefix = next((p for p in UNITS if name.startswith(p)), None)
        units = UNITS[prefix] if prefix else "1"
        dims = ("member", "step", *_EXTRA_AXES.get(name, ()))
        add(name, (count, steps, *rest), dtype, dims, fill, (count, min(chunk, steps), *rest), units=units)
    _write_about(run_dir, members, about)
    _write_coordinates(run_dir, members)
    _write_progress(run_dir, 0, over=False, metadata=_digest_of(Path(run_dir, _ARRAYS, _METADATA)))


def _write_about(run_dir: str | Path, members, about: dict[str, Any]) -> None:
    """Attributes of the whole record, and the metadata of all arrays beside them, in the one file that is read."""
    import zarr
    from zarr.errors import ZarrUserWarning

    path = str(Path(run_dir, _ARRAYS))
    # xarray takes the arrays named under "coordinates" as coordinates.
    zarr.open_group(path, mode="r+", zarr_format=3, use_consolidated=False).attrs.update(
        about | {"coordinates": " ".join(members)}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)  # it warns that other software may not read this
        zarr.consolidate_metadata(path)


def _write_coordinates(run_dir: str | Path, members: dict[str, np.ndarray]) -> None:
    group = _open(run_dir)
    _put(group, {"step": np.arange(_array(group, "step").shape[0])} | members, slice(None))


def _open(run_dir: str | Path):
    import zarr

    return zarr.open_group(str(Path(run_dir, _ARRAYS)), mode="r+", zarr_format=3)


def _array(group, name: str) -> zarr.Array:
    """The array of that name; :func:`create` makes no groups below the record."""
    return group[name]


def _put(group, arrays: dict[str, np.ndarray], *where: slice) -> None:
    for name, values in arrays.items():  # a chunk of fill values is written too, since a missing chunk is damage
        _array(group, name).with_config({"write_empty_chunks": True})[where] = values


def write(run_dir: str | Path, start: int, measured: dict[str, np.ndarray], *, over: bool = False) -> None:
    """Writes measurements from step ``start`` on. Writing the same region again changes nothing.

    A kill at any moment leaves the steps before ``start`` as they were: each file is replaced by a whole one.

    Args:
      run_dir: directory of the run.
      start: first step of the measurements.
      measured: name -> values ``(m, n, ...)`` of n steps.
      over: True: the run ends here, before its last step.

    Raises:
      ValueError: an array of another shape than the record has for these steps.
    """
    arrays, end = _open(run_dir), start + next(iter(measured.values())).shape[1]
    for name, values in measured.items():
        whole = _array(arrays, name).shape
        members, steps = whole[:2]
        if values.shape != (members, end - start, *whole[2:]) or not 0 <= start <= end <= steps:
            raise ValueError(
                f"{name} has shape {values.shape} from step {start} on; allowed: {members} members, and at most {steps} steps in all"
            )
    _put(arrays, measured, slice(None), slice(start, end))
    _write_progress(run_dir, end, over=over, metadata=_progress(run_dir).get("metadata"))


def _write_progress(run_dir: str | Path, steps_done: int, *, over: bool, metadata: str | None) -> None:
    write_json(Path(run_dir, _PROGRESS), {"steps_done": steps_done, "over": over, "metadata": metadata})


def _progress(run_dir: str | Path) -> dict[str, Any]:
    path = Path(run_dir, _PROGRESS)
    progress = read_json(path)
    if not isinstance(progress.get("steps_done"), int) or not isinstance(progress.get("over"), bool):
        raise DamagedFile(f"{path} is damaged: steps_done or over is missing")
    return progress


def steps_done(run_dir: str | Path) -> int:
    """Number of steps on record; 0 without a record.

    Args:
      run_dir: directory of the run.

    Returns:
      Number of steps.

    Raises:
      DamagedFile: progress.json is not as it was written.
    """
    import zarr

    if Path(run_dir, _PROGRESS).is_file():
        return _progress(run_dir)["steps_done"]
    # A record of an earlier version has the number among its attributes.
    path = Path(run_dir, _ARRAYS)
    if not path.is_dir():
        return 0
    try:
        return int(str(zarr.open_group(str(path), mode="r", zarr_format=3).attrs["steps_done"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{Path(run_dir, _PROGRESS)} is damaged: it is missing") from error


def is_over(run_dir: str | Path) -> bool:
    """Whether the run ended with the last step on record, before the last step of its config.

    Args:
      run_dir: directory of the run.

    Returns:
      False without a record.
    """
    return Path(run_dir, _PROGRESS).is_file() and _progress(run_dir)["over"]


def open_record(run_dir: str | Path) -> xarray.Dataset:
    """Opens the arrays of a run as an xarray Dataset over (member, step), up to the last written step.

    Args:
      run_dir: directory of the run.

    Returns:
      The dataset; numbers are read from disk when they are used.

    Raises:
      FileNotFoundError: there is no record.
      DamagedFile: a file of the record is missing or damaged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     loss = {"loss_train": np.array([[4.0, 1.0, 0.5]], np.float32)}  # one member, three steps
    ...     create(folder, members={"seed": np.array([0])}, steps=3, shapes=loss, about={"title": "mine"})
    ...     write(folder, 0, loss)
    ...     open_record(folder)["loss_train"].values.tolist()
    [[4.0, 1.0, 0.5]]
    """
    import xarray

    run_dir = os.path.expanduser(run_dir)
    path = Path(run_dir, _ARRAYS)
    if not path.is_dir():
        raise FileNotFoundError(f"run_dir={str(run_dir)!r} holds no {_ARRAYS}; allowed: the directory of a run")
    damaged = damage(run_dir)
    if damaged:
        more = f", and {len(damaged) - 1} other files" if len(damaged) > 1 else ""
        raise DamagedFile(f"{Path(run_dir, str(damaged[0]))}{more}; the command of the run makes it again")
    done = steps_done(run_dir)
    try:
        dataset = xarray.open_zarr(path, consolidated=None, chunks=None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{path} is damaged: it can't be read ({type(error).__name__})") from error
    return dataset.isel(step=slice(0, done))


def damage(run_dir: str | Path) -> list[Damage]:
    """Missing and damaged files of a record, by their checksums. Reads every file once.

    A record of an earlier version has no checksums, so its files are not checked.

    Args:
      run_dir: directory of the run.

    Returns:
      One entry for each file.
    """
    try:
        done, metadata = steps_done(run_dir), _progress(run_dir).get("metadata") if Path(run_dir, _PROGRESS).is_file() else None
    except DamagedFile as error:
        done, metadata = 0, ""
        damaged = [Damage(_PROGRESS, None, 0, 0, str(error).partition(" is damaged: ")[2])]
    else:
        damaged = []
        if metadata is None or not done:
            return damaged
    root = Path(run_dir, _ARRAYS, _METADATA)
    try:
        if metadata and metadata != _digest_of(root):
            raise ValueError("its checksum differs")
        arrays = json.loads(root.read_text("utf-8"))["consolidated_metadata"]["metadata"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else "its checksum differs"
        return [*damaged, Damage(f"{_ARRAYS}/{_METADATA}", None, 0, 0, reason)]
    for name, about in sorted(arrays.items()):
        damaged += _damage_of_array(run_dir, name, about, done)
    return damaged


def _damage_of_array(run_dir: str | Path, name: str, about: dict, done: int) -> list[Damage]:
    import google_crc32c  # comes with zarr

    damaged = []
    file = f"{_ARRAYS}/{name}/{_METADATA}"
    try:
        if json.loads(Path(run_dir, file).read_text("utf-8")) != about:
            damaged.append(Damage(file, name, 0, 0, "it differs from what was written"))
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        damaged.append(Damage(file, name, 0, 0, "it is missing" if missing else "it can't be read"))
    dims, chunks = about["dimension_names"], about["chunk_grid"]["configuration"]["chunk_shape"]
    axis = dims.index("step") if dims[0] == "member" and "step" in dims else None
    for i in range(-(-done // chunks[axis])) if axis is not None else (0,):
        index = [i if a == axis else 0 for a in range(len(dims))]
        file = "/".join([_ARRAYS, name, "c", *map(str, index)])
        try:
            content = Path(run_dir, file).read_bytes()
            whole = len(content) > 4 and google_crc32c.value(content[:-4]) == int.from_bytes(content[-4:], "little")
            reason = "its checksum differs"
        except OSError as error:
            whole, reason = False, "it is missing" if isinstance(error, FileNotFoundError) else "it can't be read"
        if not whole:
            first, end = (i * chunks[axis], min((i + 1) * chunks[axis], done)) if axis is not None else (0, 0)
            damaged.append(Damage(file, name, first, end, reason))
    return damaged


def repair(run_dir: str | Path, *, members: dict[str, np.ndarray], about: dict[str, str], steps: int) -> list[Damage] | None:
    """Repairs what needs no training (progress.json, metadata, coordinates), and shortens the record to ``steps`` steps.

    Args:
      run_dir: directory of the run.
      members: as given to :func:`create`.
      about: as given to :func:`create`.
      steps: number of steps that are certainly on record: the step of a checkpoint.

    Returns:
      The chunks that must be made again, see :func:`write_again`; None: the metadata can't be restored.
    """
    root = Path(run_dir, _ARRAYS, _METADATA)
    try:
        progress = _progress(run_dir)
    except (DamagedFile, FileNotFoundError):
        progress = {"steps_done": steps, "over": False, "metadata": None}
    try:
        if progress["metadata"] not in (None, _digest_of(root)):
            raise ValueError("its checksum differs")
        arrays = json.loads(root.read_text("utf-8"))["consolidated_metadata"]["metadata"]
    except (OSError, ValueError, KeyError, TypeError):
        arrays = {}
    try:
        for name, metadata in arrays.items():
            file = Path(run_dir, _ARRAYS, name, _METADATA)
            file.parent.mkdir(exist_ok=True)
            write_text(file, json.dumps(metadata, indent=2))
        if not arrays:  # each array has its own
            write_json(root, {"zarr_format": 3, "node_type": "group", "attributes": {}}, checksum=False)
            _write_about(run_dir, members, about)
            if progress["metadata"] not in (None, _digest_of(root)):
                return None
        _write_coordinates(run_dir, members)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    progress["metadata"] = _digest_of(root)
    _write_progress(run_dir, **progress)
    damaged = [d for d in damage(run_dir) if d.end_step]
    for later in [d for d in damaged if d.first_step >= steps]:
        Path(run_dir, later.file).unlink(missing_ok=True)
    if progress["steps_done"] > steps:
        _write_progress(run_dir, steps, over=False, metadata=progress["metadata"])
    return [d._replace(end_step=min(d.end_step, steps)) for d in damaged if d.first_step < steps]


def write_again(run_dir: str | Path, start: int, measured: dict[str, np.ndarray], damaged: list[Damage]) -> str | None:
    """Writes damaged chunks again, from measurements that were made again.

    Args:
      run_dir: directory of the run.
      start: first step of the measurements.
      measured: name -> values ``(m, n, ...)`` of n steps.
      damaged: from :func:`repair`.

    Returns:
      None; or the name of an undamaged array whose numbers differ from the measurements, and then nothing is changed.
    """
    group = _open(run_dir)
    end = start + next(iter(measured.values())).shape[1]
    arrays = {d.array for d in damaged}
    for name, values in measured.items():
        if (
            name not in arrays
            and np.asarray(_array(group, name)[:, start:end]).tobytes() != np.ascontiguousarray(values).tobytes()
        ):
            return name
    for d in damaged:
        Path(run_dir, d.file).unlink(missing_ok=True)
    _put(group, {name: values for name, values in measured.items() if name in arrays}, slice(None), slice(start, end))
    return None


def end(run_dir: str | Path) -> None:
    """Notes that the run ended with the last step on record.

    Args:
      run_dir: directory of the run.
    """
    progress = _progress(run_dir)
    _write_progress(run_dir, progress["steps_done"], over=True, metadata=progress["metadata"])


def write_json(path: str | Path, value: Any, *, checksum: bool = True) -> None:
    """Writes JSON so that a reader sees the old file or the new file, never half of it.

    Args:
      path: of the file.
      value: fields; a number that is not finite becomes null.
      checksum: True adds the field ``sha256``, the checksum of all other fields, see :func:`read_json`.
    """
    value = json.loads(json.dumps(_finite(value), allow_nan=False))
    if checksum:
        value.pop("sha256", None)
        value["sha256"] = _digest(value)
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """The fields of a JSON file of a run, without its checksum. A file of an earlier version has no checksum.

    Args:
      path: of the file.

    Returns:
      The fields.

    Raises:
      FileNotFoundError: there is no such file.
      DamagedFile: the file is not as it was written.
    """
    try:
        value = json.loads(Path(path).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged: it can't be read ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(value, dict):
        raise DamagedFile(f"{path} is damaged: it holds no fields")
    stored = value.pop("sha256", None)
    # If only the name of the checksum is damaged, the file still has a checksum.
    if stored is None and not any(isinstance(field, str) and len(field) == 64 for field in value.values()):
        return value
    if stored != _digest(value):
        raise DamagedFile(f"{path} is damaged: its checksum differs")
    return value


def _digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever its layout in the file."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_json_lines(path: str | Path, values: list[dict]) -> None:
    """Writes JSON, one value on a line, and beside it ``PATH.sha256`` for ``sha256sum --check``.

    Args:
      path: of the file.
      values: one for each line; a number that is not finite becomes null.
    """
    text = "".join(json.dumps(_finite(value), allow_nan=False) + "\n" for value in values)
    beside = Path(f"{path}.sha256")
    beside.unlink(missing_ok=True)  # so that a kill between the two leaves no checksum rather than a wrong one
    write_text(path, text)
    write_text(beside, f"{hashlib.sha256(text.encode()).hexdigest()}  {Path(path).name}\n")


def read_json_lines(path: str | Path) -> list[dict]:
    """The values of a file that :func:`write_json_lines` wrote.

    Args:
      path: of the file.

    Returns:
      One value for each line.

    Raises:
      DamagedFile: the file is not as it was written.
    """
    beside = Path(f"{path}.sha256")
    if beside.is_file() and beside.read_bytes()[:64] != _digest_of(Path(path)).encode():
        raise DamagedFile(f"{path} is damaged: its checksum differs; python -m experiments.report makes it again")
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def _finite(value: Any) -> Any:
    """The value with None for each number that is not finite: JSON has no word for it."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: str | Path, text: str) -> None:
    """Writes a file in UTF-8 so that a reader sees the old file or the new file, never half of it.

    Args:
      path: of the file.
      text: its content.
    """
    write_bytes(path, text.encode(errors="replace"))  # a name of a file may hold bytes that are no text


def write_bytes(path: str | Path, content: bytes | memoryview) -> None:
    """Writes a file so that a reader sees the old file or the new file, never half of it.

    Args:
      path: of the file.
      content: its content.
    """
    half = Path(f"{path}.tmp")
    half.write_bytes(content)
    os.replace(half, path)
