"""The opening of a report: facts and what was found."""

import numpy as np
import pytest
import xarray as xr

from catapult_jax.report import opening
from catapult_jax.report.analysis import run_events
from catapult_jax.report.members import Settings
from tests.small_records import BATCHES, DEAD_KERNEL, DIES, DROPS, FALLING, FULL, SPIKE, record


def words_of(section):
    return [block.content["words"] for block in section.blocks]


def finding_of(data, settings=FULL):
    return opening.finding_text(data, settings, run_events(data, settings))


def test_opening_has_the_facts_in_their_order():
    data = record([SPIKE, FALLING], 1.5, DROPS).assign_coords(lr0=("member", [0.5, 0.25]))
    more = {"network": ["data digits", "FCN"], "training": ["optimizer sgd"], "status": "6 of 60 steps"}

    facts, found = words_of(opening.opening(data, FULL, run_events(data, FULL), before="Demonstration: ", **more))

    assert facts == (
        "data digits; FCN; 128 training examples; 2 members, seeds 0, 1; lr 0.5, 0.25; lr / critical lr at the start 1.67; "
        "optimizer sgd; full batch; 6 of 60 steps."
    )
    assert found.startswith("Demonstration: 1 of 2 members has a catapult;")


def test_opening_counts_members_that_diverged_or_are_dead():
    diverged = np.array([[False] * 6, [False] * 6, [False] * 5 + [True]])
    data = record([SPIKE, DIES, FALLING], 1.5, [DROPS, DEAD_KERNEL, DROPS], diverged=diverged)

    assert words_of(opening.opening(data, FULL, [[], [], []]))[0].endswith("; 6 steps, 1 diverged, 1 dead.")


def test_opening_of_a_record_without_losses_has_facts_only():
    data = xr.Dataset({"gradient_norm": (("member", "step"), np.ones((2, 5)))})

    assert words_of(opening.opening(data, Settings(), [[], []])) == ["2 members; full batch; 5 steps."]


def test_opening_names_the_batch_size():
    assert f"batch size {BATCHES.batch_size};" in words_of(opening.opening(record(SPIKE, 1.5, DROPS), BATCHES, [[]]))[0]


@pytest.mark.parametrize(
    ("seeds", "text"),
    [([4], "seed 4"), ([4, 5], "seeds 4, 5"), ([4, 5, 6], "seeds 4 to 6"), ([4, 5, 7], "seeds 4, 5, 7"), ([4, 4], "seed 4")],
)
def test_members_text_names_seeds(seeds, text):
    assert opening.members_text(xr.Dataset(coords={"seed": ("member", seeds)})).endswith(f", {text}")


def test_lr_text_of_many_members_has_a_range():
    data = xr.Dataset(coords={"lr0": ("member", [0.5, 10.0, 2.0, 3.0, 4.0])})

    assert opening.lr_text(data) == ["lr 0.5 to 10"]


def test_finding_text_of_catapults():
    """One of two members has a catapult. The top space has 0.75 of every loss, and so of the rise. The lr is above critical twice."""
    data = record([SPIKE, FALLING], 1.5, [DROPS, [9.0] * 6], top=0.75 * np.array([SPIKE, FALLING]))

    assert finding_of(data) == (
        "1 of 2 members has a catapult; 75 % of its rise is in the top-5 eigenspace; the critical lr was exceeded at 17 % of the steps."
    )


def test_finding_text_of_several_catapults_has_their_median():
    loss = np.array([SPIKE, SPIKE, SPIKE])
    data = record(loss, 1.5, DROPS, top=loss * np.array([[0.5], [0.75], [1.0]]))

    assert "3 of 3 members have a catapult; 75 % of its rise is in the top-5 eigenspace (median);" in finding_of(data)


def test_finding_text_is_at_most_the_whole_rise():
    """The loss outside falls while the loss inside rises."""
    loss = np.array(SPIKE)
    data = record(loss, 1.5, DROPS, top=loss - [0.9, 0.5, 0.1, 0.1, 0.1, 0.1])

    assert "100 % of its rise" in finding_of(data)


def test_finding_text_without_a_critical_lr_counts_spikes():
    data = record([SPIKE, FALLING], 1.5, DROPS)[["loss_train"]]

    assert finding_of(data) == "1 of 2 members has a spike."


def test_finding_text_of_random_batches_has_the_critical_steps_only():
    data = record(SPIKE, 1.5, DROPS).drop_vars("loss_train")

    assert finding_of(data, BATCHES) == "the critical lr was exceeded at 33 % of the steps."
