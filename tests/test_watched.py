"""Sections for the loop of a user."""

import numpy as np
import xarray

from catapult_jax.events import Event
from catapult_jax.report import build_interactive, build_report
from catapult_jax.report.members import Settings
from catapult_jax.report.opening import finding_text
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

    assert "at 3 of 5 measured steps: 2 to 4, 8. The largest ratio is 4, at step 4." in words_of(section)
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
