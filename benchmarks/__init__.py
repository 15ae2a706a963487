"""Benchmarks: what the measurements cost, as ratios within one process."""
