"""Results of experiments: of runs, and those that were kept."""

import doctest

import pytest

from catapult_jax import records
from experiments import catalogue, claim_results
from experiments.catalogue import EXPERIMENTS
from experiments.claim_results import Results, collect, keep_failures, of_runs
from experiments.verdicts import REPRODUCED, Verdict

FCN = next(e for e in EXPERIMENTS if e.name == "cifar_gd:fcn")
CNN = next(e for e in EXPERIMENTS if e.name == "cifar_gd:cnn")
VARIANT = next(e for e in EXPERIMENTS if e.name == "cifar_sgd:fcn,ce")


def results_of(experiment, statement="The peak is above 1.2"):
    verdicts = [Verdict(name, statement, REPRODUCED, "so much", (("a", "b"), ("1", "2")), "more") for name in experiment.claims]
    return Results(verdicts, "digits", {"name": "closed form"}, 1.0, "0123456789", [])


@pytest.fixture
def runs(monkeypatch):
    """Experiment -> the results of its runs on disk; nothing else is complete."""
    found = {}
    monkeypatch.setattr(claim_results, "of_runs", lambda experiment, scale, workdir: found.get(experiment.name, "not run"))
    return found


def kept(tmp_path, runs, experiment, results, **config):
    """Keep a result, then forget its runs. ``config`` changes the fields that are kept with it."""
    runs[experiment.name] = results
    collect(tmp_path / "claims.md", "cpu", tmp_path / "runs")
    del runs[experiment.name]
    file = tmp_path / "claims" / f"{experiment.folder}.json"
    fields = records.read_json(file)
    records.write_json(file, fields | {"config": fields["config"] | config})


def outcome(tmp_path, experiment):
    return collect(tmp_path / "claims.md", "cpu", tmp_path / "runs")[experiment.name]


def test_collect_gives_what_was_kept(tmp_path, runs):
    kept(tmp_path, runs, FCN, results_of(FCN))

    assert outcome(tmp_path, FCN) == results_of(FCN)
    assert outcome(tmp_path, CNN) == "not run"


def test_collect_prefers_the_runs(tmp_path, runs):
    kept(tmp_path, runs, FCN, results_of(FCN))
    runs[FCN.name] = results_of(FCN)._replace(seconds=2.0)

    assert outcome(tmp_path, FCN).seconds == 2.0


def test_collect_of_another_directory_of_runs(tmp_path, runs):
    """Paths of other runs in a config are not part of what is compared."""
    with_reference = next(e for e in EXPERIMENTS if e.references)
    kept(tmp_path, runs, with_reference, results_of(with_reference))

    assert collect(tmp_path / "claims.md", "cpu", tmp_path / "elsewhere")[with_reference.name] == results_of(with_reference)


@pytest.mark.parametrize("field", [{"steps": 7}, {"members.seed": [1]}])
def test_collect_of_a_result_with_another_config(tmp_path, runs, field):
    kept(tmp_path, runs, FCN, results_of(FCN), **field)

    assert outcome(tmp_path, FCN) == "run with another config"


def test_collect_of_a_result_from_before_a_field_existed(tmp_path, runs):
    kept(tmp_path, runs, FCN, results_of(FCN))
    file = tmp_path / "claims" / "cifar_gd-fcn.json"
    fields = records.read_json(file)
    del fields["config"]["run.float64"]
    records.write_json(file, fields)

    assert outcome(tmp_path, FCN) == results_of(FCN)


def test_collect_of_a_result_from_before_a_claim_existed(tmp_path, runs):
    kept(tmp_path, runs, FCN, results_of(FCN)._replace(verdicts=[]))

    assert outcome(tmp_path, FCN) == "run before one of its claims was made"


def test_collect_of_a_result_with_another_criterion(tmp_path, runs):
    """Numbers of a config may differ between settings, words may not; a variant of ours may have its own."""
    kept(tmp_path, runs, FCN, results_of(FCN))

    runs[CNN.name] = results_of(CNN, "The peak is above 1.5")
    assert outcome(tmp_path, FCN) == results_of(FCN)
    runs[CNN.name] = results_of(CNN, "The peak is above 1.5 in every run")
    assert outcome(tmp_path, FCN) == "judged by another criterion"


def test_collect_of_a_variant_with_its_own_criterion(tmp_path, runs):
    counted = next(e for e in EXPERIMENTS if e.name == "cifar_sgd:fcn")
    kept(tmp_path, runs, counted, results_of(counted))
    runs[VARIANT.name] = results_of(VARIANT, "The decrement rises")

    assert outcome(tmp_path, counted) == results_of(counted)


def test_collect_of_a_result_that_was_edited(tmp_path, runs):
    kept(tmp_path, runs, FCN, results_of(FCN))
    file = tmp_path / "claims" / "cifar_gd-fcn.json"
    file.write_text(file.read_text().replace("so much", "so more"))

    with pytest.raises(records.DamagedFile, match=r"cifar_gd-fcn\.json is damaged"):
        outcome(tmp_path, FCN)


@pytest.mark.parametrize("field", ["config", "verdicts", "seconds", "other"])
def test_collect_of_a_result_with_other_fields(tmp_path, runs, field):
    """As another version may write it."""
    kept(tmp_path, runs, FCN, results_of(FCN))
    file = tmp_path / "claims" / "cifar_gd-fcn.json"
    fields = records.read_json(file)
    records.write_json(file, fields | {"other": 1} if field == "other" else {k: v for k, v in fields.items() if k != field})

    with pytest.raises(records.DamagedFile, match="has not the fields of a result"):
        outcome(tmp_path, FCN)


def test_keep_failures_of_a_long_reason(tmp_path, runs):
    page = tmp_path / "claims.md"
    keep_failures(page, {FCN.name: "x" * 64})  # as long as a checksum
    keep_failures(page, {CNN.name: "no data"})

    assert outcome(tmp_path, FCN) == "x" * 64


def test_keep_failures_until_an_experiment_runs(tmp_path, runs):
    page = tmp_path / "claims.md"
    keep_failures(page, {FCN.name: "no data", CNN.name: "no data"})
    keep_failures(page, {FCN.name: None})

    assert (outcome(tmp_path, FCN), outcome(tmp_path, CNN)) == ("not run", "no data")
    kept(tmp_path, runs, CNN, results_of(CNN))
    assert outcome(tmp_path, CNN) == results_of(CNN)


def test_of_runs_with_another_config(tmp_path, plain_figures, monkeypatch):
    from experiments import claims

    monkeypatch.delenv("CATAPULT_DATA_DIR", raising=False)
    claims.run_experiment(FCN, "smoke", tmp_path)
    config = records.read_json(tmp_path / "cifar_gd-fcn" / "config.json")
    assert isinstance(of_runs(FCN, "smoke", tmp_path), Results)

    records.write_json(tmp_path / "cifar_gd-fcn" / "config.json", config | {"steps": 7})

    assert of_runs(FCN, "smoke", tmp_path) == "run with another config"


def test_of_runs_of_what_needs_a_gpu(tmp_path):
    experiment = next(e for e in EXPERIMENTS if e.needs_gpu)

    assert of_runs(experiment, "cpu", tmp_path) == "needs a GPU"
    assert not catalogue.is_part_of(experiment, "cpu") and catalogue.is_part_of(experiment, "gpu")


def test_examples_in_docstrings():
    assert not doctest.testmod(claim_results).failed
