"""Models: their sizes, and the NTK parameterisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from catapult_jax.models import CNN, FCN, ViT, WideResNet
from tests.zoo import QUICK


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "shape"),
    [(FCN(depth=3, width=2048, activation="linear"), (64, 32)), (CNN(depth=3, width=512, activation="linear"), (8, 6, 6, 2))],
    ids=["fcn", "cnn"],
)
def test_outputs_have_the_variance_of_the_inputs(model, shape):
    """NTK parameterisation with gain one and no nonlinearity: E f^2 = mean x^2 (for the CNN up to the zero padding)."""
    x = jax.random.normal(jax.random.key(0), shape)

    outputs = jnp.stack([model.apply(model.init(jax.random.key(s), x), x) for s in range(8)])

    low, high = (0.6, 1.4) if isinstance(model, FCN) else (0.3, 1.4)
    assert low < float(jnp.mean(outputs**2)) < high


def test_fcn_starts_from_unit_normals():
    params = FCN(depth=4, width=200).init(jax.random.key(1), jnp.ones((4, 30)))

    assert all(np.std(leaf) == pytest.approx(1, abs=0.1) for leaf in jax.tree.leaves(params))


def test_fcn_gain_scales_the_hidden_layers():
    x = jax.random.normal(jax.random.key(0), (4, 30))
    params = FCN(depth=4, width=200).init(jax.random.key(1), x)

    plain, doubled = (FCN(depth=4, width=200, gain=gain).apply(params, x) for gain in (1.0, 2.0))

    np.testing.assert_allclose(doubled, 8 * plain, rtol=1e-4)  # three hidden relu layers


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (CNN(depth=3, width=4), 256),
        (CNN(depth=3, width=4, strides=(2, 2)), 16),
        (CNN(depth=3, width=4, readout="average"), 4),
    ],
    ids=["flatten", "strides", "average"],
)
def test_cnn_readout_has_the_size_of_the_maps(model, size):
    params = model.init(jax.random.key(0), jnp.ones((2, 8, 8, 3)))["params"]

    assert params["readout"]["kernel"].shape == (size, 1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (WideResNet(depth=12), r"depth=12; allowed: 6 n \+ 4"),
        (WideResNet(depth=4), r"depth=4; allowed: 6 n \+ 4"),
        (WideResNet(width=6), "groups=4; allowed: a divisor of width=6"),
        (ViT(patch_size=3), "patch_size=3; allowed: a divisor of both sides of 8x6 images"),
        (ViT(patch_size=4), "patch_size=4; allowed: a divisor of both sides of 8x6 images"),
        (ViT(patch_size=2, heads=3), "heads=3; allowed: a divisor of width=64"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.ones((2, 8, 6, 3)))


def test_wide_resnet_has_the_convolutions_of_the_paper():
    model = WideResNet(depth=16, width=8, widen_factor=2, stem_stride=2)
    init = lambda key, x: model.init(key, x, capture_intermediates=True)

    variables = jax.eval_shape(init, jax.random.key(0), jnp.ones((2, 32, 32, 3)))

    kernels = {name: p["kernel"].shape for name, p in variables["params"].items() if "conv" in name}
    assert len(kernels) == model.depth  # the three shortcuts included
    assert kernels["group_2_block_1_second_conv"] == (3, 3, 64, 64)
    maps = {name: p["__call__"][0].shape for name, p in variables["intermediates"].items() if name.endswith("second_conv")}
    assert [maps[f"group_{g}_block_1_second_conv"] for g in range(3)] == [(2, 16, 16, 16), (2, 8, 8, 32), (2, 4, 4, 64)]


@pytest.mark.parametrize(
    "model", [WideResNet(depth=10, width=16), ViT(depth=1, width=32, patch_size=2)], ids=["wide resnet", "vit"]
)
def test_image_models_start_from_unit_normals(model):
    params = jax.jit(model.init, compiler_options=QUICK)(jax.random.key(0), jnp.ones((2, 8, 8, 3)))["params"]

    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[0].key.endswith("norm"):
            assert np.all(leaf == (path[1].key == "scale"))
        elif leaf.size >= 256:
            assert np.std(leaf) == pytest.approx(1, abs=0.15)
