"""Programs over the library: flags, files, pictures."""

import os

# LAPACK's own threads wait busily for each other and take the cores from XLA's. Read when LAPACK is loaded, so before any import.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
