"""The version of the package. This module imports nothing, so setuptools can read it."""

__version__ = "0.1.0"
