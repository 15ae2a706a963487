"""Benchmarks: what the measurements cost, as ratios within one process."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in experiments/__init__.py
