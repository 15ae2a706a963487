"""A run on disk: labelled arrays over (member, step), events as JSON lines, configuration and environment."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    import xarray

_ARRAYS, _PROGRESS = "record.zarr", "progress.json"
_EXTRA_AXES = {"eigenvalues": ("eigenvalue",), "eigenvalue_bounds": ("eigenvalue",)}
UNITS = {
    "lr": "learning rate",
    "critical_lr": "learning rate",
    "lambda_max": "1 / learning rate",
    "eigenvalues": "1 / learning rate",
    "eigenvalue_bounds": "1 / learning rate",
}
_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "neural-tangents",
    "xarray",
    "zarr",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "scipy",
    "scikit-learn",
    "matplotlib",
)


def create(
    run_dir: str | Path,
    *,
    members: dict[str, np.ndarray],
    steps: int,
    shapes: dict[str, Any],
    chunk: int,
    about: dict[str, str],
) -> None:
    """Makes the arrays of a run, empty: NaN (-1 for whole numbers) where nothing is written yet.

    Args:
      run_dir: directory of the run.
      members: coordinates of the member axis, each ``(m,)``.
      steps: length of the step axis.
      shapes: name -> anything with ``shape`` (m, n, ...) and ``dtype``.
      chunk: steps in one chunk on disk.
      about: attributes of the whole: what the run is, on which data.
    """
    import zarr

    count = len(next(iter(members.values())))
    write_json(Path(run_dir, _PROGRESS), {"steps_done": 0, "over": False})  # first: what may be there already is no more
    group = zarr.open_group(str(Path(run_dir, _ARRAYS)), mode="w", zarr_format=3)

    def add(name, shape, dtype, dims, fill, chunks, **attributes):
        array = group.create_array(name, shape=shape, dtype=dtype, chunks=chunks, dimension_names=dims, fill_value=fill)
        array.attrs.update(attributes)
        return array

    add("step", (steps,), "int64", ("step",), 0, (steps,))[:] = np.arange(steps)
    for name, values in members.items():
        add(name, (count,), values.dtype, ("member",), 0, (count,))[:] = values
    for name, value in shapes.items():
        dtype, rest = np.dtype(value.dtype), tuple(value.shape[2:])
        fill = False if dtype.kind == "b" else -1 if np.issubdtype(dtype, np.integer) else np.nan
        prefix = next((p for p in UNITS if name.startswith(p)), None)
        units = UNITS[prefix] if prefix else "1"
        dims = ("member", "step", *_EXTRA_AXES.get(name, ()))
        add(name, (count, steps, *rest), dtype, dims, fill, (count, min(chunk, steps), *rest), units=units)
    # xarray takes the arrays named under "coordinates" as such.
    group.attrs.update(about | {"coordinates": " ".join(members)})


def write(run_dir: str | Path, start: int, measured: dict[str, np.ndarray], *, over: bool = False) -> None:
    """Writes measurements ``(m, n, ...)`` from step ``start`` on; writing the same region again changes nothing.

    ``over``: the run ends here, before its last step.
    """
    import zarr

    group = zarr.open_group(str(Path(run_dir, _ARRAYS)), mode="r+", zarr_format=3)
    end = start + next(iter(measured.values())).shape[1]
    for name, values in measured.items():
        group[name][:, start:end] = values
    write_json(Path(run_dir, _PROGRESS), {"steps_done": end, "over": over})


def steps_done(run_dir: str | Path) -> int:
    """Steps that are on record; 0 where there is no record."""
    import zarr

    path = Path(run_dir, _PROGRESS)
    if path.is_file():
        return json.loads(path.read_text())["steps_done"]
    # A record of an earlier version has it among its attributes.
    path = Path(run_dir, _ARRAYS)
    return zarr.open_group(str(path), mode="r", zarr_format=3).attrs.get("steps_done", 0) if path.is_dir() else 0


def is_over(run_dir: str | Path) -> bool:
    """Whether the run ended with the last step that is on record, before the last one of its config."""
    path = Path(run_dir, _PROGRESS)
    return path.is_file() and json.loads(path.read_text()).get("over", False)


def open_record(run_dir: str | Path) -> xarray.Dataset:
    """Opens the arrays of a run as an xarray Dataset over (member, step), up to the last step that was written.

    Raises:
      FileNotFoundError: no record there.
    """
    import xarray

    path = Path(run_dir, _ARRAYS)
    if not path.is_dir():
        raise FileNotFoundError(f"run_dir={str(run_dir)!r} holds no {_ARRAYS}; allowed: the directory of a run")
    dataset = xarray.open_zarr(path, consolidated=False, chunks=None)
    return dataset.isel(step=slice(0, steps_done(run_dir)))


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never half of it."""
    write_text(path, json.dumps(_finite(value), indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_json_lines(path: str | Path, values: list[dict]) -> None:
    write_text(path, "".join(json.dumps(_finite(value), allow_nan=False) + "\n" for value in values))


def read_json_lines(path: str | Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def _finite(value: Any) -> Any:
    """JSON has no word for a number that is not finite: null."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: str | Path, text: str) -> None:
    """Writes a file so that a reader sees the old one or the new one, never half of it."""
    half = Path(f"{path}.tmp")
    half.write_text(text)
    os.replace(half, path)


def environment() -> dict[str, Any]:
    """Versions, devices and the package's commit, where it is a checkout."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    from catapult_jax import __version__

    return {
        "catapult_jax": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "openblas_num_threads": os.environ.get("OPENBLAS_NUM_THREADS", ""),
        "packages": versions,
    }


def _commit() -> str | None:
    here = Path(__file__).resolve().parent

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != here.parent:
            return None  # installed somewhere inside another repository
        return git("rev-parse", "HEAD") + (" with uncommitted changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
