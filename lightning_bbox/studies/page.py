"""A comparison's files: Markdown, CSV, charts, and one page that needs nothing else."""

import html
import math
from collections.abc import Sequence
from pathlib import Path

import yaml
from PIL import Image

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import encoded, make_folder, save_picture, write_atomically
from lightning_bbox.reports.pages import FRAME, page, picture_tag
from lightning_bbox.studies.charts import CHARTS, draw_comparison
from lightning_bbox.studies.comparison import Comparison, compare
from lightning_bbox.studies.study import Options, Result, Study
from lightning_bbox.studies.tables import (
    Cell,
    Table,
    arms_table,
    as_csv,
    as_markdown,
    as_text,
    further_tables,
    notes,
)

_PAGE = "comparison.html"


def write_comparison(study: Study, results: Sequence[Result], folder: Path) -> str:
    """Compare a study's arms, write all files into a folder, and return the text for a terminal.

    `comparison.md` has the tables, `comparison.csv` every run, `errors.png`, `curves.png`,
    `effects.png` and `heat.png` what there is to be drawn, and `comparison.html` all of it.

    Args:
        study: What was to be run.
        results: What became of the runs; those missing are said to be.
        folder: Where to; what an earlier comparison left there is replaced.

    Raises:
        BadInput: The folder can't be written to, or holds files of such names that aren't ours.
    """
    comparison = compare(study, results)
    charts = draw_comparison(comparison)
    make_folder(folder)
    refuse_foreign(folder)
    drawn = {name: chart for name, chart in charts.items() if chart is not None}
    write_atomically(folder / _PAGE, encoded(_page(comparison, drawn)))
    for name in charts.keys() - drawn:
        (folder / f"{name}.png").unlink(missing_ok=True)
    for name, chart in drawn.items():
        save_picture(folder / f"{name}.png", chart)
    write_atomically(folder / "comparison.md", encoded(as_markdown(comparison)))
    write_atomically(folder / "comparison.csv", encoded(as_csv(comparison)))
    return as_text(comparison)


def refuse_foreign(folder: Path) -> None:
    """Refuse to write over files that no comparison wrote: its page is written first.

    Args:
        folder: Where a comparison is to be written.

    Raises:
        BadInput: There is such a file.
    """
    page = folder / _PAGE
    begin = FRAME.partition("{")[0]
    if page.is_file() and page.read_bytes().startswith(begin.encode()):
        return
    for name in (_PAGE, "comparison.md", "comparison.csv", *(f"{name}.png" for name in CHARTS)):
        if (folder / name).exists():
            problem = "wasn't written by a study, and this one would write over it"
            remedy = "choose another --name, or rename the file"
            raise BadInput.at(str(folder / name), problem, remedy)


def _page(comparison: Comparison, charts: dict[str, Image.Image]) -> str:
    """Write a comparison as one HTML page: tables that sort, charts, every arm's options."""
    study = comparison.study
    title = html.escape(study.name)
    pictures = [picture_tag(name, chart) for name, chart in charts.items()]
    said = "".join(f"<li>{html.escape(note)}</li>" for note in notes(comparison))
    sections = [
        f"<h1>{title}</h1><p>{html.escape(_what(study))}</p>",
        _table(arms_table(comparison)),
    ]
    sections += [f"<ul>{said}</ul>", *pictures]
    further = further_tables(comparison) | {"Options of every arm": _options_table(comparison)}
    sections += [f"<h2>{head}</h2>{_table(table)}" for head, table in further.items()]
    return page(study.name, sections, _SORT)


def _what(study: Study) -> str:
    """Say what was run, in a sentence."""
    budget = f"{study.steps} steps" if study.steps else "the steps of its configuration"
    budget = f"{study.seconds:g} s of training" if study.seconds else budget
    folds = f", {study.folds} folds" if study.folds else ""
    seeds = ", ".join(map(str, study.seeds))
    base = ", ".join(Path(config).name for config in study.configs) or "no configuration"
    return f"{len(study.arms)} arms on {base}, seeds {seeds}{folds}, each run with {budget}."


def _options_table(comparison: Comparison) -> Table:
    """Return what each arm sets, and above them what all do."""
    every = [("every arm", comparison.study.options)] if comparison.study.options else []
    arms = [(arm.arm.name, arm.arm.options) for arm in comparison.arms]
    rows = [
        [Cell(name, math.nan), Cell(_yaml(options), math.nan)] for name, options in every + arms
    ]
    return Table(["arm", "options"], rows, words=2)


def _yaml(options: Options) -> str:
    return yaml.safe_dump(options, sort_keys=False, allow_unicode=True).strip() if options else "-"


def _table(table: Table) -> str:
    """Write a table whose heads sort it."""
    heads = "".join(
        f"<th{' class=word' if column < table.words else ''}>"
        f'<button type="button">{html.escape(name)}</button></th>'
        for column, name in enumerate(table.names)
    )
    rows = "".join(
        "<tr>"
        + "".join(_cell(cell, column < table.words) for column, cell in enumerate(row))
        + "</tr>"
        for row in table.rows
    )
    body = f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="wide"><table>{body}</table></div>'


def _cell(cell: Cell, word: bool) -> str:
    number = "" if math.isnan(cell.number) else f' data-number="{cell.number!r}"'
    return f"<td{' class=word' if word else ''}{number}>{html.escape(cell.text)}</td>"


_SORT = """
document.querySelectorAll("th button").forEach(button => button.onclick = () => {
  const head = button.parentNode, body = head.closest("table").tBodies[0], at = head.cellIndex;
  const sign = head.ariaSort === "ascending" ? -1 : 1;
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  const number = row => parseFloat(row.cells[at].dataset.number);
  const text = row => row.cells[at].textContent;
  const numbers = [...body.rows].some(row => !isNaN(number(row)));
  const order = (a, b) => !numbers ? sign * text(a).localeCompare(text(b))
    : isNaN(number(a)) - isNaN(number(b)) || sign * (number(a) - number(b)) || 0;
  [...body.rows].sort(order).forEach(row => body.append(row));
});
"""
