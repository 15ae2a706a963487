"""Programs over the library: flags, files, pictures."""

import os

# LAPACK's own threads wait busily for each other and take the cores from XLA's. Read when LAPACK is loaded, so before any import.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Sums in one order on a GPU as well, so that the same config gives the same bits.
if "xla_gpu_deterministic_ops" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
