"""What a run leaves for people: tables as text and CSV, pictures as PNG, and one self-contained HTML page.

Tables hold numbers; how they are rounded is decided once, when they are shown. The page carries its pictures
inside, so it can be sent around as one file.
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minerlib.files import written_whole
from minerlib.trainers import ranks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from minerlib.trainers.validation import MiningRecord

Cell = str | float | int | None  # None: nothing was measured


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns; the first column names the rows."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG file that was written."""

    title: str
    path: Path
    note: str = ""


@dataclass(frozen=True)
class Facts:
    """What a run was: names and values."""

    title: str
    values: Mapping[str, Any]


Part = Table | Picture | Facts


def text_table(table: Table) -> str:
    """The table as it is printed: names to the left, numbers to the right, the note below.

    >>> print(text_table(Table("Precision", ("EL", "hard"), [("64", 46.927), ("2", None)])))
    Precision
      EL   hard
      64  46.93
      2       -
    """
    cells = [list(table.columns), *([shown(cell) for cell in row] for row in table.rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(table.columns))]
    lines = [table.title]
    for row in cells:
        aligned = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  " + "  ".join(aligned).rstrip())
    return "\n".join([*lines, *(f"  {line}" for line in table.note.splitlines())])


def shown(cell: Cell) -> str:
    """A cell as people read it: two decimals, a dash where nothing was measured."""
    if cell is None:
        return "-"
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)


def write_table(path: Path, table: Table) -> None:
    """The table as CSV, unrounded; an empty cell where nothing was measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(table.rows)
    with written_whole(path) as stream:
        stream.write(text.getvalue().encode())


def with_published(
    table: Table,
    published: Mapping[str, Sequence[Cell]],  # by the row's name: a value for each column after the first
    data: str,
    papers_data: str,
) -> Table:
    """The paper's published values in a column beside each of ours, where the data set is the paper's.

    A column for which the paper has no value gets none beside it. On other data the values would say nothing;
    the note then says where they are from.

    >>> ours = Table("Table 2", ("EL", "hard"), [("64", 50.0)])
    >>> with_published(ours, {"64": [46.93]}, "crc", "crc").rows
    [['64', 50.0, 46.93]]
    """
    if data != papers_data:
        note = f"The paper's values are for {papers_data}, not for {data}: they are not shown beside these."
        return Table(table.title, table.columns, table.rows, "\n".join(filter(None, (table.note, note))))
    nothing = [None] * (len(table.columns) - 1)
    theirs = [published.get(str(row[0]), nothing) for row in table.rows]
    columns, rows = [table.columns[0]], [[row[0]] for row in table.rows]
    for place, name in enumerate(table.columns[1:]):
        has_values = any(values[place] is not None for values in theirs)
        columns += [name, f"{name} (paper)"] if has_values else [name]
        for row, ours, values in zip(rows, table.rows, theirs, strict=True):
            row += [ours[place + 1], values[place]] if has_values else [ours[place + 1]]
    return Table(table.title, tuple(columns), rows, table.note)


def mining_table(records: Mapping[str, MiningRecord]) -> Table:
    """The part of a training step that is mining, ours and by Python loops, and what was validated."""
    columns = (
        "run", "steps", "triplets", "step ms", "mining ms", "share %", "Python loop ms", "its share %",
        "validated steps", "mismatches",
    )  # fmt: skip
    rows: list[Sequence[Cell]] = []
    for name, record in records.items():
        rows.append((
            name,
            record.steps,
            record.triplets,
            _each(1e3 * record.step_seconds, record.steps),
            _each(1e3 * record.seconds, record.steps),
            _percent(record.share),
            _each(1e3 * record.selector_seconds, record.selector_steps),
            _percent(record.selector_share),
            record.validated_steps,
            record.mismatches,
        ))  # fmt: skip
    note = (
        "Means of a step, without what only validation takes. The Python loop is the usual public form\n"
        "of these selectors, timed on the first step of each run; its share is of a step that mined so."
    )
    whose = ranks.current().whose
    note = "\n".join(filter(None, (note, whose and f"Steps and triplets are {whose}.")))
    return Table("Share of a training step spent mining", columns, rows, note)


def _each(total: float, count: int) -> float | None:
    return total / count if count else None


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


# ------------------------------------------------------------------ the page


def write_html(path: Path, title: str, intro: str, parts: Sequence[Part]) -> None:
    """One HTML file that needs no other: tables, facts, and pictures inside it."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("minerlib.trainers", "."), autoescape=True, trim_blocks=True
    )
    environment.filters["shown"] = shown
    environment.filters["numeric"] = lambda cell: not isinstance(cell, str)
    page = environment.get_template("report.html").render(
        title=title, intro=intro, parts=[_for_page(p) for p in parts]
    )
    with written_whole(path) as stream:
        stream.write(page.encode())


def _for_page(part: Part) -> dict[str, Any]:
    if isinstance(part, Picture):
        image = base64.b64encode(part.path.read_bytes()).decode()
        return {"kind": "picture", "title": part.title, "note": part.note, "image": image}
    if isinstance(part, Facts):
        return {"kind": "facts", "title": part.title, "values": part.values}
    return {
        "kind": "table",
        "title": part.title,
        "note": part.note,
        "columns": part.columns,
        "rows": part.rows,
    }


# ------------------------------------------------------------------ pictures


def figure(width: float = 7, height: float = 4.5) -> Figure:
    """A figure of this size in inches, drawn by Agg: no window, no global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(drawn: Figure, path: Path) -> None:
    """The figure as a PNG that appears whole or not at all."""
    with written_whole(path) as stream:
        drawn.savefig(stream, format="png", dpi=150)


def plot_curves(
    path: Path,
    curves: Mapping[str, Mapping[int, float]],  # name: {x: y}
    title: str,
    xlabel: str,
    ylabel: str,
) -> None:
    """One curve a name."""
    drawn = figure()
    axes = drawn.add_subplot()
    for name, points in curves.items():
        axes.plot(list(points), list(points.values()), marker="o", markersize=3, label=name)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    if curves:
        axes.legend(fontsize="small", ncols=1 + (len(curves) > 6))
    save(drawn, path)


def plot_losses(
    path: Path,
    steps: Sequence[int],
    losses: Mapping[str, Sequence[float]],  # by name
    title: str,
    ylabel: str = "loss",
) -> None:
    """Losses against the iteration."""
    drawn = figure()
    axes = drawn.add_subplot()
    draw_losses(axes, steps, losses)
    axes.set(title=title, ylabel=ylabel)
    axes.legend()
    save(drawn, path)


def draw_losses(
    axes: Axes,
    steps: Sequence[int],
    losses: Mapping[str, Sequence[float]],  # by name
) -> None:
    """A curve a loss; `total` is drawn thicker, and zero stays visible."""
    from matplotlib.ticker import MaxNLocator

    for name, values in losses.items():
        axes.plot(steps, values, linewidth=2 if "total" in name.lower() else 1, label=name)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_xlabel("iteration")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
