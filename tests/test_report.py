"""Pages: what is not HTML is escaped, whatever it says; where Matplotlib keeps its files."""

import json
import os
import stat
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import experiments
from catapult_jax import records
from catapult_jax.events import DEFINITION
from catapult_jax.report import page
from configs import quickstart
from experiments import analysis, build, main, sections, summary, verdicts
from experiments.verdicts import registry

SCRIPT = "<script>alert('x')</script>\"&"


class Page(HTMLParser):
    """Tags, attributes, and text of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.words = set(), {}, ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value)

    def handle_data(self, data):
        self.words += data


def safe(html):
    page = Page(html)
    assert "script" not in page.tags and "<script" not in html
    assert set(page.attributes) <= {"lang", "charset", "class", "alt", "src", "href"}
    return page


def test_page_escapes_its_parts_and_its_title():
    blocks = [
        *(make(SCRIPT) for make in (page.text, page.warning, page.preformatted)),
        page.table((SCRIPT,), [(SCRIPT,)]),
        page.items([SCRIPT]),
        page.links({SCRIPT: SCRIPT}),
        sections.verdict_block(claim()._replace(table=((SCRIPT,), (SCRIPT,)))),
    ]
    found = safe(page.render(SCRIPT, [page.Section(SCRIPT, blocks)]))
    title, heading, plain, cells, lists, claimed = 2, 1, 3, 2, 2, 4
    assert found.words.count(SCRIPT) == title + heading + plain + cells + lists + claimed and found.attributes["href"] == [
        SCRIPT
    ]


def claim():
    return verdicts.Verdict(SCRIPT, SCRIPT, verdicts.NOT_TESTED, SCRIPT, ((SCRIPT,),))


@pytest.fixture
def scripted(monkeypatch, plain_figures):
    """Data, labels and claims with names that are HTML."""
    load = build.load_data
    monkeypatch.setattr(build, "load_data", lambda config: (load(config)[0]._replace(name=f"data {SCRIPT}"), f"other {SCRIPT}"))
    scripted_claim = registry.CLAIMS["first_catapult"]._replace(check=lambda record, config: verdicts.Finding(*claim()[1:]))
    monkeypatch.setitem(registry.CLAIMS, "first_catapult", scripted_claim)
    monkeypatch.setattr(
        sections, "by_setting", lambda *a: [(f"label {SCRIPT}", members) for _, members in analysis.by_setting(*a)]
    )


def test_report_escapes_title_data_claims_config_and_labels(tmp_path, scripted):
    config = quickstart.get_config("smoke")
    config.title, config.steps = f"title {SCRIPT}", 3
    main.run(config, tmp_path / "<script>run")
    found = safe((tmp_path / "<script>run" / "report.html").read_text())
    for word in ("title", "data", "other", "label"):
        assert f"{word} {SCRIPT}" in found.words
    assert found.words.count(SCRIPT) > 10 and DEFINITION in found.words
    assert json.dumps(f"title {SCRIPT}") in found.words  # in the config


def test_summary_escapes_axes_settings_runs_and_failures(tmp_path, plain_figures):
    row = {
        "axis <script>": SCRIPT,
        "setting": SCRIPT,
        "seed": 0,
        "finished": True,
        "active": True,
        "dead_from": -1,
        "catapults": 1,
    }
    rows = [row | {"run": "width=<script>\"'?#%41"}, row | {"run": "other", "finished": False, "dead_from": 3}]
    about = {"name": SCRIPT, "fallback_for": SCRIPT}
    summary.write_summary(rows, ["axis <script>"], quickstart.get_config(), tmp_path, SCRIPT, {"run <script>": SCRIPT}, about)
    found = safe((tmp_path / "summary.html").read_text())
    assert "axis <script>" in found.words and f"run <script>: {SCRIPT}" in found.words
    assert [unquote(link) for link in found.attributes["href"]] == [f"./{row['run']}/report.html" for row in rows]
    assert not set("<>\"'?#") & set("".join(found.attributes["href"]))  # nor an end of the path
    assert "The network of 1 of 2 members is dead" in found.words


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def test_private_folder_is_for_this_user_alone(tmp_path):
    made = experiments._private_folder(str(tmp_path / "new"))
    assert made == str(tmp_path / "new") and mode(made) == 0o700
    (tmp_path / "readable").mkdir(mode=0o755)
    assert mode(experiments._private_folder(str(tmp_path / "readable"))) == 0o700


@pytest.mark.parametrize("kind", ["writable", "link", "file"])
def test_private_folder_is_a_new_one_where_it_can_not_be_trusted(kind, tmp_path):
    path, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    elsewhere.mkdir()
    if kind == "writable":
        path.mkdir()
        path.chmod(0o777)
    elif kind == "link":
        path.symlink_to(elsewhere)
    else:
        path.write_text("")
    made = experiments._private_folder(str(path))
    assert made != str(path) and mode(made) == 0o700 and os.stat(made).st_uid == os.getuid()
    os.rmdir(made)


def test_matplotlib_keeps_to_the_place_that_the_user_named(tmp_path):
    code = "import os, experiments; print(os.environ['MPLCONFIGDIR'])"
    environment = os.environ | {"MPLCONFIGDIR": str(tmp_path / "mine")}
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "mine")


def test_a_run_whose_networks_die_says_so(tmp_path, plain_figures):
    """A few units at a large lr: the loss goes to 2e7, and then every unit is off."""
    config = quickstart.get_config("smoke")
    config.members.lr, config.model.width = (1.67,), 8
    found = main.run(config, tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (about["status"], about["lost"], about["dead"]) == ("dead", [], [{"member": 0, "step": 3}])
    assert [e["kind"] for e in records.read_json_lines(tmp_path / "run" / "events.jsonl")] == ["death"]
    assert all(v.verdict != verdicts.REPRODUCED and "dead: 1 (member 0 from step 3)" in v.effect for v in found)
    found = Page((tmp_path / "run" / "report.html").read_text())
    assert "status: dead, 1 dead" in found.words and "Members whose network is dead" in found.words
