"""The page of claims, from runs on disk and from results with a known answer."""

import doctest
import json
import re
import shutil
from pathlib import Path

import pytest

from catapult_jax.events import DEFINITION
from experiments import claims, claims_page
from experiments.catalogue import EXPERIMENTS, QUESTIONS
from experiments.claim_results import Results, keep_failures
from experiments.claims_page import rows_of
from experiments.verdicts import CLAIMS, NOT_MEASURABLE, NOT_REPRODUCED, PARTLY, REPRODUCED, Verdict


@pytest.fixture(autouse=True)
def no_data(monkeypatch, plain_figures):
    monkeypatch.delenv("CATAPULT_DATA_DIR", raising=False)


def pages(page):
    """The text of the page and of its pages of details."""
    return {path: path.read_text() for path in (page, *page.with_suffix("").glob("*.md"))}


def outcomes_with(claim, *grades):
    """Results of all experiments: the settings of one claim have these verdicts, in their order; nothing else was run."""
    outcomes, left = {e.name: "not run" for e in EXPERIMENTS}, list(grades)
    for e in EXPERIMENTS:
        if claim in e.claims and left:
            verdicts = [Verdict(name, "It holds", left[0] if name == claim else NOT_MEASURABLE, "so much") for name in e.claims]
            outcomes[e.name] = Results(verdicts, "digits", {}, 1.0, "0123456789", [])
            left.pop(0)
    return outcomes


def row_of(claim, *grades):
    return next(row for row in rows_of(outcomes_with(claim, *grades)) if row.claim == claim)


def test_questions_have_every_claim_once():
    names = [name for names in QUESTIONS.values() for name in names]

    assert sorted(names) == sorted(CLAIMS)
    assert all(any(name in e.claims for e in EXPERIMENTS) for name in names)


@pytest.mark.parametrize(
    ("grades", "grade", "settings"),
    [
        ((REPRODUCED, REPRODUCED), REPRODUCED, "2 reproduced"),
        ((REPRODUCED, NOT_REPRODUCED), PARTLY, "1 reproduced, 1 not reproduced"),
        ((REPRODUCED, NOT_MEASURABLE), REPRODUCED, "1 reproduced, 1 not measurable"),
        ((NOT_MEASURABLE, NOT_MEASURABLE), NOT_MEASURABLE, "2 not measurable"),
        ((REPRODUCED,), REPRODUCED, "1 reproduced, 1 not tested"),
    ],
)
def test_rows_of_a_claim_in_two_settings(grades, grade, settings):
    row = row_of("catapults_lower_the_norm", *grades)

    assert (row.grade, row.settings, row.source) == (grade, settings, "MNIST study, NTK figures")


def test_rows_of_a_claim_of_ours_do_not_say_reproduced():
    row = row_of("overshoot_is_the_cause", *[REPRODUCED] * 3, NOT_REPRODUCED, NOT_MEASURABLE)

    assert row.grade == "ours: holds in part" and row.settings == "3 holds, 1 does not hold, 1 not measurable"


@pytest.mark.parametrize(
    ("grades", "effect"),
    [
        ((REPRODUCED, REPRODUCED, REPRODUCED), "rank2: so much"),
        ((REPRODUCED, PARTLY, PARTLY), "rank3: so much"),
        ((PARTLY, REPRODUCED, NOT_REPRODUCED), "rank4: so much"),
        ((NOT_MEASURABLE, REPRODUCED, NOT_MEASURABLE), "so much"),
    ],
)
def test_rows_show_the_effect_where_a_claim_holds_least(grades, effect):
    assert row_of("catapults_lower_the_test_loss", *grades).effect == effect


def test_answer_numbers_the_settings_where_there_are_many():
    answer = lambda *grades: claims_page._answer([row_of("directional_predicts_the_step", *grades)])

    assert "this step (12 settings)." in answer(*[REPRODUCED] * 12)
    assert "this step (12 settings; adam: so much)." in answer(*[REPRODUCED] * 3, PARTLY, *[REPRODUCED] * 8)
    assert "this step (sgd, heavy_ball)." in answer(REPRODUCED, REPRODUCED)


def test_rows_of_a_claim_leave_out_our_variants():
    """cifar_sgd has four networks and two variants of ours."""
    row = row_of("spikes_have_exceedances", *[REPRODUCED] * 4, NOT_REPRODUCED, NOT_REPRODUCED)

    assert row.grade == REPRODUCED
    assert row.settings == "4 reproduced"
    assert row.others == ("variant fcn ce: not reproduced", "variant fcn momentum: not reproduced")
    assert row_of("spikes_have_exceedances", *[REPRODUCED] * 6).others == ()
    answer = claims_page._answer([row]).replace("\n   ", "")
    assert "(fcn, cnn, wrn, vit; variant fcn ce: not reproduced; variant fcn momentum: not reproduced)." in answer


def test_answers_name_what_holds_and_what_does_not():
    outcomes = outcomes_with("first_catapult", REPRODUCED, REPRODUCED) | {
        name: result for name, result in outcomes_with("spikes_are_catapults", NOT_REPRODUCED).items() if result != "not run"
    }

    page = claims_page._answers(rows_of(outcomes), "cpu", 60.0).replace("\n    ", " ")

    assert page[page.index("- **Are the spikes") :].splitlines()[:3] == [
        "- **Are the spikes of the loss catapults?** *In part.*",
        "  - Reproduced: above the critical lr a catapult comes at once, in the top eigenspace (fcn, cnn).",
        "  - Not reproduced: a spike of gradient descent needs an lr above the critical lr of that moment (ratios: so much).",
    ]


@pytest.mark.parametrize(
    ("grades", "words"),
    [
        ((REPRODUCED,), " *Yes.*"),
        ((NOT_REPRODUCED,), " *No.*"),
        ((PARTLY,), " *In part.*"),
        ((NOT_MEASURABLE,), "\n  - Not measurable:"),
    ],
)
def test_answers_in_short(grades, words):
    """By the rows that decide; the others were not run."""
    page = claims_page._answers(rows_of(outcomes_with("published_accuracies", *grades)), "cpu", 60.0)

    assert f"- **Does the study on MNIST hold?**{words}" in page


def test_table_has_cells_of_ninety_characters_at_most():
    table = claims_page._table(rows_of(outcomes_with("first_catapult", REPRODUCED)), "claims")
    for line in table.splitlines():
        if line.startswith("| ["):
            cells = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", cell.strip()) for cell in line.strip("|").split(" | ")]
            assert max(map(len, cells)) <= 90, cells


@pytest.mark.long
def test_write_page_of_a_run_a_sweep_missing_data_and_the_rest(tmp_path):
    """A run, a sweep with two references, data that are not available, and everything else not run."""
    chosen = [e for e in EXPERIMENTS if e.name in ("cifar_gd:fcn", "batch_size:cifar2,ce", "catapults_agop:svhn2")]
    file, failures = tmp_path / "docs" / "claims.md", {}
    for experiment in chosen:
        scale = "cpu" if experiment.name.endswith("svhn2") else "smoke"
        why = claims.run_experiment(experiment, scale, tmp_path / "runs")
        failures[experiment.name] = why and claims._public(why)
    assert [name for name, why in failures.items() if why] == ["catapults_agop:svhn2"] and "svhn" in failures[
        "catapults_agop:svhn2"
    ]
    keep_failures(file, failures)

    claims_page.write_page(file, "smoke", tmp_path / "runs")

    page, written = file.read_text(), pages(file)
    details = {path.stem: text for path, text in written.items() if path != file}
    assert sum(line.startswith("| [") for line in page.splitlines()) == len(CLAIMS)
    assert f"**Events.** {DEFINITION}" in " ".join(page.split()) and str(tmp_path / "docs") not in page
    assert set(details) == {e.name.partition(":")[0] for e in EXPERIMENTS}
    assert "Data: natural_patches" in details["cifar_gd"] and "Not tested: not run." in details["cifar_gd"]
    assert "--config=configs/batch_size.py:cifar2,ce,smoke" in details["batch_size"] and "SHA-256" in details["batch_size"]
    assert "alignment of a second one" in details["batch_size"]
    assert "not available" in details["catapults_agop"]
    assert all(
        (tmp_path / "docs" / "claims" / link).is_file()
        for text in details.values()
        for link in re.findall(r"\]\((\.\./figures.*?)\)", text)
    )
    assert json.loads((tmp_path / "runs" / "cifar_gd-fcn" / "run.json").read_text())["data"]["fallback_for"] == "cifar10"

    shutil.rmtree(tmp_path / "runs")
    claims_page.write_page(file, "smoke", tmp_path / "runs")
    assert pages(file) == written  # from the results that were kept


def test_committed_pages_are_those_of_the_kept_results(tmp_path, monkeypatch):
    """Whoever edits a number on a page, and not its result, fails here."""
    docs = Path(__file__).parents[1] / "docs"
    shutil.copytree(docs / "claims", tmp_path / "docs" / "claims", ignore=shutil.ignore_patterns("*.md"))
    monkeypatch.chdir(tmp_path)  # there are no runs

    claims_page.write_page(Path("docs", "claims.md"), "cpu", Path("runs", "claims-cpu"))

    written = pages(Path("docs", "claims.md"))
    assert len(written) > 10
    for path, text in written.items():
        assert (docs.parent / path).read_text() == text, path


def test_examples_in_docstrings():
    assert not doctest.testmod(claims_page).failed
