"""The arms of a causal test from a config: kinds, and factors from the run with the arm cap."""

import numpy as np
import pytest

from catapult_jax import records
from catapult_jax.training.interventions import KINDS
from configs import causes
from experiments.arms import ARMS
from experiments.build.arms import build_arms, facts_of_cap_run
from experiments.config import ConfigError

STEPS = 8


def cap_run(folder, *, seeds=(3, 4), stopped_at=6, arm="cap"):
    """A run with one capped member for each seed, whose lr is a half, a quarter, ... of 2 from step 2 on."""
    folder.mkdir()
    lr = np.full((len(seeds), STEPS), 2.0, np.float32)
    lr[:, 2:] = 2 * np.array([0.5, 0.25, 0.75, 1.0, 0.5, 0.5], np.float32)
    stopped = np.zeros((len(seeds), STEPS), bool)
    stopped[:, stopped_at:] = True
    members = {
        "seed": np.array(seeds, np.int32),
        "lr0": np.full(len(seeds), 2.0, np.float32),
        "intervention": np.full(len(seeds), ARMS.index(arm), np.int32),
    }
    series = {"lr": lr, "stopped": stopped}
    records.create(folder, members=members, steps=STEPS, shapes=series, about={"title": "cap"})
    records.write(folder, 0, series)
    return folder


def config_with(folder):
    config = causes.get_config("rank2")
    config.steps, config.schedule.cap_from, config.intervention.cap_run = STEPS, 2, str(folder)
    return config


def test_build_arms_has_the_kind_of_each_arm(tmp_path):
    config = config_with(cap_run(tmp_path / "cap"))

    arm = build_arms(config, ARMS, np.full(len(ARMS), 3))

    kinds = [KINDS[kind] for kind in arm.kind]
    assert dict(zip(ARMS, kinds, strict=True)) == {
        "none": "none", "cap": "none", "remove_overshoot": "remove_overshoot", "placebo": "placebo", "low_bulk": "low_bulk",
        "shuffled_cap": "low_lr", "mean_cap": "low_lr", "force": "force", "sham": "sham",
    }  # fmt: skip
    assert arm.start.tolist() == [2] * len(ARMS)


def test_build_arms_takes_the_mean_factor_of_the_capped_member(tmp_path):
    arm = build_arms(config_with(cap_run(tmp_path / "cap")), ("mean_cap", "low_bulk", "placebo"), np.array([3, 3, 3]))

    mean = (0.5 + 0.25 + 0.75 + 1.0) / 4  # steps 2 to 5: it stopped at step 6
    np.testing.assert_allclose(arm.factors[:2, 2:], mean, rtol=1e-6)
    assert (arm.factors[:2, :2] == 1).all() and (arm.factors[2] == 1).all()


def test_build_arms_shuffles_all_factors_by_the_seed(tmp_path):
    config = config_with(cap_run(tmp_path / "cap"))

    arm = build_arms(config, ("shuffled_cap",) * 2, np.array([3, 3]))

    first, again = arm.factors
    assert sorted(first[2:6]) == [0.25, 0.5, 0.75, 1.0] and set(first[6:]) <= {0.25, 0.5, 0.75, 1.0}
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"seeds": (5,)},
            "has no arm cap with the seed 3 and steps from schedule.cap_from=2 on; allowed: a run that has; this one has the seeds: 5",
        ),
        ({"arm": "none"}, "has no arm cap with the seed 3 and steps from schedule.cap_from=2 on; allowed: .*the seeds: none"),
    ],
)
def test_build_arms_refuses_a_run_without_the_capped_member(tmp_path, changes, message):
    config = config_with(cap_run(tmp_path / "cap", **changes))

    with pytest.raises(ConfigError, match=message):
        build_arms(config, ("mean_cap",), np.array([3]))


def test_build_arms_refuses_a_missing_run(tmp_path):
    with pytest.raises(ConfigError, match=r"intervention.cap_run='.*none' can't be read .*; allowed: a finished run"):
        build_arms(config_with(tmp_path / "none"), ("mean_cap",), np.array([3]))


def test_facts_of_cap_run_tell_factors_apart(tmp_path):
    facts = []
    for name, changes in (("a", {}), ("b", {}), ("c", {"stopped_at": 5})):
        config = config_with(cap_run(tmp_path / name, **changes))
        config.members.intervention = ("none", "mean_cap")
        facts.append(facts_of_cap_run(config, build_arms(config, ("none", "mean_cap"), np.array([3, 3]))))

    assert [about["cap_run"] for about in facts] == [str(tmp_path / name) for name in "abc"]
    assert facts[0]["sha256"] == facts[1]["sha256"] != facts[2]["sha256"] and len(facts[0]["sha256"]) == 64


def test_facts_of_cap_run_without_an_arm_that_needs_it():
    config = causes.get_config("rank2")
    config.members.intervention = ("none", "placebo")

    assert facts_of_cap_run(config, build_arms(config, ("none", "placebo"), np.array([3, 3]))) is None
    assert facts_of_cap_run(config, None) is None
