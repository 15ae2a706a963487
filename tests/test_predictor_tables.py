"""The tables of criteria, on made-up steps with a known answer."""

import doctest

import pytest

from experiments import predictor_tables
from experiments.verdicts import predictor_scores as ps
from experiments.verdicts import read_run
from tests.small_records import PREDICTORS, horizon_record, predictors_record


@pytest.fixture(scope="module")
def tables():
    return list(predictor_tables.tables(read_run(horizon_record(members=3), PREDICTORS)).values())


def test_tables_have_every_criterion_baseline_and_target(tables):
    areas, precision, gains, threshold, reliability = tables
    assert areas[0] == precision[0] == ("score", *ps.TARGETS)
    assert [row[0] for row in areas[1:]] == [*ps.CRITERIA, *ps.BASELINES, "all baselines, logistic model"]
    assert (
        [row[0] for row in gains[1:]]
        == [row[0] for row in threshold[1:]]
        == [row[0] for row in reliability[1:]]
        == [*ps.CRITERIA]
    )
    assert all(len(row) == len(table[0]) for table in tables for row in table)


def test_tables_of_a_criterion_that_tells(tables):
    areas, precision, *_ = ({row[0]: dict(zip(table[0], row, strict=True)) for row in table} for table in tables)
    assert areas[ps.C7_TRACE][ps.T4[5]] == precision[ps.C7_TRACE][ps.T4[5]] == "1 [1, 1]"
    assert areas[ps.BASE_RATE][ps.T4[5]].startswith("0.5 ") and precision[ps.BASE_RATE][ps.T4[5]].startswith("0.3")


def test_reliability_counts_the_steps_of_each_bin():
    """The directional score is 1.25 where the loss rises and 0.8 elsewhere: a bin takes its lower end."""
    members = ps.members_of(read_run(predictors_record(), PREDICTORS))
    header, *rows = predictor_tables.reliability(members)
    row = dict(zip(header, next(row for row in rows if row[0] == ps.C3), strict=True))
    counts = sum(m.counts[ps.T1].sum() for m in members)
    rises = sum((m.counts[ps.T1] & m.happens[ps.T1]).sum() for m in members)
    assert row["0.8 to 1"] == f"0.00 ({counts - rises})" and row["1.25 to 2"] == f"1.00 ({rises})" and row["1 to 1.25"] == ""


def test_head_table_has_a_row_for_each_run():
    run = read_run(horizon_record(members=3), PREDICTORS)

    header, *rows = predictor_tables.head_table([run, run])

    assert len(rows) == 2 and rows[0] == rows[1] and rows[0][0] == "sgd, cifar10"
    row = dict(zip(header, rows[0], strict=True))
    assert row[f"{ps.T4[5]}: c7"] == "1 [1, 1]" and f"{ps.T1}: baselines" in row


def test_main_explains_a_directory_without_a_run(tmp_path, capsys):
    assert predictor_tables.main(["", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert predictor_tables.main(["", "--help"]) == 0 and "RUN_DIR" in capsys.readouterr().out


def test_examples_in_docstrings():
    assert not doctest.testmod(predictor_tables).failed
