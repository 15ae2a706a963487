"""Counted operations against counts by hand."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import criteria_cost


def test_operations_of_products_loops_branches_and_eigenvalues():
    a, count = jnp.ones((4, 4)), criteria_cost.operations
    assert count(lambda a: a @ a, a) == 2 * 4**3
    assert count(jax.vmap(lambda row: jax.jit(lambda r: r @ row)(row)), a) == 2 * 4**2
    assert count(lambda a: jax.lax.fori_loop(0, 5, lambda _, b: a @ b, a), a) == 5 * 2 * 4**3
    assert count(lambda a: jax.lax.cond(a[0, 0] > 0, lambda a: a @ a @ a, lambda a: a @ a, a), a) == 2 * 2 * 4**3
    assert count(jnp.linalg.eigvalsh, a) == 9 * 4**3


def test_operations_refuses_a_loop_without_a_fixed_number_of_turns():
    loop = lambda a: jax.lax.while_loop(lambda b: b[0, 0] < 9, lambda b: b @ b, a)
    with pytest.raises(ValueError, match="a loop without a fixed number of turns; allowed"):
        criteria_cost.operations(loop, jnp.ones((2, 2)))


def test_costs_of_passes_of_the_batch_and_of_the_training_set():
    costs = criteria_cost.costs(preconditioned=False)
    assert 2 < costs["c3"] < 3 and 2 < costs["gradient of the batch"] < 3  # less than 3: the inputs have no derivative
    assert costs["c5"] == pytest.approx(4 * costs["c3"])  # four batches
    assert costs["c8, batch or another one"] == 12  # once before, 7 multiples, 4 halvings
    assert costs["c2"] > 6 * costs["c4"] > costs["c9"]
