"""The tangent kernel by the package neural_tangents, as a reference.

neural_tangents 0.6.5 (2023) is the last release of a dormant project. It imports names that JAX has moved, so these
names are lent to it during the import and removed again. Its third implementation (structured derivatives) needs four
of its own functions replaced, because the JAX internals that they call are gone. This module has all of that, and one
test for each implementation against ``J J^T``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import types
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.core
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PyTree

INSTALL = "pip install --no-deps neural-tangents==0.6.5 && pip install frozendict"

IMPLEMENTATIONS = {1: "Jacobian contraction", 2: "NTK-vector products", 3: "structured derivatives"}


class NeuralTangentsMissing(ImportError):
    """neural_tangents can't be imported. The message says what to install."""


@contextlib.contextmanager
def _lend(names: list[tuple[Any, str, Any]], modules: dict[str, types.ModuleType]):
    """Context with the attributes and modules that are missing. It removes exactly these at its end."""
    lent_names = [(owner, name) for owner, name, _ in names if not hasattr(owner, name)]
    lent_modules = [name for name in modules if name not in sys.modules]
    for owner, name, value in names:
        if (owner, name) in lent_names:
            setattr(owner, name, value)
    for name in lent_modules:
        sys.modules[name] = modules[name]
    try:
        yield
    finally:
        for owner, name in lent_names:
            delattr(owner, name)
        for name in lent_modules:
            sys.modules.pop(name, None)


def _module(name: str, **attributes) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(attributes)
    return module


def _safe_map(f, *sequences):
    return [f(*items) for items in zip(*sequences, strict=True)]


def _safe_zip(*sequences):
    return list(zip(*sequences, strict=True))


@functools.cache
def load() -> types.ModuleType:
    """Import neural_tangents, on any JAX that this package supports.

    Returns:
      The module.

    Raises:
      NeuralTangentsMissing: It is not installed, or frozendict, which it needs, is not.
    """
    import jax.extend.core as extend_core
    from jax.interpreters import ad

    names = [(jax.core, name, getattr(extend_core, name)) for name in ("Jaxpr", "JaxprEqn", "Literal", "Var", "Primitive")]
    # The package registers a rule under zeros_like_p. JAX has no such primitive, so nothing looks the rule up.
    names.append((ad, "zeros_like_p", extend_core.Primitive("zeros_like")))
    modules = {
        "jax.util": _module("jax.util", safe_map=_safe_map, safe_zip=_safe_zip),
        # No other part of the package needs TensorFlow.
        "neural_tangents.experimental": _module("neural_tangents.experimental"),
    }
    try:
        with _lend(names, modules), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            package = importlib.import_module("neural_tangents")
            empirical = importlib.import_module("neural_tangents._src.empirical")
    except ImportError as error:
        raise NeuralTangentsMissing(f"neural_tangents can't be imported ({error}); install it with: {INSTALL}") from error
    _mend_structured_derivatives(empirical)
    return package


def _mend_structured_derivatives(empirical: types.ModuleType) -> None:
    """Replace what implementation 3 takes from JAX's internals by versions that work."""
    import jax.extend.core as extend_core
    from jax.extend import source_info_util
    from jax.interpreters import ad

    unknown = types.SimpleNamespace(is_known=lambda: False)

    def linearize(fun, *primals, has_aux=False):
        del has_aux
        out, tangent_map = jax.linearize(fun.call_wrapped, *primals)
        closed = jax.make_jaxpr(tangent_map)(*primals)
        return out, [unknown] * len(out), closed.jaxpr, closed.consts

    class Namespace(types.SimpleNamespace):
        def __getattr__(self, name):  # all names that JAX still has
            return getattr(ad, name)

    def transpose_equation(eqn, cotangent, *values):
        """Cotangents of the linear inputs of an equation; None for the other inputs."""
        if eqn is None:
            return (cotangent,)
        if type(cotangent) is ad.Zero:
            return [None] * len(values)
        linear = [i for i, value in enumerate(values) if ad.is_undefined_primal(value)]

        def apply(*inputs):
            filled = list(values)
            for i, value in zip(linear, inputs, strict=True):
                filled[i] = value
            return eqn.primitive.bind(*filled, **eqn.params)

        avals = [jax.ShapeDtypeStruct(values[i].aval.shape, values[i].aval.dtype) for i in linear]
        out = jax.eval_shape(apply, *avals)
        multiple = isinstance(out, (list, tuple))
        cotangent = cotangent.astype((out[0] if multiple else out).dtype)
        cotangents = jax.linear_transpose(apply, *avals)([cotangent] if multiple else cotangent)
        of_values = [None] * len(values)
        for i, value in zip(linear, cotangents, strict=True):
            of_values[i] = value
        return of_values

    def flops(f, optimize, *args, **kwargs):
        lowered = jax.jit(f).lower(*args, **kwargs)
        analysis: Any = (lowered.compile() if optimize else lowered).cost_analysis()
        return (analysis[0] if isinstance(analysis, (list, tuple)) else analysis)["flops"]

    replacements = {
        "ad": Namespace(
            linearize=linearize,
            source_info_util=source_info_util,
            config=types.SimpleNamespace(jax_enable_checks=False),
            reducing_transposes={},
        ),
        "core": types.SimpleNamespace(
            ShapedArray=jax.core.ShapedArray,
            Var=extend_core.Var,
            Primitive=extend_core.Primitive,
            DShapedArray=type("NoDynamicShapes", (), {}),
        ),
        "_eqn_vjp_fn": transpose_equation,
        "_get_flops": flops,
    }
    for name, replacement in replacements.items():
        setattr(empirical, name, replacement)


def empirical_kernel(
    apply_fn: Callable[..., Float[Array, "b *o"]],
    params: PyTree,
    x: Array,
    *,
    implementation: int = 1,
) -> Float[Array, "bo bo"]:
    """Tangent kernel ``K = J J^T`` of a batch, computed by neural_tangents.

    Args:
      apply_fn: ``apply_fn(params, x) -> outputs``.
      params: Parameters.
      x: ``(b, ...)`` inputs.
      implementation: 1 Jacobian contraction, 2 NTK-vector products, 3 structured derivatives, as the package numbers
        them. Its 0, automatic, counts FLOPs wrongly and is not allowed.

    Returns:
      ``(b*o, b*o)``, example-major: row ``i*o + j`` is output ``j`` of example ``i``.

    Raises:
      ValueError: Unknown implementation.
      NeuralTangentsMissing: The package is not installed.

    Source: Novak, Sohl-Dickstein, Schoenholz (2022), arXiv 2206.08720.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r}; allowed: {sorted(IMPLEMENTATIONS)}")
    package = load()

    def flat_outputs(params, x):  # the package needs one output axis
        out = apply_fn(params, x)
        return jnp.reshape(out, (out.shape[0], -1))

    kernel_fn = package.empirical_ntk_fn(
        flat_outputs, trace_axes=(), vmap_axes=0, implementation=package.NtkImplementation(implementation)
    )
    with jax.default_matmul_precision("highest"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the dormant package uses deprecated names
        kernel = kernel_fn(x, None, params)  # (b, b, o, o)
    b, _, o, _ = kernel.shape
    return kernel.transpose(0, 2, 1, 3).reshape(b * o, b * o)
