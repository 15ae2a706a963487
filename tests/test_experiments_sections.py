"""Sections of a run's report that need more than its record."""

import pytest

from experiments import sections, verdicts
from tests.small_records import DROPS, FIG3, SPIKE, record

ENVIRONMENT = {"python": "3.11", "cores": 2}
ABOUT = {
    "status": "complete",
    "data": {"name": "digits", "fallback_for": ""},
    "kernel_check": {"examples": 8, "text": "largest relative error 1e-7"},
    "environment": ENVIRONMENT,
}
FALLBACK = {"name": "digits", "fallback_for": "cifar10"}


def report_of(about, **fields):
    run = verdicts.read_run(record(SPIKE, 1.5, DROPS), FIG3 | fields)
    return sections.Report(run, ABOUT | about, [], [], {})


def words_of(section):
    return " ".join(str(block.content.get("words", "")) for block in section.blocks)


def test_overview_has_the_planned_steps_and_the_status():
    words = words_of(sections.overview(report_of({}, steps=80)))

    assert "; 1 member, seed 0;" in words and "; 6 of 80 steps, status: complete. " in words


def test_overview_has_data_network_and_optimizer():
    facts, found = sections.overview(report_of({})).blocks

    words = facts.content["words"]
    assert words.startswith("Data digits; FCN, depth 5, width 1024; 128 training examples; ")
    assert "; lr / critical lr at the start 1.67; optimizer sgd; full batch; " in words
    assert found.content["words"].startswith("1 of 1 member has a catapult; ")


def test_overview_of_fallback_data_is_a_demonstration():
    warning, _, found = sections.overview(report_of({"data": FALLBACK})).blocks

    assert warning.kind == "warning"
    assert found.content["words"].startswith("Demonstration on digits, not cifar10: 1 of 1 member has a catapult; ")


def test_fallback_warning_names_both_data_sets():
    (warning,) = sections.fallback_warning({"name": "digits", "fallback_for": "cifar10"})

    assert warning.kind == "warning" and "digits" in warning.content["words"]
    assert "It says nothing about cifar10." in warning.content["words"]
    assert sections.fallback_warning(ABOUT["data"]) == []


@pytest.mark.parametrize("word", [verdicts.REPRODUCED, verdicts.PARTLY, verdicts.NOT_REPRODUCED])
def test_shown_verdict_of_fallback_data_or_too_few_seeds_is_a_demonstration(word):
    assert sections.shown_verdict(word, FALLBACK, 20) == "demonstration"
    assert sections.shown_verdict(word, ABOUT["data"], 4) == "demonstration (4 seeds; the claim needs 5)"
    assert sections.shown_verdict(word, ABOUT["data"], 9, min_seeds=10) == "demonstration (9 seeds; the claim needs 10)"
    assert sections.shown_verdict(word, ABOUT["data"], 5) == word


def test_shown_verdict_of_an_untested_claim_stays():
    assert sections.shown_verdict(verdicts.NOT_TESTED, FALLBACK, 1) == "not tested"


def test_claims_name_the_untested_ones():
    verdict = verdicts.Verdict("first_catapult", "It holds", verdicts.REPRODUCED, "all", (("arm",), ("sgd",)))
    report = report_of({})._replace(untested=["small_batches_help"], verdicts=[verdict])

    warning, block = sections.claims(report).blocks

    assert warning.content["words"] == "Not tested at the cadences of this preset: small_batches_help"
    assert (block.kind, block.content["word"], block.content["rows"]) == (
        "verdict", "demonstration (1 seed; the claim needs 5)", (("sgd",),),
    )  # fmt: skip


@pytest.mark.parametrize(("published", "blocks"), [(None, 1), (0.3, 2)])
def test_initialisation_has_the_published_critical_lr(published, blocks):
    section = sections.initialisation(report_of({}, published_critical_lr=published))

    assert len(section.blocks) == blocks and (published is None or "0.3 (Zhu et al. 2024)" in words_of(section))


def test_provenance_names_changes_of_the_environment():
    same = sections.provenance(report_of({"resumed_with": [ENVIRONMENT]}))
    changed = sections.provenance(report_of({"resumed_with": [ENVIRONMENT, ENVIRONMENT | {"cores": 4}]}))

    assert "Resumed 1 times; in the same environment" in words_of(same)
    assert "Resumed 2 times; the environment differed in" in words_of(changed)
    assert changed.blocks[-1].content["lines"] == ["cores: 2 at first, 4 in sitting 3"]


def test_all_sections_end_with_the_config():
    *_, last = sections.all_sections(report_of({}))

    assert last.heading == "Config" and '"top_k": 5' in words_of(last)
