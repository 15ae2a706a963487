"""An event as a value: JSON, sentences, Python numbers."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import catapult_jax
from catapult_jax import detector, find_events
from catapult_jax.events import KINDS, Event, to_python
from tests.helpers_events import online


def test_event_is_ready_for_json():
    (event,) = find_events([0.0, 5.0, 0.0], np.ones(3), np.full(3, 0.5))
    fields = json.loads(json.dumps(event._asdict(), allow_nan=False))
    assert list(fields) == list(Event._fields)
    assert fields["kind"] == "catapult" and fields["peak"] == 1
    assert math.isinf(event.peak_ratio) and fields["peak_ratio"] is None and fields["fraction_top"] is None
    events, _ = online(*np.array([[1.0, 5.0, np.inf], [1, 1, 1], [0.5, 0.5, 0.5]]), *np.full((3, 3), np.nan))
    assert json.loads(json.dumps(events[0]._asdict(), allow_nan=False))["loss_peak"] is None


def test_to_python_refuses_several_events():
    d = detector()
    _, events = jax.vmap(lambda loss: d.update(d.init(), loss, 1.0, 1.0))(jnp.ones(2))
    with pytest.raises(ValueError, match=r"event.kind has shape \(2,\); allowed: \(\), one event"):
        to_python(events)
    assert to_python(jax.tree.map(lambda a: a[0], events)).kind == "none"


@pytest.mark.parametrize(
    ("loss", "critical", "lam", "text"),
    [
        (
            [0.5, 2, 3.2, 1, 0.5],
            3.6,
            None,
            "Catapult: the loss rises from 0.5 at step 0 to 3.2 at step 2 (6.4 times its level), comes down half of its height by "
            "step 3 and is back at its level at step 4; lr 6 is 1.67 times the critical lr 3.6.",
        ),
        (
            [0.5, 2, 3.2, 1, 1],
            8,
            None,
            "Unexplained: the loss rises from 0.5 at step 0 to 3.2 at step 2 (6.4 times its level) and comes down half of its height by "
            "step 3, but is not back at its level; lr 6 is 0.75 times the critical lr 8.",
        ),
        (
            [0.5, 2, 3.2, 3, 3],
            [8, 3, 8, 8, 8],
            None,
            "Catapult: the loss rises from 0.5 at step 0 to 3.2 at step 2 (6.4 times its level) and has not come down half of its height by "
            "the last step; lr 6 is 0.75 times the critical lr 8 at the onset; on the way to the peak the lr exceeds its critical lr.",
        ),
        (
            [0.5, 2, 3.2, 1, 1],
            3.6,
            [1, 1, 1, 0, 0],
            "Death: the loss rises from 0.5 at step 0 to 3.2 at step 2 (6.4 times its level), and then the kernel is exactly zero: the "
            "network is dead; lr 6 is 1.67 times the critical lr 3.6.",
        ),
        (
            [0.5, 2, np.inf, 1, 1],
            np.nan,
            None,
            "Divergence: the loss goes from 0.5 at step 0 to a value that is not finite at step 2; the critical lr at the onset is not known.",
        ),
    ],
)
def test_event_str_is_a_sentence(loss, critical, lam, text):
    (event,) = find_events(loss, np.full(5, 6.0), np.broadcast_to(critical, 5), lambda_max=lam)
    assert str(event) == text


def test_event_str_of_arrays():
    d = detector()
    _, event = d.update(d.init(), jnp.array(1.0), jnp.array(1.0), jnp.array(1.0))
    assert str(event).startswith("Event(kind=") and str(to_python(event)) == "No event."


def test_names_of_events_are_public():
    assert catapult_jax.KINDS is KINDS and catapult_jax.to_python is to_python
    assert {"dead_from", "spike_score"} <= set(catapult_jax.__all__)
