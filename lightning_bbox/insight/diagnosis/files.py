"""What a diagnosis leaves behind: text, figures, one page that needs nothing else, TensorBoard."""

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lightning_bbox.core.files import encoded, make_folder, write_atomically
from lightning_bbox.evaluation.intervals import TOO_FEW, Mean
from lightning_bbox.insight.diagnosis.diagnose import Diagnosis, Suspect
from lightning_bbox.insight.diagnosis.findings import CAUSES, Finding
from lightning_bbox.insight.diagnosis.trials import Trial
from lightning_bbox.reports.pages import page, picture_tag
from lightning_bbox.reports.tables import format_markdown

_NOTHING = "nothing was found that keeps it from learning"
_SCALE = 3  # of crops on the page


def write_diagnosis(found: Diagnosis, folder: Path) -> None:
    """Write `diagnosis.json`, `diagnosis.md` and `diagnosis.html`, and events for TensorBoard.

    Args:
        found: What was found.
        folder: Where to; it is made.

    Raises:
        BadInput: The folder can't be written to.
    """
    make_folder(folder)
    write_atomically(folder / "diagnosis.json", encoded(json.dumps(figures(found), indent=2)))
    write_atomically(folder / "diagnosis.md", encoded(as_markdown(found) + "\n"))
    write_atomically(folder / "diagnosis.html", encoded(_page(found)))
    _log(found, folder)


def sentence(found: Diagnosis) -> str:
    """Say the most probable cause and what its cure brought, in one sentence.

    Args:
        found: What was found.
    """
    if not found.found:
        words = f"{_NOTHING}; {found.outlook}" if found.outlook else _NOTHING
        return _unmade(found) if found.raised else words
    first = found.named[0]
    words = f"the most probable cause: {first.words} ({first.finding.found})"
    if str(first.finding.cure):
        words += f"; the cure: {first.finding.cure}"
    if first.harm is not None:
        words += (
            f", which takes {_gain(first.harm)} of predict-mean's error off in a short training"
        )
    return f"{words}; {_unmade(found)}" if found.raised else words


def _unmade(found: Diagnosis) -> str:
    """Say how many checks can't be made, and why the first of them."""
    first, count = found.raised[0], f"{len(found.raised)} of {len(found.checks)}"
    link = ", such as" if len(found.raised) > 1 else ":"
    return f"{count} checks can't be made{link} {first.check}: {first.because}"


def _gain(mean: Mean) -> str:
    told = TOO_FEW if math.isnan(mean.low) else f"95 % interval {mean.low:.0%} to {mean.high:.0%}"
    return f"{mean.value:.0%} ({told})"


def figures(found: Diagnosis) -> dict[str, Any]:
    """Return a diagnosis as plain data: verdict, causes in order, checks, trials.

    Args:
        found: What was found.
    """
    return {
        "subject": found.subject,
        "verdict": _verdict(found),
        "sentence": sentence(found),
        "causes": [_cause(each) for each in found.suspects],
        "checks": [
            {
                "name": check.check,
                "verdict": check.verdict,
                "found": check.because or check.found,
                "expected": check.expected,
                "cause": check.cause if check.verdict in ("doubtful", "at fault") else None,
                "weight": round(check.weight, 3),
            }
            for check in found.checks
        ],
        "trials": [
            {"name": each.name, "error": round(each.error, 4), "steps": each.steps,
             "seconds": round(each.seconds, 1), "diverged": each.diverged}
            for each in found.trials
        ],
        "cure": None if found.cure is None else _interval(found.cure),
        "parts": [{"part": part, "gain": _interval(mean)} for part, mean in found.parts],
        "refused": list(found.refused),
        "outlook": found.outlook,
        "raised": [
            {"check": each.check, "sentence": each.because, "traceback": each.trace}
            for each in found.raised
        ],
        "seconds": {"checks": round(found.seconds[0], 1), "trials": round(found.seconds[1], 1)},
    }  # fmt: skip


def _verdict(found: Diagnosis) -> str:
    if found.found:
        return "found"
    return "incomplete" if found.raised else "nothing found"


def _cause(each: Suspect) -> dict[str, Any]:
    return {
        "name": each.name,
        "kind": CAUSES[each.name].kind,
        "words": each.words,
        "score": round(each.score, 3),
        "evidence": f"{each.finding.check}: {each.finding.found}",
        "expected": each.finding.expected,
        "option": str(each.finding.cure),
        "options": list(each.finding.cure.options),
        "harm": None if each.harm is None else _interval(each.harm),
        "tried": each.tried,
    }


def _interval(mean: Mean) -> dict[str, float | None]:
    ends = {"value": mean.value, "low": mean.low, "high": mean.high}
    return {name: None if math.isnan(end) else round(end, 4) for name, end in ends.items()}


def as_markdown(found: Diagnosis) -> str:
    """Write a diagnosis as Markdown that reads as text too.

    Args:
        found: What was found.
    """
    pieces = [f"# Diagnosis of {found.subject}", f"**{_sentence_of(found)}.**"]
    if found.suspects:
        pieces.append("## Suspects, the most probable first")
        pieces.append(format_markdown(_suspect_rows(found.suspects), words=4))
    if found.trials:
        pieces.append("## Short trainings on the same crops")
        pieces.append(format_markdown(_trial_rows(found)))
    if found.parts:
        pieces.append("## Each part by itself replaced by the default")
        pieces.append(format_markdown(_part_rows(found)))
    pieces.append("## Checks")
    pieces.append(format_markdown(_check_rows(found.checks), words=4))
    took = f"checks {found.seconds[0]:.0f} s, trying cures {found.seconds[1]:.0f} s"
    if found.raised:
        pieces += ["## Tracebacks", *(f"```text\n{trace}```" for trace in _traces(found))]
    pieces.append("\n".join([*(f"refused: {each}" for each in found.refused), took]))
    return "\n\n".join(pieces)


def _sentence_of(found: Diagnosis) -> str:
    words = sentence(found)
    return words[:1].upper() + words[1:]


def _suspect_rows(suspects: Sequence[Suspect]) -> list[list[str]]:
    rows = [["cause", "evidence", "cure", "tried", "without the cure, worse by", "score"]]
    for each in suspects:
        harm = "-" if each.harm is None else _gain(each.harm)
        evidence = f"{each.finding.check}: {each.finding.found}"
        rows.append(
            [each.words, evidence, str(each.finding.cure), each.tried, harm, f"{each.score:.2f}"]
        )
    return rows


def _trial_rows(found: Diagnosis) -> list[list[str]]:
    rows = [["training", "error, share of predict-mean's", "steps", "seconds"]]
    for each in found.trials:
        error = "diverged" if each.diverged else f"{each.error:.2f}"
        rows.append([each.name, error, str(each.steps), f"{each.seconds:.0f}"])
    return rows


def _part_rows(found: Diagnosis) -> list[list[str]]:
    rows = [["default", "takes off, of predict-mean's error"]]
    return rows + [[part, _gain(mean)] for part, mean in found.parts]


def _check_rows(checks: Sequence[Finding]) -> list[list[str]]:
    rows = [["check", "verdict", "found", "expected"]]
    return rows + [
        [each.check, each.verdict, each.because or each.found, each.expected] for each in checks
    ]


def _page(found: Diagnosis) -> str:
    kind = "verdict refused" if found.found or found.raised else "verdict"
    body = [
        f"<h1>Diagnosis of {html.escape(found.subject)}</h1>",
        f'<p class="{kind}"><strong>{html.escape(_headline(found))}</strong></p>',
    ]
    if found.found:
        body.append(_first(found))
        if found.raised:
            body.append(f"<p>{html.escape(_unmade(found))}.</p>")
    elif found.outlook:
        body.append(f"<p>{html.escape(found.outlook[:1].upper() + found.outlook[1:])}.</p>")
    if found.suspects:
        body += [
            "<h2>Suspects, the most probable first</h2>",
            _table(_suspect_rows(found.suspects), 4),
        ]
    if found.trials:
        body += ["<h2>Short trainings on the same crops</h2>", _table(_trial_rows(found), 1)]
    if found.parts:
        body += [
            "<h2>Each part by itself replaced by the default</h2>",
            _table(_part_rows(found), 1),
        ]
    body += ["<h2>Checks</h2>", _table(_check_rows(found.checks), 4)]
    if found.raised:
        traces = (f"<pre>{html.escape(trace)}</pre>" for trace in _traces(found))
        body += ["<h2>Tracebacks</h2>", *traces]
    return page(f"Diagnosis of {found.subject}", body)


def _traces(found: Diagnosis) -> list[str]:
    """Return what was raised, each error once, though many checks may meet it."""
    by_sentence = {each.because: each.trace for each in found.raised}
    return list(by_sentence.values())


def _headline(found: Diagnosis) -> str:
    if not found.found:
        return f"{_sentence_of(found) if found.raised else _NOTHING[:1].upper() + _NOTHING[1:]}."
    words = found.named[0].words
    return f"{words[:1].upper()}{words[1:]}."


def _first(found: Diagnosis) -> str:
    """Write cause, evidence and cure of the first suspect, with the pictures that show it."""
    first = found.named[0]
    lines = [
        ("Evidence", f"{first.finding.check}: {first.finding.found}."),
        ("Expected", f"{first.finding.expected}."),
        ("Cure", f"{first.finding.cure}." if str(first.finding.cure) else "none is known."),
    ]
    if first.harm is not None and found.trials:
        as_is = found.trials[0]
        cured = next((each for each in found.trials if each.name == "cured"), as_is)
        words = (
            f"{as_is.steps} steps on the same crops: error {_of(as_is)} of predict-mean's as it "
            f"is, {_of(cured)} cured; this cure alone accounts for {_gain(first.harm)}."
        )
        lines.append(("Measured", words))
    others = [each.words for each in found.named[1:3]]
    if others:
        lines.append(("Also", "; ".join(others) + "."))
    said = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(words)}</dd>" for name, words in lines
    )
    shown = "".join(
        f"<figure>{picture_tag(title, _row_of(crops))}<figcaption>{html.escape(title)}"
        f"</figcaption></figure>"
        for title, crops in first.finding.crops
    )
    return f"<dl>{said}</dl>{shown}"


def _of(trial: Trial) -> str:
    return "diverged" if trial.diverged else f"{trial.error:.2f}"


def _row_of(crops: Float[Tensor, "n 3 s s"]) -> Image.Image:
    """Lay crops side by side, enlarged."""
    pixels = (crops[:12].clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    gap = torch.full((*pixels.shape[:3], 2), 255, dtype=torch.uint8)
    row = torch.cat([torch.cat([pixels, gap], dim=3)[at] for at in range(len(pixels))], dim=2)
    picture = Image.fromarray(np.ascontiguousarray(row.permute(1, 2, 0).numpy()))
    if pixels.shape[-1] > 100:
        return picture
    return picture.resize((picture.width * _SCALE // 2, picture.height * _SCALE // 2), 0)


def _table(rows: Sequence[Sequence[str]], words: int) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=word' * (at < words)}>{html.escape(cell)}</{tag}>"
            for at, cell in enumerate(cells)
        )

    head, *rest = rows
    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rest)
    return (
        f'<div class="wide"><table><thead><tr>{line(head, "th")}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _log(found: Diagnosis, folder: Path) -> None:
    """Write the text, the scores and the pictures for TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    writer.add_text("diagnosis", as_markdown(found), 0)
    for each in found.suspects:
        writer.add_scalar(f"diagnosis/score/{each.name}", each.score, 0)
        for title, crops in each.finding.crops:
            shown = np.asarray(_row_of(crops))
            writer.add_image(f"diagnosis/{each.name}/{title}", shown, 0, dataformats="HWC")
    writer.close()
