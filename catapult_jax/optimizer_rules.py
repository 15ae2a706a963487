"""What each link of an Optax optimizer does to an update that changes sign at every step: one rule for each link.

:mod:`catapult_jax.preconditioners` composes them. Add a rule for a link to ``_RULES``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from catapult_jax.optimizer_links import Link, values_at
from catapult_jax.tangent import InverseMap

if TYPE_CHECKING:
    from jaxtyping import PyTree


class Effect(NamedTuple):
    """What a link does to an update that changes sign at every step."""

    diagonal: Sequence[
        Any
    ] = ()  # it divides by this: an array or a scalar for each parameter that the link sees; empty: by nothing
    gain: Any = 1.0  # it multiplies by this
    decay: Any = 0.0  # it adds this times the parameters
    scale: Any = None  # it multiplies by this, minus the lr; None: the link has no lr
    averages: str = ""  # name of a link that averages what it receives over steps: its gain is that of the filter alone
    around: str = ""  # name of a link that has a rule only around an optimizer without momentum
    reason: str = ""  # why there is no rule
    inverse: InverseMap | None = None  # it applies this map to the parameters that it sees


class _Seen(NamedTuple):
    """What a link sees in a step, beside its state."""

    params: list  # those that it acts on
    received: Sequence[Any] = ()  # the update that it receives, for these; empty: not known
    passed_on: Sequence[Any] = ()  # the update that it passes on, likewise


def _adam(link: Link, seen: _Seen) -> Effect:
    s = link.settings
    root = lambda v: jnp.sqrt(v / _correction(s["b2"], link) + s["eps_root"]) + s["eps"]
    return Effect(
        [root(v) for v in link.leaves(link.after.nu)], _adam_gain(s["b1"], s.get("nesterov", False)), averages=link.name
    )


def _adam_gain(b1, nesterov: bool):
    return (1 - b1) / (1 + b1) * (1 + 2 * b1 if nesterov else 1)


def _correction(decay, link: Link):
    """``1 - decay^count``, which the average of squares is divided by."""
    count = link.after.count
    if not isinstance(count, Tracer) and np.all(np.asarray(count) < 1):
        raise ValueError(f"the state of {link.name} has count=0; allowed: the state after an update")
    return 1 - decay**count


def _belief(link: Link, seen: _Seen) -> Effect:
    s = link.settings
    root = lambda v: jnp.sqrt(v / _correction(s["b2"], link)) + s["eps"]
    return Effect([root(v) for v in link.leaves(link.after.nu)], _adam_gain(s["b1"], s["nesterov"]), averages=link.name)


def _amsgrad(link: Link, seen: _Seen) -> Effect:
    s = link.settings
    return Effect(
        [jnp.sqrt(v + s["eps_root"]) + s["eps"] for v in link.leaves(link.after.nu_max)],
        _adam_gain(s["b1"], False),
        averages=link.name,
    )


def _adamax(link: Link, seen: _Seen) -> Effect:
    return Effect(link.leaves(link.after.nu), _adam_gain(link.settings["b1"], False), averages=link.name)


def _ademamix(link: Link, seen: _Seen) -> Effect:
    s = link.settings
    now = lambda value: value(link.after.count_m2 - 1) if callable(value) else value
    gain = _adam_gain(s["b1"], False) + now(s["alpha"]) * _adam_gain(now(s["b3"]), False)
    return _adam(link, seen)._replace(gain=gain)


def _rms(link: Link, seen: _Seen) -> Effect:
    s = link.settings
    correction = _correction(s["decay"], link) if s["bias_correction"] else 1.0
    mean = getattr(link.after, "mu", None)
    variances = [v / correction for v in link.leaves(link.after.nu)]
    if mean is not None:
        variances = [v - (m / correction) ** 2 for v, m in zip(variances, link.leaves(mean), strict=True)]
    root = (lambda v: jnp.sqrt(v + s["eps"])) if s["eps_in_sqrt"] else (lambda v: jnp.sqrt(v) + s["eps"])
    return Effect([root(v) for v in variances])


def _rss(link: Link, seen: _Seen) -> Effect:
    eps = link.settings["eps"]
    root = lambda t: jnp.where(t > 0, jnp.sqrt(t + eps), jnp.inf)  # Optax does not move an entry without a gradient
    return Effect([root(t) for t in link.leaves(link.after.sum_of_squares)])


def _adadelta(link: Link, seen: _Seen) -> Effect:
    if link.before is None:
        return Effect(reason="scale_by_adadelta needs the state before the step; give it")
    eps, pairs = link.settings["eps"], zip(link.leaves(link.after.e_g), link.leaves(link.before.e_x), strict=True)
    return Effect([jnp.sqrt(g + eps) / jnp.sqrt(x + eps) for g, x in pairs])


def _factored_rms(link: Link, seen: _Seen) -> Effect:
    """``P`` is the root of the average of squares, or of its factors: a row times a column over the mean of the rows."""
    roots = []
    state, s = link.after, link.settings
    for p, row, column, v in zip(
        seen.params, *(link.leaves(tree) for tree in (state.v_row, state.v_col, state.v)), strict=True
    ):
        axes = _factored_axes(p.shape, s["min_dim_size_to_factor"]) if s["factored"] else None
        if axes is None:
            roots.append(jnp.sqrt(v))
            continue
        d1, d0 = axes
        mean = jnp.mean(row, axis=d1 - 1 if d1 > d0 else d1, keepdims=True)
        roots.append(jnp.sqrt(jnp.expand_dims(row / mean, d0) * jnp.expand_dims(column, d1)))
    return Effect(roots)


def _factored_axes(shape: tuple[int, ...], least: int) -> tuple[int, int] | None:
    """The two largest axes of an array, the second largest first; None: the array is not factored."""
    if len(shape) < 2:
        return None
    order = np.argsort(shape)
    return (int(order[-2]), int(order[-1])) if shape[order[-2]] >= least else None


def _trace(link: Link, seen: _Seen) -> Effect:
    beta = link.settings["decay"]
    return Effect(gain=(1 + 2 * beta) / (1 + beta) if link.settings["nesterov"] else 1 / (1 + beta), averages=link.name)


def _ema(link: Link, seen: _Seen) -> Effect:
    return Effect(gain=_adam_gain(link.settings["decay"], False), averages=link.name)


def _decay(link: Link, seen: _Seen) -> Effect:
    decay = link.settings["weight_decay"]
    return Effect(decay=decay(link.after.count - 1) if callable(decay) else decay)


def _scale(link: Link, seen: _Seen) -> Effect:
    return Effect(scale=link.settings["step_size"])


def _schedule(link: Link, seen: _Seen) -> Effect:
    return Effect(scale=link.settings["step_size_fn"](link.after.count - 1))


def _nothing(link: Link, seen: _Seen) -> Effect:
    return Effect()


def _accumulation(link: Link, seen: _Seen) -> Effect:
    """The mean of gradients is one gradient, of a larger batch; their sum is as many times that."""
    return (
        Effect()
        if link.settings["mean"]
        else Effect(reason="MultiSteps with use_grad_mean=False takes the sum of gradients and has no rule")
    )


def _zero(link: Link, seen: _Seen) -> Effect:
    return Effect([jnp.inf] * len(link.on))


def _norm_clip(link: Link, seen: _Seen) -> Effect:
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(v.astype(jnp.promote_types(v.dtype, jnp.float32)))) for v in seen.received))
    return Effect(gain=jnp.minimum(1.0, link.settings["max_norm"] / norm))


def _entry_clip(link: Link, seen: _Seen) -> Effect:
    if not seen.received:  # a group without parameters
        return Effect()
    is_clipped = jnp.stack([jnp.any(jnp.abs(v) > link.settings["max_delta"]) for v in seen.received]).any()
    return Effect(gain=jnp.where(is_clipped, jnp.nan, 1.0))  # what is clipped does not follow the gradient


def _one_factor_for_each(link: Link, seen: _Seen) -> Effect:
    """Links that multiply each array by one number, which is taken as fixed."""
    norm = lambda v: jnp.sqrt(jnp.sum(v**2))
    factors = [(norm(old) / norm(new)).astype(old.dtype) for old, new in zip(seen.received, seen.passed_on, strict=True)]
    return Effect([jnp.where(jnp.isfinite(factor), factor, 1) for factor in factors])


def _schedule_free(link: Link, seen: _Seen) -> Effect:
    s, state = link.settings, link.after
    b, c = s["b1"], state.max_lr ** s["weight_lr_power"] / state.weight_sum
    return Effect(gain=(2 * (1 - b) + c * (2 * b - 1)) / (2 - c), around=link.name)


def _lookahead(link: Link, seen: _Seen) -> Effect:
    k, alpha = link.settings["sync_period"], link.settings["slow_step_size"]
    return Effect(gain=1.0 if k % 2 == 0 else 2 / (1 + (2 / alpha - 1) ** (1 / k)), around=link.name)


# One row per link of Optax. Add a link here.
_RULES: dict[str, Callable[[Link, _Seen], Effect]] = {
    "identity": _nothing,
    "zero_nans": _nothing,
    "MultiSteps": _accumulation,
    "set_to_zero": _zero,
    "scale": _scale,
    "scale_by_schedule": _schedule,
    "add_decayed_weights": _decay,
    "trace": _trace,
    "ema": _ema,
    "scale_by_adam": _adam,
    "scale_by_yogi": _adam,
    "scale_by_belief": _belief,
    "scale_by_amsgrad": _amsgrad,
    "scale_by_adamax": _adamax,
    "scale_by_ademamix": _ademamix,
    "scale_by_rms": _rms,
    "scale_by_stddev": _rms,
    "scale_by_rss": _rss,
    "scale_by_adadelta": _adadelta,
    "scale_by_factored_rms": _factored_rms,
    "schedule_free": _schedule_free,
    "lookahead": _lookahead,
}
# These depend on what they receive, so they need the gradient and the state before.
_RULES_WITH_GRADIENT: dict[str, Callable[[Link, _Seen], Effect]] = {
    "clip_by_global_norm": _norm_clip,
    "clip": _entry_clip,
    "clip_by_block_rms": _one_factor_for_each,
    "scale_by_trust_ratio": _one_factor_for_each,
    "scale_by_param_block_norm": _one_factor_for_each,
    "scale_by_param_block_rms": _one_factor_for_each,
}
_NORMALISED = ("scale_by_lion", "scale_by_sign", "scale_by_muon", "normalize_by_update_norm", "scale_by_rprop")


def effects_of(links: list[Link], params: PyTree, gradient: PyTree | None) -> list[Effect]:
    """What each link does in one step.

    Args:
      links: with their states.
      params: parameters before the step.
      gradient: as the first link receives it; None where it or the state before the step is not given.

    Returns:
      An effect for each link. One without a rule has a ``reason``.

    Raises:
      ValueError: a state that is not one of its link, or one before any update.

    >>> import optax
    >>> from catapult_jax.optimizer_links import links_of
    >>> optimizer = optax.sgd(0.1, momentum=0.9)
    >>> links = links_of(optimizer, jnp.ones(2), None, optimizer.init(jnp.ones(2)))
    >>> [(round(effect.gain, 3), effect.scale) for effect in effects_of(links, jnp.ones(2), None)]
    [(0.526, None), (1.0, -0.1)]
    """
    last = max((k for k, link in enumerate(links) if link.name in _RULES_WITH_GRADIENT), default=-1)
    repeated = links[: last + 1]  # these are repeated to know what the last one receives; others may need more than a gradient
    can_repeat = all(_has_rule(link) and link.update is not None for link in repeated)
    received = values_at(repeated, params, gradient) if gradient is not None and can_repeat else None
    leaves = jax.tree.leaves(getattr(params, "fast", params))

    def effect(k: int, link: Link) -> Effect:
        on = lambda values: [values[i] for i in link.on]
        if link.name in _NORMALISED:
            return Effect(
                reason=f"{link.name} normalises the update, so no eigenvalue makes an lr critical; use directional_critical_lr"
            )
        if link.name in _RULES_WITH_GRADIENT:
            if not can_repeat:
                return Effect(
                    reason=f"{link.name} behind a link that can't be repeated has no rule; use directional_critical_lr"
                )
            if received is None:
                return Effect(reason=f"{link.name} depends on the gradient; give gradient and the state before the step")
            return _RULES_WITH_GRADIENT[link.name](link, _Seen(on(leaves), on(received[k]), on(received[k + 1])))
        if not _has_rule(link):
            return Effect(reason=f"{link.name} has no rule; use directional_critical_lr")
        if hasattr(link.after, "inverse_preconditioner"):
            inverse, gain = link.after.inverse_preconditioner(link.before)
            return Effect(inverse=inverse, gain=gain)
        try:
            return _RULES[link.name](link, _Seen(on(leaves)))
        except KeyError as error:  # a release of Optax in which the function has other arguments
            return Effect(reason=f"{link.name} has no setting {error} in this release of optax")
        except AttributeError as error:
            raise ValueError(
                f"the state of {link.name} is {type(link.after).__name__}; allowed: the state of this optimizer after its update"
            ) from error

    return [effect(k, link) for k, link in enumerate(links)]


def _has_rule(link: Link) -> bool:
    return link.name in _RULES or link.name in _RULES_WITH_GRADIENT or hasattr(link.after, "inverse_preconditioner")
