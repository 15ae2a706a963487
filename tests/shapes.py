"""Checks the annotations of the public functions, shapes included, in every call that the tests make."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable

import jax
import jaxtyping
import numpy as np
import xarray
from beartype import beartype

# Arrays of NumPy are as good as those of JAX. Sequences of numbers are not checked.
_NAMES = {name: getattr(jaxtyping, name) for name in ("Bool", "Float", "Int", "PyTree")} | {
    "Array": jax.Array | np.ndarray,
    "xarray": xarray,
}


def checked(function: Callable) -> Callable:
    """The function, with its arguments and its result compared with its annotations.

    Arguments that do not fit must be refused by the function itself. If it takes them, that is a ``TypeCheckError``.
    """
    typed = _with_annotations(function)

    @functools.wraps(function)
    def call(*args, **kwargs):
        try:
            return typed(*args, **kwargs)
        except jaxtyping.TypeCheckError:
            function(*args, **kwargs)
            raise

    return call


def _with_annotations(function: Callable) -> Callable:
    """A copy of the function, whose annotations are types in place of text, checked at each call."""
    names = {**sys.modules[function.__module__].__dict__, **_NAMES}
    resolve = lambda note: eval(note, names) if isinstance(note, str) else note
    copy = type(function)(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__, copy.__doc__, copy.__module__ = function.__kwdefaults__, function.__doc__, function.__module__
    copy.__annotations__ = {name: resolve(note) for name, note in inspect.get_annotations(function).items()}
    return jaxtyping.jaxtyped(typechecker=beartype)(copy)


def check_public_functions(package) -> list[str]:
    """Puts :func:`checked` around each public function of a package; returns their names."""
    names = [name for name in package.__all__ if inspect.isfunction(getattr(package, name))]
    for name in names:
        function = getattr(package, name)
        module, wrapper = sys.modules[function.__module__], checked(function)
        setattr(package, name, wrapper)
        if getattr(module, name, None) is function:
            setattr(module, name, wrapper)
    return names
