"""The programs: flags and wiring over the library."""

import atexit
import os
import shutil
import stat
import tempfile

# LAPACK's own threads wait busily for each other and take the cores from XLA. LAPACK reads this when it is loaded, so set it first.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _private_folder(path: str) -> str:
    """Create ``path`` for this user; where somebody else owns it or can write to it, return a temporary folder of this process."""
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022:
            os.chmod(path, 0o700)
            return path
    except OSError:
        pass
    temporary = tempfile.mkdtemp(prefix="matplotlib-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return temporary


# Matplotlib caches its list of fonts. Keep that cache out of the home directory, unless the user has set a place.
if "MPLCONFIGDIR" not in os.environ:
    os.environ["MPLCONFIGDIR"] = _private_folder(os.path.join(tempfile.gettempdir(), f"matplotlib-{os.getuid()}"))

# A fixed order of sums on a GPU too, so that the same config gives the same bits.
if "xla_gpu_deterministic_ops" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
