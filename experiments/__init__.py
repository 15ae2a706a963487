"""Programs over the library: flags, files, pictures."""

import atexit
import os
import shutil
import stat
import tempfile

# LAPACK's own threads wait busily for each other and take the cores from XLA's. Read when LAPACK is loaded, so before any import.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _private_folder(path: str) -> str:
    """A folder of this user alone: ``path``, or a new one for this process where somebody else has made or could have filled that."""
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        found = os.lstat(path)
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
            os.chmod(path, 0o700)
            return path
    except OSError:
        pass
    own = tempfile.mkdtemp(prefix="matplotlib-")
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return own


# Matplotlib keeps its list of fonts: not in the home directory, unless the user has named a place.
if "MPLCONFIGDIR" not in os.environ:
    os.environ["MPLCONFIGDIR"] = _private_folder(os.path.join(tempfile.gettempdir(), f"matplotlib-{os.getuid()}"))

# Sums in one order on a GPU as well, so that the same config gives the same bits.
if "xla_gpu_deterministic_ops" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
