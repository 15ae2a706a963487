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


def report_of(about, **fields):
    run = verdicts.read_run(record(SPIKE, 1.5, DROPS), FIG3 | fields)
    return sections.Report(run, ABOUT | about, [], [], {})


def words_of(section):
    return " ".join(str(block.content.get("words", "")) for block in section.blocks)


def test_overview_has_the_planned_steps_and_the_status():
    words = words_of(sections.overview(report_of({}, steps=80)))

    assert words == "1 members, 6 of 80 steps, status: complete"


def test_fallback_warning_names_both_data_sets():
    (warning,) = sections.fallback_warning({"name": "digits", "fallback_for": "cifar10"})

    assert warning.kind == "warning" and "digits" in warning.content["words"]
    assert "It says nothing about cifar10." in warning.content["words"]
    assert sections.fallback_warning(ABOUT["data"]) == []


def test_claims_name_the_untested_ones():
    verdict = verdicts.Verdict("first_catapult", "It holds", verdicts.REPRODUCED, "all", (("arm",), ("sgd",)))
    report = report_of({})._replace(untested=["small_batches_help"], verdicts=[verdict])

    warning, block = sections.claims(report).blocks

    assert warning.content["words"] == "Not tested at the cadences of this preset: small_batches_help"
    assert (block.kind, block.content["word"], block.content["rows"]) == ("verdict", "reproduced", (("sgd",),))


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
