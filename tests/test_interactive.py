"""The interactive page: what it holds of a record, and what it loads."""

import json
import re
import sys
from html import unescape

import numpy as np
import pytest
import xarray as xr
from bokeh.document import Document
from hypothesis import given, settings
from hypothesis import strategies as st

from catapult_jax import events as library_events
from catapult_jax import records
from catapult_jax.report import Settings, analysis, build_interactive, build_report, interactive, traces
from catapult_jax.report.__main__ import main
from configs import quickstart
from experiments import main as experiment
from experiments import report
from tests.helpers_page import SCRIPT, Page
from tests.small_records import DROPS, FALLING, SPIKE, record

TWO = np.array([SPIKE, FALLING])


def small(**more):
    """Two members, of which the first has a catapult."""
    return record(TWO, 1.5, np.array([DROPS, np.full(6, 9.0)]), **more).drop_vars("loss_batch")


def held(page):
    """The document of Bokeh that a page holds, as JSON."""
    (data,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page.read_text(), re.DOTALL)
    (document,) = json.loads(unescape(data)).values()
    return document


def figures(page):
    """Name of the series -> its figure."""
    return {figure.name: figure for figure, _, _ in Document.from_json(held(page)).roots[0].children}


def lines(figure):
    """Columns of each member, by its number."""
    return {renderer.tags[0]: renderer.data_source.data for renderer in figure.renderers}


def wide_record(steps=6000):
    """A falling loss with two narrow spikes, longer than a line may be."""
    loss = np.linspace(1.0, 0.5, steps)
    loss[2000:2003], loss[4000:4003] = (3.0, 9.0, 3.0), (2.0, 5.0, 2.0)
    return xr.Dataset({"loss_train": (("member", "step"), loss[None])})


def test_page_holds_the_values_of_the_record(tmp_path):
    data = small(agop_alignment=TWO / 10)

    shown = figures(build_interactive(data, title="mine", folder=tmp_path))

    assert list(shown) == ["events", "loss_train", "lr_over_critical_lr", "lambda_max_batch", "fraction_top", "agop_alignment"]
    expected = {name: data[name].values for name in ("loss_train", "lambda_max_batch", "agop_alignment")}
    expected |= {"lr_over_critical_lr": (data["lr"] / data["critical_lr_batch"]).values, "fraction_top": np.full((2, 6), 0.99)}
    for name, values in expected.items():
        for m, columns in lines(shown[name]).items():
            np.testing.assert_allclose(columns["value"], values[m])
            assert columns["step"].tolist() == list(range(6))
    columns = lines(shown["loss_train"])[0]
    np.testing.assert_allclose(columns["ratio"], expected["lr_over_critical_lr"][0])
    np.testing.assert_allclose(columns["lr"], 1.5)
    assert len({figure.x_range.id for figure in shown.values()}) == 1


def test_page_holds_the_events(tmp_path):
    page = build_interactive(small(), title="mine", folder=tmp_path)

    ((event,), _) = analysis.run_events(small(), Settings())
    bars = lines(figures(page)["events"])
    assert bars[0] == {
        "kind": ["catapult"], "left": [event.onset], "right": [event.end], "color": ["#D55E00"], "fill": [1.0], "hatch": [" "],
        "peak": [str(event.peak)], "close": [str(event.end)], "ratio": ["4"], "overshoot": [f"{event.overshoot:.4g}"], "number": [0],
    }  # fmt: skip
    assert bars[1]["kind"] == []
    (spike,) = traces.spike_rows([[event], []], ["member 0", "member 1"], 5)
    assert (spike["member"], spike["onset"], spike["close"]) == (0, event.onset, event.end)
    assert spike["start"] < event.onset and spike["stop"] > event.end and str(event) in spike["sentence"]
    assert str(event) in json.dumps(held(page)["callbacks"])
    (option,) = re.findall(r'<option value="0">(.*?)</option>', page.read_text())
    assert option.startswith("member 0, seed 0, ") and option.endswith(spike["words"].removeprefix("member 0"))


def test_page_loads_nothing(tmp_path):
    html = build_interactive(small(), title="mine", folder=tmp_path).read_text()

    tags = re.findall(
        r"<(?:script|link|img|iframe)\b[^>]*>", re.sub(r"(<script[^>]*>).*?</script>", r"\1", html, flags=re.DOTALL)
    )
    assert len(tags) > 3 and not any(re.search(r"\b(src|href)\s*=", tag) for tag in tags)
    assert "url(http" not in html and "@import" not in html


def test_page_opens_as_the_report(tmp_path, plain_figures):
    opening = lambda build: re.findall(r"<p>.*?</p>", build(small(), title="mine", folder=tmp_path).read_text())[:2]

    assert opening(build_interactive) == opening(build_report)


def test_page_escapes_title_and_labels(tmp_path):
    data = small().assign_coords(intervention=("member", [0, 1])).assign_attrs(interventions=[SCRIPT, "none"])

    page = build_interactive(data, title=SCRIPT, folder=tmp_path)

    html = page.read_text()
    assert SCRIPT not in html and "<script>alert" not in html
    assert Page(html).words.count(SCRIPT) >= 4  # title, heading, the choice of the member, its spike
    names = {line.name for line in figures(page)["loss_train"].renderers}
    assert names == {f"member 0, seed 0, {SCRIPT}", "member 1, seed 1, none"}  # the hover escapes them


@pytest.mark.parametrize(
    ("name", "shown"),
    [("loss_train", ["loss_train"]), ("lambda_max_batch", ["lambda_max_batch"]), ("gradient_norm", []), ("lr", [])],
)
def test_page_leaves_out_what_is_not_on_record(name, shown, tmp_path):
    data = xr.Dataset({name: (("member", "step"), np.ones((2, 5)))})

    page = build_interactive(data, title="mine", folder=tmp_path)

    words = Page(page.read_text()).words
    assert ("Spikes were not looked for" in words) == (name != "loss_train")
    assert ("No series that this page draws is on record." in words) == (not shown)
    if shown:
        assert list(figures(page)) == shown and set(lines(figures(page)[name])[0]) == {"step", "value"}
    else:
        assert "script" not in Page(page.read_text()).tags


def test_panels_leave_out_values_that_an_axis_cannot_show():
    loss = np.array([[1.0, 0.0, np.inf, 2.0, 3.0]])
    stopped = np.array([[False] * 4 + [True]])
    series = {"loss_train": loss, "stopped": stopped, "lr": np.zeros((1, 5))}
    data = xr.Dataset({name: (("member", "step"), values) for name, values in series.items()})

    (panel,) = traces.panels(data, Settings())

    assert panel.name == "loss_train" and np.flatnonzero(np.isfinite(panel.values)).tolist() == [0, 3]


def test_panels_of_batches():
    names = ("loss_batch", "loss_train", "lambda_max_batch", "lambda_max_train", "loss_train_top", "loss_train_rest")
    data = xr.Dataset({name: (("member", "step"), np.ones((1, 5))) for name in names})

    words = [panel.words for panel in traces.panels(data, Settings(examples=8, batch_size=2, top_k=3))]

    assert words == [
        "training loss", "loss of the batch", "largest kernel eigenvalue of the batch",
        "largest kernel eigenvalue of the training set", "fraction of the loss in the top-3 eigenspace",
    ]  # fmt: skip


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=300),
    st.integers(2, 50),
    st.sets(st.integers(0, 299), max_size=5),
)
@settings(deadline=None)
def test_thinned_keeps_the_extremes_of_every_bin(values, most, kept):
    values = np.array(values)
    whole = np.isin(np.arange(len(values)), list(kept))

    at = traces.thinned(values, most, whole)

    assert at[0] == 0 and at[-1] == len(values) - 1 and (np.diff(at) > 0).all()
    assert set(np.flatnonzero(whole)) <= set(at) and len(at) <= most + 2 + whole.sum()
    size = 1 if len(values) <= most else -(-len(values) // (most // 2))
    for start in range(0, len(values), size):
        one = values[start : start + size]
        drawn = values[at[(at >= start) & (at < start + size)]]
        assert (drawn.min(), drawn.max()) == (one.min(), one.max())


def test_long_series_are_thinned_and_keep_their_spikes(tmp_path):
    data = wide_record()

    page = build_interactive(data, title="mine", folder=tmp_path)

    columns = lines(figures(page)["loss_train"])[0]
    assert 4000 // 2 < len(columns["step"]) < 6000 - 1000
    loss = data["loss_train"].values[0]
    np.testing.assert_array_equal(columns["value"], loss[columns["step"]])
    assert {*range(1950, 2050), *range(3950, 4050)} <= set(columns["step"].tolist())
    assert "A line with more than 4000 values is drawn by" in Page(page.read_text()).words


def test_near_spikes_takes_the_highest_first():
    event = lambda onset, ratio: library_events.Event("catapult", onset, onset, onset, onset, 1.0, 1.0, ratio, ratio, *[0] * 6)

    near = traces.near_spikes([event(200, 2.0), event(600, 9.0), event(900, float("inf"))], 1000, 150)

    assert np.flatnonzero(near).tolist() == [*range(550, 651), *range(850, 951)]


def test_members_and_spikes_beyond_the_limits_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(interactive, "MOST_MEMBERS", 1)
    data = small()
    words = Page(build_interactive(data, title="mine", folder=tmp_path).read_text()).words
    assert "The first 1 of 2 members are drawn." in words and "member 1," not in words

    monkeypatch.undo()
    for module in (interactive, traces):
        monkeypatch.setattr(module, "MOST_SPIKES", 1)
    page = build_interactive(wide_record(), title="mine", folder=tmp_path)
    assert "The list has the highest 1 of 2 spikes." in Page(page.read_text()).words
    assert lines(figures(page)["events"])[0]["number"] == [0, -1]


def test_a_divergence_goes_to_its_peak():
    event = library_events.Event("divergence", 2, 4, -1, -1, 1.0, 1.0, float("inf"), float("inf"), *[0] * 6)

    (row,) = traces.spike_rows([[event]], ["member 0"], 9)

    assert (row["onset"], row["close"]) == (2, 4)
    assert row["words"] == "member 0: divergence at steps 2 to 4, the loss is not finite"


def test_open_spikes_and_dead_networks_are_hatched(tmp_path):
    loss = np.array([[1.0, 1.0, 4.0, 5.0, 6.0, 7.0], [2.0, 9.0, 9.0, 9.0, 9.0, 9.0]])
    data = record(loss, 1.5, np.array([[1.0] * 6, [1.0] + [np.inf] * 5]))

    bars = lines(figures(build_interactive(data, title="mine", folder=tmp_path))["events"])

    assert (bars[0]["hatch"], bars[0]["right"], bars[0]["close"]) == (["/"], [5], ["5, open"])
    assert dict(zip(bars[1]["kind"], bars[1]["hatch"], strict=True))["dead from here"] == "x"


def test_a_missing_extra_is_named_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "bokeh", None)
    needed = "the interactive page needs bokeh; allowed: catapult_jax installed with its extra 'interactive'"

    with pytest.raises(ImportError, match=needed):
        build_interactive(small(), title="mine", folder=tmp_path / "report")
    with pytest.raises(SystemExit, match=f"error: {needed}"):
        main([str(tmp_path), "--interactive"])
    (tmp_path / "run.json").write_text("{}")
    assert report.main(["", str(tmp_path), "--interactive"]) == 2

    assert capsys.readouterr().err == f"error: {needed}\n"
    assert not {"report", "report.html", "events.jsonl"} & {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_build_interactive_refuses_an_empty_record(shape, tmp_path):
    data = xr.Dataset({"loss_train": (("member", "step"), np.ones(shape))})

    with pytest.raises(ValueError, match=r"allowed: one (member|step) or more"):
        build_interactive(data, title="mine", folder=tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_the_report_of_a_watch_has_the_page_when_asked(tmp_path, plain_figures):
    arrays = {name: small()[name].values.astype(np.float32) for name in ("loss_train", "lr", "critical_lr_batch")}
    records.create(tmp_path, members={"seed": np.arange(2)}, steps=6, shapes=arrays, about={"title": "mine"})
    records.write(tmp_path, 0, arrays)
    watch = {"factor": 1.5, "horizon": 1000, "smoothing": None, "momentum": 0.0, "k": 2}
    records.write_json(tmp_path / records.WATCH, {"watch": watch})

    assert main([str(tmp_path)]).name == "report.html" and not (tmp_path / "interactive.html").exists()
    assert main(["--interactive", str(tmp_path)]) == tmp_path / "interactive.html"
    assert list(figures(tmp_path / "interactive.html")) == ["events", "loss_train", "lr_over_critical_lr"]


def test_the_report_of_a_run_has_the_page_when_asked(tmp_path, plain_figures, capsys):
    config = quickstart.get_config("smoke")
    config.steps = 3
    experiment.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "interactive.html").exists()

    assert report.main(["", str(tmp_path / "run"), "--interactive"]) == 0

    page = tmp_path / "run" / "interactive.html"
    assert capsys.readouterr().out.endswith(f"wrote {page}\n")
    found = lambda path: [line for line in path.read_text().splitlines() if line.startswith("<p>Data ")]
    assert found(page) == found(tmp_path / "run" / "report.html") != []
