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
    FORBIDDEN,
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
    ends_of_pairs,
    forced_rows,
    horizon_record,
    members_with,
    optimizer_rows,
    predictors_record,
    record,
    sgd_record,
    with_schedule,
)


def reproducing_runs():
    """For each claim on a run a record that reproduces it, and its config."""
    seeds, counts = np.repeat(np.arange(5), 4), np.array([0, 1, 2, 3] * 5)
    stage = np.array([[0, 0, 1, 1, 1, 1, 2, 2, 2]])
    raised = [1.0, 0.5, 0.4, 2, 0.4, 0.3, 0.2, 2, 0.2], [0.5, 0.5, 3, 3, 3, 3, 6, 6, 6], [2.0, 2, 2, 4, 4, 4, 4, 9, 9]
    before, rises = np.ones((5, 20)), np.where(np.arange(20) % 2, 2.0, 0.5)
    cycles = np.tile([1.0, 3.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5], (10, 1))
    caps = np.array([np.inf, 0.9] * 5, np.float32)
    pairs = members_with((2, 0) * 5, np.repeat(np.arange(5), 2), **ends_of_pairs(np.isinf(caps)))
    spikes = np.tile([1.0, 2.0, 4.0, 1.0, 0.9, 0.8], (12, 1))
    grows = np.array([1.0, 1, 1, 3, 3, 3, 3, 3])
    return {
        "first_catapult": (record(SPIKE, 1.5, DROPS), FIG3),
        "spikes_are_catapults": (record(SPIKE, 1.5, DROPS), FIG3),
        "catapult_follows_raise": (record(*raised, stage=stage), FIG4),
        "exceedance_predicts_rise": (
            record(before, 1.0, np.where(np.arange(20) % 2, 0.5, 2.0), loss_batch_after=np.tile(rises, (5, 1))),
            FIG5,
        ),
        "sgd_spikes_are_catapults": (sgd_record(BEFORE, 0.95), SGD),
        "cycles_cause_catapults": (record(cycles, 1.5, [1.0, 1, 9, 9, 9, 9, 9, 9]), with_schedule(CYCLIC, period=4)),
        "catapults_raise_alignment": (members_with(counts, seeds, agop_alignment=counts * 0.1, loss_test=-counts * 0.1), AGOP),
        "forbidding_catapults_hurts": (pairs.assign_coords(cap=("member", caps)), with_schedule(FORBIDDEN, cap_from=0)),
        "adagrad_outgrows_its_lr": (adagrad_record(grows, 0.8 * grows), with_schedule(ADAGRAD, period=4)),
        "catapults_condition_the_kernel": (
            record(spikes, 1.5, DROPS, condition_number_batch=np.tile([9.0, 9, 9, 4, 4, 4], (12, 1))),
            FIG3,
        ),
        "catapults_help_beyond_cycles": (capped_record(0.01), MNIST),
        "directional_predicts_the_step": (predictors_record(), PREDICTORS),
        "spectral_predicts_the_horizon": (horizon_record(), PREDICTORS),
        "overshoot_is_the_cause": (arms_record(remove_overshoot=0.1), with_schedule(CAUSES, cap_from=1)),
    }


def reproducing_sweeps():
    """For each claim on a sweep rows that reproduce it, and the config."""
    published = accuracy_rows({arm: 100 - value for arm, value in accuracies.PUBLISHED.items()})
    return {
        "small_batches_help": (batch_rows(0.1, 0.1), BATCH),
        "alignment_over_optimizers": (optimizer_rows(-1.0), OPTIMIZERS),
        "exceedance_predicts_for_every_optimizer": (optimizer_rows(0.0), OPTIMIZERS),
        "catapults_help_sgd": (published, MNIST),
        "published_accuracies": (published, MNIST),
        "catapults_hurt_adagrad": (published, MNIST),
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
        allowed = (verdicts.NOT_TESTED,) if key == "critical_lr_batch" else (verdicts.NOT_TESTED, verdicts.REPRODUCED)
        assert verdict.verdict in allowed, key
        assert_numbers(verdict.effect)


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

    assert_numbers(verdicts.of_run(name, read_run(both, config)).effect)


@pytest.mark.parametrize("name", verdicts.OF_SWEEP)
def test_of_sweep_decides_nothing_where_a_column_is_unknown(name):
    rows, config = reproducing_sweeps()[name]
    decide = verdicts.OF_SWEEP[name]
    columns = [key for key, value in rows[0].items() if isinstance(value, float) and key != "lr_given"]
    assert decide(rows, config).verdict == verdicts.REPRODUCED

    for column in columns:
        for is_unknown in (lambda row: True, lambda row: row["seed"] == 1):
            finding = decide([row | ({column: np.nan} if is_unknown(row) else {}) for row in rows], config)

            assert finding.verdict in (verdicts.NOT_TESTED, verdicts.REPRODUCED), (column, finding)
            assert_numbers(" ".join([finding.effect, *(cell for line in finding.table for cell in line)]))


@pytest.mark.parametrize("name", ["first_catapult", "spikes_are_catapults"])
def test_of_run_names_a_death_and_does_not_reproduce_with_it(name):
    verdict = verdicts.of_run(name, read_run(record([SPIKE, DIES], 1.5, [DROPS, DEAD_KERNEL]), FIG3))
    assert verdict.verdict == verdicts.NOT_REPRODUCED
    assert verdict.effect.endswith("; dead: 1 (member 1 from step 3) of 2 members")

    assert "dead" not in verdicts.of_run(name, read_run(record([SPIKE, SPIKE], 1.5, DROPS), FIG3)).effect


def test_of_sweep_is_not_tested_where_all_members_are_dead():
    rows = [row | {"active": False, "finished": False, "dead_from": 3} for row in optimizer_rows(-1.0)]

    verdict = verdicts.of_sweep("alignment_over_optimizers", rows, OPTIMIZERS)

    assert verdict.verdict == verdicts.NOT_TESTED and verdict.effect.endswith(f"dead: {len(rows)} of {len(rows)} members")


@pytest.mark.parametrize("name", verdicts.VERDICTS)
def test_claim_of_each_name_needs_fields_that_exist(name):
    fields, claim = configs.flat(default.get_config()), registry.CLAIMS[name]

    assert claim.every_step or claim.given
    assert {*claim.every_step, *claim.given} <= set(fields)
    assert claim.check.__name__ == name and claim.check.__doc__
    assert bool(claim.columns) == (claim.of == verdicts.SWEEP)
