"""What a check leaves behind: the text, one page that needs nothing else, and two sheets."""

import html
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from PIL import Image

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import encoded, expanded, make_folder, save_picture, write_atomically
from lightning_bbox.core.messages import say
from lightning_bbox.core.options import CommandParser
from lightning_bbox.data.boxes import BoxDataModule
from lightning_bbox.geometry.boxes import box_sizes
from lightning_bbox.insight.check import Check, Section, check_data
from lightning_bbox.insight.cross_fit import Prepare
from lightning_bbox.reports.pages import page, picture_tag
from lightning_bbox.reports.sheets import draw_data, draw_strangest
from lightning_bbox.reports.tables import format_spaced

PAGE = "check.html"
"""The page, which tells that what is beside it is no data."""


def check(arguments: Sequence[str], prepare: Prepare) -> None:
    """Check a data set: print what was found, and write it into a folder of its own.

    Args:
        arguments: The command line after `check`; what it doesn't know goes to the data.
        prepare: What makes the data module of a fit.

    Raises:
        BadInput: `fit` would refuse the data, or there is something in the folder.
    """
    own, options = check_parser().parse_known_args(arguments)
    data = prepare(["fit", *(f"--config={config}" for config in own.config), *options])
    if not isinstance(data, BoxDataModule):
        msg = f"check reads annotated pictures, not {type(data).__name__}; give --data.root DIR"
        raise BadInput(msg)
    usual = f"check-{data.root.resolve().name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = expanded(own.runs) / (own.name or usual)
    if folder.exists() and any(folder.iterdir()):
        msg = f"{folder}: holds something already; choose another --name"
        raise BadInput(msg)
    found = check_data(data)
    say(format_check(found))
    write_check(found, folder)
    say(f"\nthe same, with pictures: {folder / PAGE}")
    if found.refusal:
        raise BadInput(found.refusal)


def check_parser() -> CommandParser:
    """Return what reads the options of `check` alone."""
    parser = CommandParser(
        "check",
        "Say what a data set is and what is wrong with it, before anything is trained: its "
        "annotations and how they are read, pictures, classes, boxes, splits, leaks, faults. Ends "
        "with 2 where fit would refuse it.",
        config="a configuration of fit, or preset:NAME, where its options of --data are wanted",
        name="check-ROOT-TIME",
    )
    parser.epilog = (
        "--data.root DIR names the folder of the data set. All options of fit may be given too: "
        "`lightning-bbox fit --data.help BoxDataModule` lists those of the data."
    )
    return parser


def write_check(found: Check, folder: Path) -> None:
    """Write `check.html`, `check.txt`, and the sheets `data.png` and `strangest.png`.

    Args:
        found: What was found.
        folder: Where to.

    Raises:
        BadInput: The folder can't be written to.
    """
    make_folder(folder)
    sheets, problems = _sheets(found)
    write_atomically(folder / PAGE, encoded(_page(found, sheets, problems)))
    write_atomically(folder / "check.txt", encoded(format_check(found) + "\n"))
    for name, sheet in sheets.items():
        save_picture(folder / f"{name}.png", sheet)


def format_check(found: Check) -> str:
    """Write what was found as text, a section after the other.

    Args:
        found: What was found.
    """
    pieces = [f"check of {found.root}"]
    for section in found.sections:
        lines = [f"  {line}" for line in section.lines]
        if section.table:
            lines += ["", *(f"    {line}" for line in format_spaced(section.table).split("\n"))]
        pieces.append("\n".join([section.title, *lines]))
    return "\n\n".join(pieces)


def _sheets(found: Check) -> tuple[dict[str, Image.Image], list[str]]:
    """Draw what can be drawn, and say why the rest can't."""
    sheets, problems = dict[str, Image.Image](), list[str]()
    try:
        if found.data is not None:
            sheets["data"] = draw_data(found.data, "as a fit would see them")
        if found.table is not None and found.strangest:
            level = found.data.white_level if found.data else None
            arguments = found.table, found.strangest, found.others, level
            sheets["strangest"] = draw_strangest(*arguments)
    except BadInput as problem:
        problems.append(f"not drawn: {problem}")
    return sheets, problems


_TITLES = {
    "data": "True boxes, and proposals jittered around them",
    "strangest": "The strangest boxes",
}


def _page(found: Check, sheets: dict[str, Image.Image], problems: list[str]) -> str:
    verdict, *sections = found.sections
    kind = "verdict refused" if found.refusal else "verdict"
    said = "<br>".join(html.escape(line) for line in verdict.lines)
    body = [f"<h1>Check of {html.escape(found.root)}</h1>", f'<p class="{kind}">{said}</p>']
    body += [_section(section) for section in sections]
    body += [f"<p>{html.escape(problem)}</p>" for problem in problems]
    for name, sheet in sheets.items():
        body += [f"<h2>{_TITLES[name]}</h2>", picture_tag(_TITLES[name], sheet)]
    if found.table is not None and found.strangest:
        body.append(_section(_places(found)))
    return page(f"Check of {found.root}", body)


def _section(section: Section) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in section.lines)
    table = ""
    if section.table:
        head, *rows = [
            "".join(
                f"<{tag}{' class=word' * (not at)}>{html.escape(cell)}</{tag}>"
                for at, cell in enumerate(row)
            )
            for tag, row in zip(["th"] + ["td"] * len(section.table), section.table, strict=False)
        ]
        inner = "".join(f"<tr>{row}</tr>" for row in rows)
        table = (
            f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{inner}</tbody></table></div>"
        )
    return f"<h2>{html.escape(section.title)}</h2><ul>{items}</ul>{table}"


def _places(found: Check) -> Section:
    """Say where the boxes that are drawn stand."""
    table = found.table
    assert table is not None
    rows = [["what", "number", "width", "height", "class", "where", "picture"]]
    for name, chosen in found.strangest.items():
        for number, at in enumerate(chosen, 1):
            width, height = box_sizes(table.boxes[at]).tolist()
            label, picture = table.classes[table.labels[at]], table.images[table.image_index[at]]
            rows.append(
                [name, str(number), f"{width:.4g}", f"{height:.4g}", label, table.ids[at], picture]
            )
    return Section("Where these stand", [], rows)
