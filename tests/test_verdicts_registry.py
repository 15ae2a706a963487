"""The registry of claims, and the record of a run that they are given."""

import numpy as np
import pytest

from catapult_jax.report import analysis
from catapult_jax.spikes import find_events
from experiments import verdicts
from experiments.verdicts import catapults, read_run, registry
from tests.small_records import DROPS, FIG3, SPIKE, record


@pytest.fixture
def empty_registry(monkeypatch):
    """A copy of the registry, for one test."""
    monkeypatch.setattr(registry, "CLAIMS", dict(registry.CLAIMS))


def test_claim_registers_a_function_of_a_run(empty_registry):
    @verdicts.claim(
        of=verdicts.RUN, title="The lr is positive", every_step=("measure.lambda_max_batch_every",), given=("run.stop_loss",)
    )
    def lr_is_positive(run):
        """The lr is positive."""
        holds = bool((run.record["lr"].values > 0).all())
        return verdicts.Finding("lr > 0", verdicts.REPRODUCED if holds else verdicts.NOT_REPRODUCED, "all steps")

    assert verdicts.VERDICTS["lr_is_positive"] is verdicts.OF_RUN["lr_is_positive"] is lr_is_positive
    assert "lr_is_positive" not in verdicts.OF_SWEEP and len(verdicts.OF_RUN) + len(verdicts.OF_SWEEP) == len(verdicts.VERDICTS)
    assert verdicts.NEEDS["lr_is_positive"] == ("measure.lambda_max_batch_every",)
    assert verdicts.NEEDS_SOME["lr_is_positive"] == ("run.stop_loss",)

    verdict_of = lambda data: verdicts.of_run("lr_is_positive", read_run(data, FIG3))
    assert verdict_of(record(SPIKE, 1.5, DROPS)) == verdicts.Verdict(
        "lr_is_positive", "lr > 0", verdicts.REPRODUCED, "all steps"
    )
    assert verdict_of(record(SPIKE, -1.5, DROPS)).verdict == verdicts.NOT_REPRODUCED
    assert (
        verdict_of(record(SPIKE, 1.5, [np.nan] * 6)).verdict == verdicts.NOT_MEASURABLE
    )  # it needs the critical lr of every step


def test_claim_registers_a_function_of_a_sweep_with_its_columns(empty_registry):
    @verdicts.claim(of=verdicts.SWEEP, title="Rows", columns=("loss_test",))
    def sweep_has_rows(rows, config):
        """The sweep has rows."""
        return verdicts.Finding("rows", verdicts.REPRODUCED, f"{len(rows)} rows")

    assert verdicts.OF_SWEEP["sweep_has_rows"] is sweep_has_rows and "sweep_has_rows" not in verdicts.NEEDS
    assert verdicts.of_sweep("sweep_has_rows", [{"loss_test": 1.0}], FIG3).effect == "1 rows"
    missing = verdicts.of_sweep("sweep_has_rows", [{}], FIG3)
    words = "not measured in every run: loss_test"
    assert missing == verdicts.Verdict("sweep_has_rows", "The sweep has rows", verdicts.NOT_TESTED, words)


def test_claim_refuses_a_second_one_of_that_name(empty_registry):
    def first_catapult(run):
        """Another one."""

    with pytest.raises(ValueError, match="claim='first_catapult' is registered already; allowed: another name"):
        verdicts.claim(of=verdicts.RUN, title="Another")(first_catapult)
    assert verdicts.VERDICTS["first_catapult"] is catapults.first_catapult


def test_claim_refuses_other_values_of_its_arguments():
    with pytest.raises(ValueError, match="of='member'; allowed: 'run' or 'sweep'"):
        verdicts.claim(of="member", title="Of a member")
    with pytest.raises(ValueError, match="allowed: none for a claim of a run"):
        verdicts.claim(of=verdicts.RUN, title="Columns", columns=("loss_test",))
    for fields in ({"published": "It rises"}, {"source": "a study"}):
        with pytest.raises(ValueError, match="allowed: both, or none for a claim of ours"):
            verdicts.claim(of=verdicts.RUN, title="Half", **fields)


@pytest.mark.parametrize(
    ("tests", "verdict"),
    [
        ((True, True), verdicts.REPRODUCED),
        ((True, None), verdicts.NOT_MEASURABLE),
        ((None, False), verdicts.NOT_REPRODUCED),
        ((), verdicts.REPRODUCED),
    ],
)
def test_decide(tests, verdict):
    assert registry.decide(*tests) == verdict


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        ((True, True), verdicts.REPRODUCED),
        ((False, True), verdicts.PARTLY),
        ((False, False), verdicts.NOT_REPRODUCED),
        ((True, None), verdicts.NOT_MEASURABLE),
    ],
)
def test_grade(parts, verdict):
    assert registry.grade(*parts) == verdict


def test_read_run_finds_the_events_of_a_factor_once(monkeypatch):
    factors, members = [], 40
    monkeypatch.setattr(analysis, "find_events", lambda *a, **k: factors.append(k["factor"]) or find_events(*a, **k))
    run = read_run(record(np.array(SPIKE) * np.arange(1, members + 1)[:, None], 1.5, DROPS), FIG3)

    for _ in range(3):
        events = run.events(1.2)
        verdicts.of_run("first_catapult", run)
    assert factors == [1.2] * members and all(len(row) == 1 for row in events)

    verdicts.of_run("spikes_are_catapults", run)
    run.events(FIG3["events"]["factor"])
    assert factors[members:] == [FIG3["events"]["factor"]] * members  # another factor
