"""Tables and plots of what was measured, written into `benchmarks/README.md` between markers."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.rows import RESULTS, Machine, Row, Spread, read
from benchmarks.targets import TARGETS, Target

README = Path(__file__).parent / "README.md"
BEGIN, END = (
    "<!-- begin: python -m benchmarks report -->",
    "<!-- end: python -m benchmarks report -->",
)
COLUMNS = (
    *("case", "way", "time (quartiles)", "rate", "times as long as ours (quartiles)"),
    *("first call, s", "MB", "share of floor"),
)
TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


def write_report(results: Path = RESULTS, page: Path = README) -> Path:
    """Write the targets, the tables of every machine and the plots; the rest of the page stays."""
    machines = [read(path) for path in sorted(results.glob("speed-*.json"))]
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        msg = f"{page}: lacks the markers {BEGIN} and {END}; put them where the tables belong"
        raise ValueError(msg)
    parts = [target_table([row for machine in machines for row in machine.rows])]
    for machine in machines:
        parts.append("\n".join(machine_section(machine)))
        parts += [f"![{name}]({results.name}/{name})" for name in draw(machine, results)]
    page.write_text("\n\n".join([before + BEGIN, *parts, END + after]))
    return page


def target_table(rows: list[Row]) -> str:
    """Return the targets with what was measured, the gate by the cautious quartile."""
    lines = [
        "| target | against | gate | goal | measured | quartile | |",
        "|---|---|---|---|---|---|---|",
    ]
    for target in TARGETS:
        words = f"{target.device}: {target.what}"
        against = target.peer or {"share": "the floor"}.get(target.kind, "")
        lines.append(
            f"| {words} | {against} | {target.gate:g} | {target.goal:g} | "
            f"{' | '.join(outcome(target, rows))} |"
        )
    return "\n".join(lines)


def outcome(target: Target, rows: list[Row]) -> tuple[str, str, str]:
    """Return the median, the quartile that the gate asks for, and the verdict."""
    row = target.row(rows)
    if row is None:
        return "not measured", "", ""
    if (figure := target.figure(row)) is None:
        return row.skipped.get(target.peer, "not measured"), "", ""
    median, cautious = figure
    if target.meets(median, target.goal):
        verdict = "goal reached"
    else:
        verdict = "gate met" if target.meets(cautious, target.gate) else "**gate missed**"
    return short(median), short(cautious), verdict


def verdicts(rows: list[Row]) -> Iterator[str]:
    """Yield a line for each target that these rows measure: ratio, quartile and verdict."""
    for target in TARGETS:
        row = target.row(rows)
        if row is not None and target.figure(row) is not None:
            median, cautious, verdict = outcome(target, rows)
            bounds = f"gate {target.gate:g}, goal {target.goal:g}"
            against = f" against {target.peer}" if target.peer else ""
            yield f"  {target.what}{against}: {median} ({cautious}), {bounds}: {verdict}"


def machine_section(machine: Machine) -> Iterator[str]:
    """Yield a machine's tables, a row for each way; what is faster than ours says so."""
    run = machine.rows[0].run
    device = f"{run.processor}, {run.cores} cores" if run.device == "cpu" else run.device
    yield f"## {device}"
    for question in dict.fromkeys(row.question for row in machine.rows):
        rows = [row for row in machine.rows if row.question == question]
        yield f"\n### {question}\n"
        yield f"| {' | '.join(COLUMNS)} |"
        yield "|---" * len(COLUMNS) + "|"
        for row in rows:
            yield from table_rows(row)
        yield ""
        yield from footnotes(rows)


def table_rows(row: Row) -> Iterator[str]:
    """Yield the lines of a case: ours, its peers, and those left out."""
    for at, arm in enumerate(row.arms):
        share = "" if at or row.floor_share is None else f"{row.floor_share:.0%}"
        ratio = row.ratios.get(arm.name)
        shown = (
            ""
            if ratio is None
            else f"{short(ratio.median)} ({short(ratio.low)} to {short(ratio.high)})"
        )
        if ratio is not None and ratio.median < 1:
            shown += ", **faster than ours**"
        note = f" ({arm.note})" if arm.note else ""
        peak = "" if arm.peak_mb is None else short(arm.peak_mb)
        rate = f"{short(row.items / arm.seconds.median)} {row.unit}/s"
        yield (
            f"| {row.case if at == 0 else ''} | {arm.name}{note} | {with_quartiles(arm.seconds)} | "
            f"{rate} | {shown} | {arm.first_seconds:.2f} | {peak} | {share} |"
        )
    for name, reason in row.skipped.items():
        yield f"| {'' if row.arms else row.case} | {name} | {reason} | | | | | |"


def footnotes(rows: list[Row]) -> Iterator[str]:
    """Yield what the figures depend on, once for each commit and day."""
    seen = dict.fromkeys(
        f"commit {row.run.commit}, {row.run.date}, size {row.size}, {row.run.threads} thread"
        f"{'s' * (row.run.threads > 1)}, "
        + ", ".join(f"{name} {version}" for name, version in row.run.versions.items())
        for row in rows
    )
    loads = [row.run.load[0] for row in rows]
    yield "; ".join(seen) + f"; load {min(loads):.1f} to {max(loads):.1f}"


def as_lines(row: Row) -> Iterator[str]:
    """Yield a row as plain lines, for the terminal."""
    share = "" if row.floor_share is None else f", {row.floor_share:.0%} of the floor"
    yield f"  {row.case}{share}"
    for arm in row.arms:
        ratio = row.ratios.get(arm.name)
        times = (
            ""
            if ratio is None
            else f"  x {short(ratio.median)} ({short(ratio.low)} to {short(ratio.high)})"
        )
        memory = "" if arm.peak_mb is None else f"  {arm.peak_mb:.0f} MB"
        yield f"    {arm.name:48} {with_quartiles(arm.seconds):28}{times}{memory}"
    for name, reason in row.skipped.items():
        yield f"    {name:48} skipped: {reason}"


def with_quartiles(seconds: Spread) -> str:
    """Write a time with its quartiles, in one unit.

    Examples:
        >>> with_quartiles(Spread(0.0021, 0.002, 0.0024, 9))
        '2.10 ms (2.00 to 2.40)'
    """
    scale, unit = next((one for one in TIMES if seconds.median >= one[0]), TIMES[-1])
    median, low, high = (
        short(value / scale) for value in (seconds.median, seconds.low, seconds.high)
    )
    return f"{median} {unit} ({low} to {high})"


def short(value: float) -> str:
    """Write a number with three digits, large ones in thousands or millions."""
    for scale, unit in ((1e6, " M"), (1e3, " k"), (1.0, "")):
        if value >= scale:
            rest = value / scale
            return f"{rest:.{2 if rest < 10 else 1 if rest < 100 else 0}f}{unit}"
    return f"{value:.3g}"


def draw(machine: Machine, results: Path) -> Iterator[str]:
    """Draw how many times as long peers take, and how the cut scales with the batch."""
    peers = [row for row in machine.rows if row.question in ("crops", "augment") and row.ratios]
    name = f"speed-{machine.name}"
    if peers:
        height = 0.8 + 0.2 * sum(len(row.ratios) for row in peers)
        figure = Figure(figsize=(10, height), layout="constrained")
        draw_ratios(figure, peers)
        yield save(figure, results / f"{name}-peers.png")
    scaling = [r for r in machine.rows if r.question == "scaling" and r.unit == "crops"]
    if len(scaling) > 1:
        figure = Figure(figsize=(6, 3.2), layout="constrained")
        axes = figure.subplots()
        pairs = sorted((row.items, row.items / row.arms[0].seconds.median) for row in scaling)
        axes.plot(*zip(*pairs, strict=True), "o-")
        axes.set(xscale="log", xlabel="batch", ylabel="crops a second", ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
        yield save(figure, results / f"{name}-scaling.png")


def draw_ratios(figure: Figure, rows: Iterable[Row]) -> None:
    """Draw a bar for each peer, red where it is faster than ours."""
    axes = figure.subplots()
    names, values, colours = [], [], []
    for row in rows:
        for name, ratio in row.ratios.items():
            names.append(f"{row.case.partition(', batch')[0]}: {name}")
            values.append(ratio.median)
            colours.append("tab:red" if ratio.median < 1 else "tab:blue")
    axes.barh(names, values, color=colours)
    axes.invert_yaxis()
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set(xscale="log", xlabel="times as long as ours")
    axes.tick_params(axis="y", labelsize=6)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> str:
    """Write a plot, and return its name."""
    figure.savefig(path, dpi=130, metadata={"Software": None})
    return path.name
