"""Figures, tables and a one-file page from a record. Needs ``pip install catapult_jax[report]``."""

from catapult_jax.report.build import build_report
from catapult_jax.report.members import Settings

__all__ = ["Settings", "build_report"]
