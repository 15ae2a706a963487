"""Inner products of per-example gradients, against gradients in float64."""

import jax
import numpy as np
import pytest

from catapult_jax import CNN, tangent_kernel
from catapult_jax.tangent import layer_gram
from catapult_jax.testing import explicit_kernel, relative_error
from tests.zoo import QUICK, build


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize(
    "shape, expected",
    [
        ({"r": 1, "p": 30, "g": 1, "m": 2, "c": 3}, "gradients"),
        ({"r": 2, "p": 30, "g": 2, "m": 2, "c": 3}, "gradients"),
        ({"r": 1, "p": 2, "g": 1, "m": 60, "c": 50}, "outer first"),
        ({"r": 2, "p": 2, "g": 2, "m": 60, "c": 90}, "outer first"),
        ({"r": 9, "p": 8, "g": 1, "m": 60, "c": 10}, "outer last"),
        ({"r": 9, "p": 8, "g": 2, "m": 60, "c": 10}, "outer last"),
        ({"r": 2, "p": 1, "g": 1, "m": 5, "c": 3}, "product of two kernels"),
    ],
    ids=str,
)
def test_weight_gram_orders(monkeypatch, shape, expected, same):
    """Each shape takes the order that is cheapest for it, also with so little memory that there are many strips."""
    r, p, g, m, c = (shape[name] for name in "rpgmc")
    a, b = 5, 5 if same else 4
    keys = jax.random.split(jax.random.key(0), 4)
    left = jax.random.normal(keys[0], (a, p, g, m)), jax.random.normal(keys[1], (a, r, p, g, c))
    right = left if same else (jax.random.normal(keys[2], (b, p, g, m)), jax.random.normal(keys[3], (b, r, p, g, c)))
    orders, by_gradients, by_pairs = [], layer_gram.gram_of_gradients, layer_gram._by_pairs
    monkeypatch.setattr(
        layer_gram, "gram_of_gradients", lambda *args, **kw: orders.append("gradients") or by_gradients(*args, **kw)
    )
    pairs = lambda *args, **kw: orders.append("outer first" if kw["outer_first"] else "outer last") or by_pairs(*args, **kw)
    monkeypatch.setattr(layer_gram, "_by_pairs", pairs)
    gradients = lambda rows, d: np.einsum("ipgm,iopgc->iogmc", *(np.asarray(v, np.float64) for v in (rows, d)))
    oracle = np.einsum("iogmc,jrgmc->iojr", gradients(*left), gradients(*right)).reshape(a * r, b * r)

    for room in (layer_gram.HELD_NUMBERS, 2000) if same else (layer_gram.HELD_NUMBERS,):
        monkeypatch.setattr(layer_gram, "HELD_NUMBERS", room)
        gram = lambda left, right: layer_gram.weight_gram(left, left if same else right, lambda rows: rows, same=same)
        kernel = jax.jit(gram, compiler_options=QUICK)(left, right)
        assert relative_error(kernel, oracle) <= 1e-5

    assert set(orders) == {expected} - {"product of two kernels"}


def test_weight_gram_in_slices(monkeypatch):
    apply_fn, params, x = build("cnn strided, average, outputs")
    monkeypatch.setattr(layer_gram, "HELD_NUMBERS", 200)

    kernel = jax.jit(lambda p, x: tangent_kernel(apply_fn, p, x), compiler_options=QUICK)(params, x)

    assert relative_error(kernel, explicit_kernel(apply_fn, params, x)) <= 1e-5


def test_weight_gram_by_pixels(monkeypatch):
    """A wide layer on a small image, for which the sum over pairs of pixels is cheapest."""
    model = CNN(depth=3, width=96)
    x = jax.random.normal(jax.random.key(0), (12, 3, 3, 8))
    params = model.init(jax.random.key(1), x)
    by_pixels, by_pairs = [], layer_gram._by_pairs

    def spy(left, right, *, rows_of, products, outer_first):
        by_pixels.append(products is not None and products(left[0], right[0]) is not None)
        return by_pairs(left, right, rows_of=rows_of, products=products, outer_first=outer_first)

    monkeypatch.setattr(layer_gram, "_by_pairs", spy)

    kernel = jax.jit(lambda p, x: tangent_kernel(model.apply, p, x), compiler_options=QUICK)(params, x)

    assert relative_error(kernel, explicit_kernel(model.apply, params, x)) <= 1e-5
    assert by_pixels == [True] * 8  # two layers, four strips
