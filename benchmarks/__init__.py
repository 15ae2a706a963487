"""Benchmarks of the cost of measurements; ratios are taken within one process."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in experiments/__init__.py
