"""A preconditioner that is no diagonal: the map ``u -> P^(-1) u``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax

if TYPE_CHECKING:
    from jaxtyping import PyTree


@functools.partial(jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["function"])
@dataclass(frozen=True)
class InverseMap:
    """``P^(-1)`` of an optimizer whose ``P`` is no diagonal, such as Shampoo or SOAP: symmetric, positive, linear.

    Matrix-free searches take it in place of a diagonal, since ``J P^(-1) J^T`` needs no root of ``P``.

    >>> import jax.numpy as jnp
    >>> inverse = InverseMap(lambda Q, u: Q @ (u / jnp.array([1.0, 2.0]) @ Q).T, jnp.eye(2))
    >>> inverse(jnp.ones(2)).tolist()
    [1.0, 0.5]
    """

    function: Callable[
        [PyTree, PyTree], PyTree
    ]  # (arrays, u) -> P^(-1) u, a tree like u; module-level, so that programs are found again
    arrays: PyTree  # of the optimizer's state

    def __call__(self, u: PyTree) -> PyTree:
        """``P^(-1) u``.

        Args:
          u: a tree like the parameters.

        Returns:
          A tree like ``u``.
        """
        return self.function(self.arrays, u)
