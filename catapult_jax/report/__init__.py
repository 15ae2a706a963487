"""Figures, tables and one-file pages from a record. Needs ``pip install catapult_jax[report]``; the interactive page: ``[interactive]``."""

from catapult_jax.report.build import build_report
from catapult_jax.report.interactive import build_interactive
from catapult_jax.report.members import Settings

__all__ = ["Settings", "build_interactive", "build_report"]
