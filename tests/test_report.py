"""The report of a run: names that look like HTML, and networks that die."""

import json
from urllib.parse import unquote

import pytest
from matplotlib.figure import Figure

from catapult_jax import records
from catapult_jax.events import DEFINITION
from catapult_jax.report import members, sections
from configs import cifar_gd, quickstart
from experiments import build, main, report, summary, verdicts
from experiments.verdicts import registry
from tests.helpers_page import SCRIPT, Page, safe_page


@pytest.fixture
def scripted(monkeypatch, plain_figures):
    """Data, labels and claims with names that are HTML."""
    load, groups = build.load_data, members.by_setting
    monkeypatch.setattr(build, "load_data", lambda config: (load(config)[0]._replace(name=f"data {SCRIPT}"), f"other {SCRIPT}"))
    finding = verdicts.Finding(SCRIPT, verdicts.NOT_TESTED, SCRIPT, ((SCRIPT,),))
    claim = registry.CLAIMS["first_catapult"]._replace(check=lambda run: finding)
    monkeypatch.setitem(registry.CLAIMS, "first_catapult", claim)
    monkeypatch.setattr(sections, "by_setting", lambda *a: [(f"label {SCRIPT}", numbers) for _, numbers in groups(*a)])


def test_build_escapes_title_data_claims_config_and_labels(tmp_path, scripted):
    config = quickstart.get_config("smoke")
    config.title, config.steps = f"title {SCRIPT}", 3

    main.run(config, tmp_path / "<script>run")

    page = safe_page((tmp_path / "<script>run" / "report.html").read_text())
    for word in ("title", "data", "other", "label"):
        assert f"{word} {SCRIPT}" in page.words
    assert page.words.count(SCRIPT) > 10 and DEFINITION in page.words
    assert json.dumps(f"title {SCRIPT}") in page.words  # in the config


def test_write_summary_escapes_axes_settings_runs_and_failures(tmp_path, plain_figures):
    row = {
        "axis <script>": SCRIPT,
        "setting": SCRIPT,
        "seed": 0,
        "finished": True,
        "active": True,
        "dead_from": -1,
        "catapults": 1,
    }
    lost = row | {"finished": False, "active": False}
    rows = [row | {"run": "width=<script>\"'?#%41"}, lost | {"run": "other", "dead_from": 3}, lost | {"run": "third"}]
    about = {"name": SCRIPT, "fallback_for": SCRIPT}
    summary.write_summary(rows, ["axis <script>"], quickstart.get_config(), tmp_path, SCRIPT, {"run <script>": SCRIPT}, about)

    page = safe_page((tmp_path / "summary.html").read_text())
    assert "axis <script>" in page.words and f"run <script>: {SCRIPT}" in page.words
    assert [unquote(link) for link in page.attributes["href"]] == [f"./{row['run']}/report.html" for row in rows]
    assert not set("<>\"'?#") & set("".join(page.attributes["href"]))  # nor an end of the path
    assert "2 of 3 members did not finish: 1 diverged, 1 with a dead network." in page.words
    assert "dead from step 3" in page.words and "diverged" in page.words


def test_build_of_a_run_whose_networks_die(tmp_path, plain_figures):
    """A few units at a large lr: the loss goes to 2e7, and then every unit is off."""
    config = quickstart.get_config("smoke")
    config.members.lr, config.model.width = (1.67,), 8

    results = main.run(config, tmp_path / "run")

    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (about["status"], about["lost"], about["dead"]) == ("dead", [], [{"member": 0, "step": 3}])
    assert [e["kind"] for e in records.read_json_lines(tmp_path / "run" / "events.jsonl")] == ["death"]
    assert all(v.verdict != verdicts.REPRODUCED and "dead: 1 (member 0 from step 3)" in v.details for v in results)
    page = Page((tmp_path / "run" / "report.html").read_text())
    assert "status: dead, 1 dead" in page.words and "Members whose network is dead" in page.words


def test_build_writes_the_same_files_again(tmp_path, plain_figures):
    config = quickstart.get_config("smoke")
    config.steps = 3
    results, files = main.run(config, tmp_path / "run"), ("events.jsonl", "report.html")
    first = {name: (tmp_path / "run" / name).read_bytes() for name in files}

    again = report.build(tmp_path / "run")

    assert again == results and first == {name: (tmp_path / "run" / name).read_bytes() for name in files}


def test_verdict_lines_are_those_of_the_page(tmp_path, plain_figures):
    config = quickstart.get_config("smoke")
    config.steps = 20
    results = main.run(config, tmp_path / "run")

    lines = report.verdict_lines(tmp_path / "run", results)

    page = Page((tmp_path / "run" / "report.html").read_text())
    words = [line.partition(": ")[0] for line in lines]
    assert words == ["demonstration (1 seed; the claim needs 5)", "not measurable"] and all(
        word in page.words for word in words
    )


def test_a_run_that_is_not_finished_tests_no_claim(tmp_path, plain_figures):
    config = quickstart.get_config("smoke")
    config.steps = 3
    main.run(config, tmp_path / "run")
    about = records.read_json(tmp_path / "run" / "run.json")
    records.write_json(tmp_path / "run" / "run.json", about | {"status": "running"})

    verdicts = report.build(tmp_path / "run")

    assert verdicts and all(
        v.verdict == "not tested" and v.effect.startswith("the run has 3 of 3 steps; so far: ") for v in verdicts
    )


def test_figures_of_fallback_data_say_so(tmp_path, monkeypatch):
    notes = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: notes.append([text.get_text() for text in figure.texts]))
    config = cifar_gd.get_config("smoke")
    config.steps, config.data.dir = 2, None
    monkeypatch.delenv("CATAPULT_DATA_DIR", raising=False)

    main.run(config, tmp_path / "run")

    assert notes and all("natural_patches, not cifar10" in texts for texts in notes)


def test_title_of_names_the_data_in_use():
    config = {"title": "Fig. 3", "model": {"name": "fcn"}, "data": {"name": "cifar10"}}

    assert report.title_of(config, {"data": {"name": "natural_patches"}}) == "Fig. 3: FCN on natural_patches"
