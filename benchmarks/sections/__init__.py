"""One module for each section of the benchmarks: ``COLUMNS`` of its table, and ``run(scale)``, which yields the rows."""
