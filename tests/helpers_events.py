"""Runs the online detector over series."""

import jax
import jax.numpy as jnp

from catapult_jax import detector, to_python


def online(loss, lr, critical, lam, top, rest, **settings):
    d = detector(**settings)
    update = jax.jit(d.update)
    state, events = d.init(), []
    for values in zip(loss, lr, critical, lam, top, rest, strict=True):
        state, event = update(state, *map(jnp.asarray, values))
        if int(event.kind):
            events.append(to_python(event))
    last = to_python(d.finish(state))
    return events + ([last] if last.kind != "none" else []), int(state.closed)
