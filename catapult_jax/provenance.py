"""Where numbers come from: versions, devices, settings of JAX, code and commit."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "neural-tangents",
    "xarray",
    "zarr",
    "tensorflow-datasets",
    "scipy",
    "scikit-learn",
    "matplotlib",
)

# Variables that change numbers. The cache of compiled programs does not.
_VARIABLES = re.compile(r"(JAX_(?!COMPILATION_CACHE|PERSISTENT_CACHE)|XLA_|LIBTPU_|NVIDIA_TF32)")

_JAX_CONFIG = (
    "enable_x64", "default_prng_impl", "default_matmul_precision", "threefry_partitionable", "random_seed_offset",
    "numpy_dtype_promotion", "numpy_rank_promotion", "default_dtype_bits", "disable_jit", "softmax_custom_jvp",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Versions, devices, variables and settings of JAX and XLA, a checksum of the code, and its commit if it is a checkout.

    Returns:
      Values for JSON, by name.

    >>> sorted(environment()["code"])
    ['catapult_jax', 'configs', 'experiments']
    """
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
        "openblas_num_threads": os.environ.get("OPENBLAS_NUM_THREADS", ""),
        "variables": {name: value for name, value in sorted(os.environ.items()) if _VARIABLES.match(name)},
        "jax_config": {name: getattr(jax.config, f"jax_{name}", None) for name in _JAX_CONFIG},
        "code": {name: _code(name) for name in ("catapult_jax", "experiments", "configs")},
        "packages": versions,
    }


def _code(package: str) -> str | None:
    """SHA-256 of the sources of a package; None if it is not imported."""
    module = sys.modules.get(package)
    if module is None or not module.__file__:
        return None
    folder, digest = Path(module.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


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
