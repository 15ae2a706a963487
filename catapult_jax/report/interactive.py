"""The interactive page of a record: panels that zoom together, spikes to go to, members to choose. Its extra is ``interactive``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from catapult_jax import records
from catapult_jax.events import Event
from catapult_jax.report.analysis import run_events
from catapult_jax.report.build import prepared
from catapult_jax.report.members import Settings, dead_steps, flags, has_events
from catapult_jax.report.opening import opening
from catapult_jax.report.page import Section, number, template, text
from catapult_jax.report.panels import BARS, extent
from catapult_jax.report.style import BLACK, GREY, PALETTE
from catapult_jax.report.traces import (
    MARGIN,
    MOST_SPIKES,
    Panel,
    labels,
    most_points,
    near_spikes,
    panels,
    ratio,
    spike_rows,
    thinned,
)
from catapult_jax.report.watched import doubts

if TYPE_CHECKING:
    import xarray

MOST_MEMBERS = 40  # that are drawn
_DASHES = ("solid", "dashed", "dotted", "dotdash", "dashdot")
_STROKES = ("none", "6", "2 4", "2 4 6 4", "6 4 2 4")  # the same, of a picture
_HOW = (
    "Drag over a panel to zoom all of them to these steps (on a touch screen, tap the zoom of the toolbar first); the heights follow. "
    "Point at a line for its values, and at a bar for its spike; click a bar, or choose in the list, to zoom to the spike. report.html, "
    "in the same folder, has the tables."
)


def needs_bokeh() -> None:
    """Refuses to go on without the library that draws the page.

    Raises:
      ImportError: Bokeh is not installed.

    >>> needs_bokeh()
    """
    if find_spec("bokeh") is None:
        raise ImportError("the interactive page needs bokeh; allowed: catapult_jax installed with its extra 'interactive'")


def _bokeh(name: str) -> Any:
    """A module of Bokeh, which is imported at its first use."""
    return import_module(f"bokeh.{name}")


def _new_figure(steps: Any, words: str, height: int, **options: Any) -> Any:
    """A panel as wide as the page, with the tools that zoom along the steps."""
    made = _bokeh("plotting").figure(
        x_range=steps, height=height, sizing_mode="stretch_width", title=words, tools="xbox_zoom,xpan,xwheel_zoom,save",
        active_drag="xbox_zoom", active_scroll=None, min_border_left=56, min_border_right=8, **options,
    )  # fmt: skip
    made.xgrid.grid_line_color = made.ygrid.grid_line_color = "#eeeeee"
    made.yaxis.minor_tick_line_color = None
    made.xaxis.formatter.use_scientific = False
    made.title.text_font_size, made.title.text_font_style = "13px", "normal"
    return made


def _columns(record: xarray.Dataset, panel: Panel, m: int, most: int, near: np.ndarray) -> dict[str, np.ndarray]:
    """What the line of a member in a panel holds: its steps, values, and what the hover shows beside them."""
    at = np.flatnonzero(np.isfinite(panel.values[m]))
    at = at[thinned(panel.values[m, at], most, near[at])] if len(at) else at
    columns = {"step": record.step.values[at].astype(np.int32), "value": panel.values[m, at]}
    if "lr" in record:
        columns["lr"] = record["lr"].values[m, at]
    if {"lr", "critical_lr_batch"} <= set(record) and panel.name != "lr_over_critical_lr":
        columns["ratio"] = ratio(record.isel(member=[m], step=at))[0]
    return columns


def _panel_figure(panel: Panel, steps: Any, columns: Sequence[dict[str, np.ndarray]], names: Sequence[str]) -> Any:
    """A panel with the lines of its members. The tag of a line is its member."""
    models = _bokeh("models")
    made = _new_figure(
        steps, panel.words, 170, y_axis_type="log" if panel.log else "linear", y_range=models.Range1d(0.1, 1), name=panel.name
    )
    made.yaxis.formatter = models.CustomJSTickFormatter(code="return String(Number(tick.toPrecision(3)))")
    if panel.log:
        ticks = "return page.ticks(cb_data.range.start, cb_data.range.end)"
        made.yaxis.ticker = made.ygrid.ticker = models.CustomJSTicker(major_code=ticks, minor_code="return []")
    wide = []
    for m, data in enumerate(columns):
        source = models.ColumnDataSource(data)
        style: Any = dict(source=source, color=_color(m), name=names[m])
        made.line("step", "value", line_dash=_DASHES[_dash(m)], line_width=1.2, **style)
        wide.append(made.line("step", "value", line_alpha=0, line_width=12, **style))  # not drawn: the mouse finds it
        if 0 < len(data["step"]) <= 200:
            made.scatter("step", "value", size=3, **style)
        _tag(made, m)
    if panel.line_at_one:
        made.add_layout(models.Span(location=1, dimension="width", line_dash="dashed", line_width=1, line_color="black"))
    rows = {"step": "@step", "value": "@value{%.4g}"}
    rows |= {"lr": "@lr{%.4g}"} if "lr" in columns[0] else {}
    rows |= {"lr / critical lr": "@ratio{%.4g}"} if "ratio" in columns[0] else {}
    formats = {f"@{name}": "printf" for name in ("value", "lr", "ratio")}
    hover = models.HoverTool(
        renderers=wide, limit=6, tooltips=[("", "$name"), *rows.items()], formatters=formats, visible=False
    )
    made.add_tools(hover)
    return made


def _tag(made: Any, m: int) -> None:
    """Gives the newest lines of a figure the number of their member, by which the page shows and hides them."""
    for line in made.renderers:
        line.tags = line.tags or [m]


def _color(m: int) -> str:
    return PALETTE[m % len(PALETTE)]


def _dash(m: int) -> int:
    return m // len(PALETTE) % len(_DASHES)


def _bars(events: Sequence[Event], dead: int, last: int) -> dict[str, list[Any]]:
    """The bars of a member: where they are, how they look, and what the hover shows."""
    rows = []
    for event in events:
        close, is_open = extent(event, last)
        words = f"{close}, open" if is_open else str(close)
        rows.append((event.kind, event.onset, close, is_open, event.peak, words, event.peak_ratio, event.overshoot))
    if dead >= 0:
        rows.append(("dead from here", dead, last, False, "–", "–", "–", "–"))
    names = ("kind", "left", "right", "color", "fill", "hatch", "peak", "close", "ratio", "overshoot")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for kind, onset, close, is_open, peak, words, height, overshoot in rows:
        color, hatch = BARS[str(kind)]
        pattern = "/" if is_open else "x" if hatch else " "
        look = (color, float(pattern == " "), pattern)
        shown = (str(peak), words, number(height), number(overshoot))
        for name, value in zip(names, (kind, int(onset), max(close, int(onset) + 1), *look, *shown), strict=True):
            columns[name].append(value)
    return columns


def _strip(steps: Any, bars: Sequence[dict[str, list[Any]]], names: Sequence[str], spikes: Sequence[dict[str, Any]]) -> Any:
    """The panel of the events, with a row for each member, from the first at the top to the last. A click on a bar chooses its spike."""
    models = _bokeh("models")
    y_range = models.Range1d(len(names) - 0.5, -0.5)
    made = _new_figure(steps, "spikes, one row for each member", 64 + min(16 * len(names), 400), y_range=y_range, name="events")
    numbers = {(row["member"], row["onset"]): i for i, row in enumerate(spikes)}
    for m, columns in enumerate(bars):
        source = models.ColumnDataSource(columns | {"number": [numbers.get((m, onset), -1) for onset in columns["left"]]})
        made.hbar(
            y=m, left="left", right="right", height=0.8, source=source, name=names[m], fill_color="color", fill_alpha="fill",
            line_color="color", hatch_pattern="hatch", hatch_color="color", hatch_scale=6,
        )  # fmt: skip
        _tag(made, m)
    made.yaxis.ticker = list(range(0, len(names), -(-len(names) // 20)))
    made.ygrid.grid_line_color = None
    rows = {"": "$name", "spike": "@kind", "onset": "@left", "peak": "@peak", "close": "@close"}
    rows |= {"peak / level": "@ratio", "overshoot": "@overshoot"}
    lines = list(made.renderers)
    made.add_tools(models.HoverTool(renderers=lines, tooltips=list(rows.items()), visible=False))
    code = "const {source} = cb_data; page.bar(source, source.inspected.indices[0])"
    made.add_tools(models.TapTool(renderers=lines, behavior="inspect", callback=models.CustomJS(code=code), visible=False))
    return made


def _document(
    record: xarray.Dataset, shown: Sequence[Panel], names: Sequence[str], events: list[list[Event]], dead: np.ndarray
) -> tuple[Any, list[dict[str, Any]]]:
    """The panels as a document of Bokeh, which hands them to the script of the page once it is shown; and the spikes of the list."""
    models, document = _bokeh("models"), _bokeh("document").Document()
    first, last = int(record.step[0]), int(record.step[-1])
    margin = 0.01 * (last - first) + 1e-3
    steps = models.Range1d(first - margin, last + margin)
    most, spikes = most_points(len(shown) * len(names)), spike_rows(events, names, last)
    near = [near_spikes(row, record.sizes["step"], 2 * most) for row in events]
    drawn = []
    for panel in shown:
        columns = [_columns(record, panel, m, most, near[m]) for m in range(len(names))]
        drawn.append(_panel_figure(panel, steps, columns, names))
    bars = [_bars(row, int(dead[m]), last) for m, row in enumerate(events)]
    has_bars = any(columns["kind"] for columns in bars)
    figures = [*([_strip(steps, bars, names, spikes)] if has_bars else []), *drawn]
    if figures:
        args = {
            "steps": steps, "figures": figures, "panels": drawn, "tops": [_top(record, panel) for panel in shown],
            "ones": [panel.line_at_one for panel in shown], "bands": _add_shared(figures), "spikes": spikes,
        }  # fmt: skip
        figures[-1].xaxis.axis_label, figures[-1].height = "step", figures[-1].height + 24
        style: Any = dict(sizing_mode="stretch_width", toolbar_location="above", toolbar_options={"logo": None})
        document.add_root(_bokeh("layouts").gridplot([[figure] for figure in figures], **style))
        code = f"page.connect({{{', '.join(args)}}})"
        document.js_on_event("document_ready", models.CustomJS(args=args, code=code))
    return document, spikes


def _add_shared(figures: Sequence[Any]) -> list[Any]:
    """Adds a line at the step of the mouse to all figures, and returns for each the band that shows the chosen spike."""
    models = _bokeh("models")
    cross = models.Span(dimension="height", line_color=GREY, line_width=1)
    style: Any = dict(left=0, right=0, fill_color=BLACK, fill_alpha=0.07, line_color=None, visible=False, level="underlay")
    bands = [models.BoxAnnotation(**style) for _ in figures]
    for figure, band in zip(figures, bands, strict=True):
        figure.add_layout(band)
        figure.add_tools(models.CrosshairTool(overlay=cross, visible=False))
    return bands


def _top(record: xarray.Dataset, panel: Panel) -> float | None:
    """The upper end of a y axis: a member that diverged does not squeeze the others. None: no end."""
    values = np.where(flags(record, "diverged")[:, -1:], np.nan, panel.values)
    return 3 * float(np.nanmax(values)) if panel.log and np.isfinite(values).any() else None


# The page.


def build_interactive(record: xarray.Dataset, settings: Settings | None = None, *, title: str, folder: str | Path) -> Path:
    """Writes ``interactive.html`` from a record: one file, which needs no network.

    Panels over the steps zoom together. The reader chooses members, and a spike to zoom to. What is not on record is left out. It
    needs the extra ``interactive``.

    Args:
      record: as for :func:`catapult_jax.report.build_report`.
      settings: of the run; None: the defaults.
      title: of the page.
      folder: for the file; it is created.

    Returns:
      The path of the page.

    Raises:
      ImportError: Bokeh is not installed.
      ValueError: a record without members or steps, or ``batch_size`` without ``examples``.

    >>> import tempfile, xarray
    >>> series = {"loss_train": [[1.0, 3.0, 1.0]], "lr": [[2.0] * 3], "critical_lr_batch": [[1.0] * 3]}
    >>> record = xarray.Dataset({name: (("member", "step"), values) for name, values in series.items()})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     build_interactive(record, title="mine", folder=folder).name
    'interactive.html'
    """
    needs_bokeh()
    settings, record = settings or Settings(), prepared(record)
    events = run_events(record, settings)
    return write_page(record, settings, events, opening(record, settings, events), title=title, folder=folder)


def write_page(
    record: xarray.Dataset, settings: Settings, events: list[list[Event]], first: Section, *, title: str, folder: str | Path
) -> Path:
    """Writes ``interactive.html`` from a record whose events are known.

    Args:
      record: as :func:`catapult_jax.report.build.prepared` returns it.
      settings: of the run.
      events: of the record.
      first: the section that opens the page.
      title: of the page.
      folder: for the file; it is created.

    Returns:
      The path of the page.

    Raises:
      ImportError: Bokeh is not installed.
    """
    needs_bokeh()
    members, record, events = record.sizes["member"], record.isel(member=slice(MOST_MEMBERS)), events[:MOST_MEMBERS]
    names, dead, shown = labels(record, settings), dead_steps(record, settings), panels(record, settings)
    document, spikes = _document(record, shown, names, events, dead)
    notes = _notes(shown, len(names), members, sum(map(len, events)), is_looked_for=has_events(record, settings))
    kinds = {str(event.kind) for row in events for event in row} | ({"dead from here"} if (dead >= 0).any() else set())
    variables = {
        "sections": [first, doubts(record, settings, events), Section("", [text(words) for words in notes])],
        "spikes": [row["words"] for row in spikes],
        "members": [(name, _color(m), _STROKES[_dash(m)]) for m, name in enumerate(names)],
        "kinds": [(kind, color) for kind, (color, _) in BARS.items() if kind in kinds],
        "is_drawn": bool(document.roots),
    }
    of_page = template("interactive.html")
    if document.roots:
        file_html, inline = _bokeh("embed").file_html, _bokeh("resources").INLINE
        html = file_html(document, inline, title, template=of_page, template_variables=variables)
    else:
        html = of_page.render(variables, title=title, bokeh_js="", bokeh_css="")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    records.write_text(folder / "interactive.html", html)
    return folder / "interactive.html"


def _notes(shown: Sequence[Panel], drawn: int, members: int, spikes: int, *, is_looked_for: bool) -> list[str]:
    """How the page is used, and what it leaves out."""
    most, notes = most_points(len(shown) * drawn), [_HOW]
    if any(np.isfinite(panel.values).sum(1).max() > most for panel in shown):
        notes.append(
            f"A line with more than {most} values is drawn by the smallest and the largest value of each of at most {most // 2} bins of "
            f"steps, so that no spike is lost. Within {MARGIN} steps of the onset, the peak and the close of a spike all values are drawn, "
            "for the highest spikes first."
        )
    if members > drawn:
        notes.append(f"The first {drawn} of {members} members are drawn.")
    if spikes > MOST_SPIKES:
        notes.append(f"The list has the highest {MOST_SPIKES} of {spikes} spikes.")
    if not shown:
        notes = ["No series that this page draws is on record."]
    if not is_looked_for:
        notes.append("Spikes were not looked for: this needs the training loss of every step.")
    return notes
