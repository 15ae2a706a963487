"""All claims together: unknown values decide none, and members that diverged or are dead count in none."""

import re

import numpy as np
import pytest
import xarray as xr

from catapult_jax.report.members import until_diverged
from configs import default
from experiments import config as configs
from experiments import verdicts
from experiments.verdicts import accuracies, read_run, registry
from tests.small_records import (
    ADAGRAD,
    AGOP,
    BATCH,
    BEFORE,
    CAUSES,
    CYCLIC,
    DEAD_KERNEL,
    DIES,
    DROPS,
    FIG3,
    FIG4,
    FIG5,
    MNIST,
    OPTIMIZERS,
    PREDICTORS,
    SGD,
    SPIKE,
    accuracy_rows,
    adagrad_record,
    arms_record,
    batch_rows,
    capped_record,
    critical_rows,
    forced_rows,
    horizon_record,
    optimizer_rows,
    predictors_record,
    raise_rows,
    record,
    sgd_record,
    width_rows,
    with_lambda,
    with_modes,
    with_ordinary_rises,
    with_schedule,
)


def reproducing_runs():
    """For each claim on a run a record that reproduces it, and its config."""
    stage = np.array([[0, 0, 1, 1, 1, 1, 2, 2, 2]])
    raised = [1.0, 0.5, 0.4, 2, 0.4, 0.3, 0.2, 2, 0.2], [0.5, 0.5, 3, 3, 3, 3, 6, 6, 6], [2.0, 2, 2, 4, 4, 4, 4, 9, 9]
    before, rises = np.ones((5, 20)), np.where(np.arange(20) % 2, 2.0, 0.5)
    cycles = np.tile([1.0, 3.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5], (10, 1))
    spikes = np.tile([1.0, 2.0, 4.0, 1.0, 0.9, 0.8], (12, 1))
    grows = np.array([1.0, 1, 1, 3, 3, 3, 3, 3])
    adagrad = adagrad_record(grows, 0.8 * grows)
    return {
        "first_catapult": (record(SPIKE, 1.5, DROPS), FIG3),
        "spikes_are_catapults": (record([SPIKE] * 10, 1.5, [DROPS] * 10), FIG3),
        "catapult_follows_raise": (record(*raised, stage=stage), FIG4),
        "exceedance_predicts_rise": (
            record(before, 1.0, np.where(np.arange(20) % 2, 0.5, 2.0), loss_batch_after=np.tile(rises, (5, 1))),
            FIG5,
        ),
        "spikes_have_exceedances": (sgd_record(BEFORE, 0.95), SGD),
        "spikes_have_exceedances_at_batch_one": (sgd_record(BEFORE, 0.95), SGD),
        "spikes_lie_in_the_top_space": (with_ordinary_rises(0.95, 0.5), SGD),
        "spikes_lie_there_more_than_other_rises": (with_ordinary_rises(0.95, 0.5), SGD),
        "spikes_lower_lambda_max": (with_lambda(0.95, 1.0), SGD),
        "spikes_need_few_directions": (with_modes(1, 6), SGD),
        "spikes_need_fewer_directions_than_other_rises": (with_modes(1, 6), SGD),
        "cycles_cause_catapults": (
            record(cycles, 1.5, [1.0, 1, 9, 9, 9, 9, 9, 9]).assign_coords(seed=("member", np.arange(10) // 2)),
            with_schedule(CYCLIC, period=4),
        ),
        "adagrad_outgrows_its_lr": (
            adagrad.assign(preconditioner_min=adagrad["lr"] * 0 + grows),
            with_schedule(ADAGRAD, period=4),
        ),
        "smallest_entry_grows": (
            adagrad.assign(preconditioner_min=adagrad["lr"] * 0 + grows),
            with_schedule(ADAGRAD, period=4),
        ),
        "catapults_lower_the_norm": (
            record(spikes, 1.5, DROPS, condition_number_batch=np.tile([9.0, 9, 9, 4, 4, 4], (12, 1))),
            FIG3,
        ),
        "catapults_help_beyond_cycles": (capped_record(0.01), MNIST),
        "directional_predicts_the_step": (predictors_record(), PREDICTORS),
        "spectral_predicts_the_horizon": (horizon_record(), PREDICTORS),
        "overshoot_is_the_cause": (arms_record(remove_overshoot=0.1), with_schedule(CAUSES, cap_from=1)),
        "overshoot_helps_at_equal_effort": (arms_record(remove_overshoot=0.1), with_schedule(CAUSES, cap_from=1)),
    }


def reproducing_sweeps():
    """For each claim on a sweep rows that reproduce it, and the config."""
    published = accuracy_rows({arm: 100 - value for arm, value in accuracies.PUBLISHED.items()})
    decay = accuracy_rows({("sgd", "cyclic"): 3.0, ("sgd", "decay"): 4.0})
    calm = [row | {"catapults": 0} for row in batch_rows(0.1, 0.1)]
    raises = raise_rows(0.1, -0.1)
    return {
        "small_batches_help": (batch_rows(0.1, 0.1), BATCH),
        "small_batches_help_at_tuned_lrs": (batch_rows(0.1, 0.1), BATCH),
        "small_batches_help_without_catapults": (calm, BATCH),
        "catapults_raise_alignment": (raises, AGOP),
        "catapults_lower_the_test_loss": (raises, AGOP),
        "raises_below_critical_do_little": (raises, AGOP),
        "alignment_over_optimizers": (optimizer_rows(-1.0), OPTIMIZERS),
        "alignment_is_the_best_predictor": (optimizer_rows(-1.0, unrelated=True), OPTIMIZERS),
        "peak_grows_with_width": (width_rows((1.0, 2.0, 3.0)), FIG3),
        "catapults_help_sgd": (published, MNIST),
        "published_accuracies": (published, MNIST),
        "catapults_hurt_adagrad": (published, MNIST),
        "cycles_help_tuned_sgd": (published, MNIST),
        "cycles_help_beyond_decay": (decay, MNIST),
        "adagrad_has_fewer_critical_steps": (critical_rows(0.1, 0.2), ADAGRAD),
        "forced_overshoot_helps": (forced_rows(-0.2), CAUSES),
    }


def assert_numbers(text):
    """No NaN or inf is in the text."""
    assert not re.search(r"\b(nan|inf)\b", text, re.IGNORECASE), text


@pytest.mark.parametrize("name", verdicts.OF_RUN)
def test_of_run_decides_nothing_where_a_series_is_unknown(name):
    data, config = reproducing_runs()[name]
    needed = ("loss_batch", "loss_train", "lr")  # a member without these diverged
    series = [key for key in data.data_vars if data[key].dtype.kind == "f" and key not in needed]
    assert verdicts.of_run(name, read_run(data, config)).verdict == verdicts.REPRODUCED

    for key in series:
        unknown = data.copy(deep=True)
        unknown[key][:] = np.nan
        verdict = verdicts.of_run(name, read_run(unknown, config))

        # reproduced: the claim does not rest on this series
        undecided = (verdicts.NOT_TESTED, verdicts.NOT_MEASURABLE)
        assert verdict.verdict in (undecided if key == "critical_lr_batch" else (*undecided, verdicts.REPRODUCED)), key
        assert_numbers(f"{verdict.effect} {verdict.details}")


@pytest.mark.parametrize("name", verdicts.OF_RUN)
def test_of_run_has_numbers_beside_a_member_that_diverged(name):
    data, config = reproducing_runs()[name]
    diverged = data.isel(member=[0]).copy(deep=True)
    for series in ("loss_batch", "loss_train"):
        diverged[series][:, 2] = np.inf
    diverged["diverged"][:, 2:] = True
    if "stopped" in diverged:
        diverged["stopped"][:] = False
    diverged["seed"] = diverged["seed"] + 100

    both = xr.concat([data, until_diverged(diverged)], "member")

    verdict = verdicts.of_run(name, read_run(both, config))
    assert_numbers(f"{verdict.effect} {verdict.details}")


@pytest.mark.parametrize("name", verdicts.OF_SWEEP)
def test_of_sweep_decides_nothing_where_a_column_is_unknown(name):
    rows, config = reproducing_sweeps()[name]
    decide = verdicts.OF_SWEEP[name]
    columns = [
        key for key, value in rows[0].items() if isinstance(value, float) and key not in ("lr_given", "schedule.raise_to")
    ]
    assert decide(rows, config).verdict == verdicts.REPRODUCED

    for column in columns:
        for is_unknown in (lambda row: True, lambda row: row["seed"] == 1):
            finding = decide([row | ({column: np.nan} if is_unknown(row) else {}) for row in rows], config)

            allowed = (verdicts.NOT_TESTED, verdicts.NOT_MEASURABLE, verdicts.REPRODUCED)
            assert finding.verdict in allowed, (column, finding)
            assert_numbers(" ".join([finding.effect, *(cell for line in finding.table for cell in line)]))


@pytest.mark.parametrize("name", ["first_catapult", "spikes_are_catapults"])
def test_of_run_names_a_death_and_does_not_reproduce_with_it(name):
    verdict = verdicts.of_run(name, read_run(record([DIES] + [SPIKE] * 10, 1.5, [DEAD_KERNEL] + [DROPS] * 10), FIG3))
    assert verdict.verdict in (verdicts.NOT_REPRODUCED, verdicts.PARTLY)
    assert verdict.details.endswith("; dead: 1 (member 0 from step 3) of 11 members")

    assert "dead" not in verdicts.of_run(name, read_run(record([SPIKE, SPIKE], 1.5, DROPS), FIG3)).details


def test_of_sweep_is_undecided_where_all_members_are_dead():
    rows = [row | {"active": False, "finished": False, "dead_from": 3} for row in optimizer_rows(-1.0)]

    verdict = verdicts.of_sweep("alignment_over_optimizers", rows, OPTIMIZERS)

    assert verdict.verdict == verdicts.NOT_MEASURABLE and verdict.details.endswith(f"dead: {len(rows)} of {len(rows)} members")


@pytest.mark.parametrize("name", verdicts.VERDICTS)
def test_claim_of_each_name_needs_fields_that_exist(name):
    fields, claim = configs.flat(default.get_config()), registry.CLAIMS[name]

    assert claim.every_step or claim.given or claim.columns
    assert claim.title and len(claim.title) <= 88 and bool(claim.published) == (claim.source != verdicts.OURS)
    assert {*claim.every_step, *claim.given} <= set(fields)
    assert claim.check.__name__ == name and claim.check.__doc__
    assert bool(claim.columns) == (claim.of == verdicts.SWEEP)
