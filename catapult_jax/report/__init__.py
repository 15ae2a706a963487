"""Figures, tables and one-file pages from a record. Needs ``pip install catapult_jax[report]``; the interactive page: ``[interactive]``."""

try:
    from catapult_jax.report.build import build_report
    from catapult_jax.report.interactive import build_interactive
    from catapult_jax.report.members import Settings
except ModuleNotFoundError as missing:
    words = f"the report needs {missing.name or missing}; allowed: catapult_jax installed with its extra 'report'"
    raise ModuleNotFoundError(words, name=missing.name) from missing

__all__ = ["Settings", "build_interactive", "build_report"]
