"""Sections for the loop of a user."""

import numpy as np
import xarray

from catapult_jax.events import Event
from catapult_jax.report import build_interactive, build_report
from catapult_jax.report.analysis import run_events
from catapult_jax.report.members import Settings
from catapult_jax.report.opening import finding_text
from catapult_jax.report.sections import counts
from catapult_jax.report.watched import critical_steps, doubts, layers


def record_of(**series):
    names = {name.replace("__", "."): (("member", "step"), np.atleast_2d(values)) for name, values in series.items()}
    length = next(iter(names.values()))[1].shape[1]
    return xarray.Dataset(names, {"step": np.arange(length)})


def words_of(section):
    return " ".join(block.content["words"] for block in section.blocks)


def spike(onset, peak):
    return Event("unknown", onset, peak, peak + 1, *[1.0] * 11)


def test_doubts_of_a_critical_lr_that_is_never_known():
    unknown = doubts(record_of(critical_lr_batch=[np.nan, np.nan]), Settings(), [])
    known = doubts(record_of(critical_lr_batch=[np.nan, 1.0]), Settings(), [])

    assert unknown.heading == "Read with care" and "not known at any step" in words_of(unknown)
    assert not known.blocks


def test_doubts_of_a_search_that_ended_early():
    """Three of four steps are below the critical lr of the lower bound, and above that of the upper one."""
    series = dict(lr=[1.0] * 4, critical_lr_batch=[2.0, 2.0, 2.0, 0.5], lambda_max_batch=[1.0, 1.0, 1.0, 4.0])
    early = doubts(record_of(**series, lambda_max_batch_bound=[np.inf] * 4), Settings(), [])
    whole = doubts(record_of(**series, lambda_max_batch_bound=[0.01] * 4), Settings(), [])

    assert "At 3 of 4 measured steps it is not certain" in words_of(early) and "may be a catapult" in words_of(early)
    assert not whole.blocks


def test_doubts_of_steps_that_are_not_on_record():
    """A step without an update has its loss on record."""
    series = dict(event=[0.0, np.nan, np.nan, 0.0], loss_batch=[1.0, np.nan, 1.0, 1.0])

    assert words_of(doubts(record_of(**series), Settings(), [])).startswith(
        "1 step of 4 is not on record, the first is step 1."
    )
    assert not doubts(record_of(event=[0.0, np.nan], loss_batch=[1.0, 1.0]), Settings(), []).blocks


def test_doubts_of_spikes_whose_cause_was_not_measured():
    record = record_of(lr=[1.0] * 3, critical_lr_batch=[2.0, np.nan, 2.0], loss_train=[1.0, 3.0, 1.0])
    (events,) = run_events(record, Settings())

    assert [event.kind for event in events] == ["unknown"] and "the last one measured" in str(events[0])
    assert words_of(doubts(record, Settings(), [events])).startswith("1 spike of 1 has no known cause")


def test_doubts_of_catapults_by_chance():
    """Where every step is critical, a spike is a catapult whatever made it."""
    loss = [1.0, 3.0, 1.0, 0.9, 0.8, 0.7]
    always = record_of(lr=[1.0] * 6, critical_lr_batch=[0.5] * 6, loss_train=loss)
    at_onset = record_of(lr=[1.0] * 6, critical_lr_batch=[0.5] + [2.0] * 5, loss_train=loss)
    words = lambda record: words_of(doubts(record, Settings(), run_events(record, Settings())))

    assert words(always).startswith("A step above the critical lr lies in 100% of all windows")
    assert words(at_onset) == ""


def test_spikes_are_looked_for_in_the_steps_that_are_on_record():
    """The record of a watched loop with a gap; without ``event`` nobody knows why a loss is missing."""
    loss = [1.0, np.nan, 1.0, 3.0, 1.0]
    gap = record_of(lr=[1.0] * 5, critical_lr_batch=[0.5] * 5, loss_batch=loss, event=np.where(np.isnan(loss), np.nan, 0.0))

    (events,) = run_events(gap, Settings(smoothing=0.1))
    assert [(event.kind, event.onset, event.peak, event.end) for event in events] == [("catapult", 2, 3, 4)]
    assert run_events(gap.drop_vars("event"), Settings(smoothing=0.1)) == [[]]
    assert counts(gap.drop_vars("event"), Settings(smoothing=0.1)).blocks == []


def test_finding_text_says_how_often_a_side_is_not_certain():
    series = dict(lr=[1.0] * 4, critical_lr_batch=[2.0, 2.0, 2.0, 0.5], lambda_max_batch=[1.0, 1.0, 1.0, 4.0])
    early = record_of(**series, lambda_max_batch_bound=[np.inf] * 4)

    assert finding_text(early, Settings(), [[]]).endswith(
        "the critical lr was exceeded at 25 % of the steps, and at 75 % it is not certain."
    )


def test_doubts_of_another_loss():
    """The rounding of bfloat16 is no other loss; NaN is a step that was not measured."""
    section = doubts(record_of(loss_batch=[1.0, 1.0, 1.0, 1.0], loss_of_watch=[1.01, 1.5, np.nan, 0.2]), Settings(), [])

    assert "At 2 of 3 measured steps the watch found another loss" in words_of(section)
    assert not doubts(record_of(loss_batch=[1.0, 1.0], loss_of_watch=[0.98, np.nan]), Settings(), []).blocks


def test_finding_text_of_spikes_without_a_known_critical_lr():
    record = record_of(loss_train=[1.0, 3.0, 1.0], lr=[1.0] * 3, critical_lr_batch=[np.nan] * 3)

    assert finding_text(record, Settings(), [[spike(0, 1)]]) == "1 of 1 member has a spike of unknown kind."


def test_critical_steps_between_steps_that_were_not_measured():
    """Measured at every second step: 2 and 4 are one range, 8 is another."""
    nan = np.nan
    critical = [4.0, nan, 1.0, nan, 0.5, nan, 4.0, nan, 1.0]
    section = critical_steps(record_of(lr=[2.0] * 9, critical_lr_batch=critical, directional_batch=[3.0, nan, 0.5] + [nan] * 6))

    assert "at 3 of 5 measured steps: 2 to 4 (2 measured), 8. The largest ratio is 4, at step 4." in words_of(section)
    assert "in the quadratic model, at 1 of 2 measured steps: 2." in words_of(section)


def test_critical_steps_of_many_members_are_left_out():
    two = {name: np.ones((2, 3)) for name in ("lr", "critical_lr_batch")}
    assert not critical_steps(record_of(**two)).blocks


def test_critical_steps_beyond_the_limit_are_counted():
    critical = np.where(np.arange(60) % 2, 1.0, 4.0)
    assert words_of(critical_steps(record_of(lr=[2.0] * 60, critical_lr_batch=critical))).count(",") == 20
    assert "and 10 more ranges." in words_of(critical_steps(record_of(lr=[2.0] * 60, critical_lr_batch=critical)))


def test_layers_of_a_spike_are_those_on_its_way_up():
    """``late`` has the least multiple of the run, after the spike, and zeros, which are no multiple; ``early`` has that of the spike."""
    record = record_of(directional__early=[5.0, 0.6, 0.9, 5.0, 5.0], directional__late=[5.0, 0.0, 2.0, 0.1, 5.0])

    of_run, of_spikes = layers(record, [[spike(1, 2)]])

    assert of_run.blocks[0].content["rows"] == [
        ["early", "2 of 5", "0", "5", "0.6 (step 1)"],
        ["late", "2 of 5", "1", "2", "0.1 (step 3)"],
    ]
    assert of_spikes.blocks[0].content["rows"] == [["unknown", "1", "2", "early", "early 0.6, late 2"]]


def test_layers_of_a_spike_with_no_multiple_below_one_are_none_alone():
    _, of_spikes = layers(record_of(directional__a=[5.0, 1.6, 1.9], directional__b=[5.0, 3.0, 2.0]), [[spike(1, 2)]])

    assert of_spikes.blocks[0].content["rows"] == [["unknown", "1", "2", "none alone", "a 1.6, b 2"]]


def test_pages_of_a_loop_without_a_critical_lr_say_so_and_draw_no_ratio(tmp_path, plain_figures):
    nan = np.full(3, np.nan)
    record = record_of(loss_train=[1.0, 3.0, 1.0], lr=[1.0] * 3, critical_lr_batch=nan, directional_batch=[2.0, 0.5, 2.0])

    pages = [build(record, title="mine", folder=tmp_path) for build in (build_report, build_interactive)]

    assert all("The critical lr is not known at any step" in page.read_text() for page in pages)
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == {"loss", "directional"}
