"""The summary of a sweep. Escaping in its page is in test_report.py, the whole of it in test_sweep.py."""

import json

import pytest

from catapult_jax import records
from configs import quickstart
from experiments import directory, main, summary, verdicts

pytestmark = pytest.mark.usefixtures("plain_figures")


def test_member_rows_of_a_complete_and_an_incomplete_run(tmp_path):
    config = quickstart.get_config("smoke")
    config.measure.weight_norm_every = 2
    other = config.copy_and_resolve_references()
    other.model.width = 8
    runs = [({"model.width": 32}, config), ({"model.width": 8}, other)]
    run_dir = directory.directory_of_run(tmp_path, *runs[0])
    main.run(config, run_dir)

    rows = summary.member_rows(runs, tmp_path)

    record = records.open_record(run_dir)
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    assert [row["model.width"] for row in rows] == [32, 32] and {row["run"] for row in rows} == {run_dir.name}
    assert [row["lr_given"] for row in rows] == [0.5, 1.67]
    assert events
    for m, row in enumerate(rows):
        assert row["spikes"] == sum(event["member"] == m for event in events)
        assert row["steps"] == 6 and row["dead_from"] == -1
        above = (record["lr"] > record["critical_lr_batch"]).values[m]
        assert row["critical_steps"] == pytest.approx(above.mean())
        assert row["loss_test"] == pytest.approx(float(record["loss_test"].values[m, 0]))
        assert row["weight_norm"] == pytest.approx(float(record["weight_norm"].values[m, 4]))
        assert row["lambda_max_train"] == pytest.approx(float(record["lambda_max_batch"].values[m, 5]))


def test_verdict_lines_of_few_seeds_are_a_demonstration(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"data": {"name": "digits", "fallback_for": ""}}))
    (tmp_path / "summary.csv").write_text("seed,run\n0,run\n1,run\n0,run\n")
    verdict = verdicts.Verdict("claim", "It holds", verdicts.REPRODUCED, "all", (("arm", "n"), ("sgd", "2")))

    lines = summary.verdict_lines(tmp_path, [verdict])

    assert lines == ["demonstration (2 seeds; the claim needs 5): claim: all", "  arm, n", "  sgd, 2"]


def test_columns_of_rows_that_differ():
    assert summary._columns([{"a": 1, "b": 2}, {"a": 1, "c": 3}]) == ["a", "b", "c"]


@pytest.mark.parametrize(("value", "short"), [(0.4000000059604645, 0.4), (3, 3), ("sgd", "sgd"), (1234567.75, 1234568.0)])
def test_short_of_a_number(value, short):
    assert summary._short(value) == short
