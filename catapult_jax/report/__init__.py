"""Pages of a run. Needs Jinja2 (``pip install catapult_jax[report]``)."""
