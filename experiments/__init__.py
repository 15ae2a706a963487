"""Programs over the library: flags, files, pictures."""

import os
import tempfile

# LAPACK's own threads wait busily for each other and take the cores from XLA's. Read when LAPACK is loaded, so before any import.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Matplotlib keeps its list of fonts: not in the home directory, unless the user has named a place.
os.environ.setdefault("MPLCONFIGDIR", os.path.join(tempfile.gettempdir(), f"matplotlib-{os.getuid()}"))

# Sums in one order on a GPU as well, so that the same config gives the same bits.
if "xla_gpu_deterministic_ops" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
