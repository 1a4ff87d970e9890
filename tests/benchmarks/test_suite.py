"""Every question of the benchmark suite runs, its arms agree, and its report tells verdicts."""

import json
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from benchmarks import crops, inputs, memory
from benchmarks.__main__ import QUESTIONS, main
from benchmarks.profile_predict import REST, STAGES, TOTAL, as_markdown, measured
from benchmarks.report import (
    BEGIN,
    END,
    short,
    target_table,
    verdicts,
    with_quartiles,
    write_report,
)
from benchmarks.rows import Machine, Row, Run, Spread, Timing, keep, parse, read, results_file
from benchmarks.runner import (
    Arm,
    Case,
    Setting,
    Timed,
    cpu_seconds,
    difference,
    measure,
    optional,
    rounds_of,
)
from benchmarks.targets import Target
from benchmarks.time_to_accuracy import Curve, first_below, side_by_side
from lightning_bbox.nn.network import OffsetNet

CPU = torch.device("cpu")
SMALLEST = Setting(CPU, "smallest")


def counting(names: list[str], name: str) -> Arm:
    """An arm that notes when it is called."""

    def call(turn: int) -> float:
        names.append(name)
        return float(turn)

    return Arm(name, call)


def a_row(**changes: object) -> Row:
    """A row of made-up figures: ours takes 1 ms, a peer 12."""
    run = Run("abc", "2026-01-01", "cpu", "Chip", 2, 1, [0.0], {"torch": "2.13"})
    timings = [
        Timing(name, Spread(1e-3 * times, 1e-3 * times, 1e-3 * times, 3), 1.0, None, "")
        for name, times in (("ours", 1), ("kornia crop_by_indices", 12))
    ]
    row = Row(
        question="crops",
        case=f"{crops.INTEGER}, batch 256",
        size="small",
        run=run,
        unit="crops",
        items=256,
        useful_bytes=10,
        floor_seconds=5e-4,
        floor_share=0.5,
        arms=timings,
        ratios={"kornia crop_by_indices": Spread(12.0, 11.0, 13.0, 3)},
    )
    return replace(row, **changes)  # type: ignore[arg-type]


@pytest.mark.compile
@pytest.mark.parametrize("question", [each for each in QUESTIONS if each != "memory"])
def test_each_question_runs_and_its_rows_fit_the_schema(question: str, tmp_path: Path) -> None:
    assert (
        main([question, "--size", "smallest", "--device", "cpu", "--results", str(tmp_path)]) == 0
    )
    (path,) = tmp_path.glob("speed-*.json")
    rows = read(path).rows
    assert {row.question for row in rows} == {question}
    for row in rows:
        assert row.run.device == "cpu"
        assert all(arm.seconds.median > 0 for arm in row.arms)
        assert row.arms or row.skipped
        assert {*row.ratios} == {arm.name for arm in row.arms[1:]} or question == "time_to_accuracy"


@pytest.mark.slow
def test_a_step_in_a_process_that_keeps_memory_is_the_same_step() -> None:
    kept, given_back = (memory.in_a_process(16, 1, keep, 0) for keep in (True, False))
    assert kept.value == given_back.value
    assert min(kept.seconds, given_back.seconds) > 0


def test_without_cuda_the_suite_says_so_and_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["crops", "--device", "cuda", "--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "no CUDA device is here, so nothing was measured\n"
    assert not [*tmp_path.iterdir()]


def test_nothing_is_begun_after_the_minutes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--minutes", "0", "--device", "cpu", "--results", str(tmp_path)]
    assert main(["plan", "ridge", *options]) == 0
    assert "ridge is left out: the minutes are over" in capsys.readouterr().out
    assert not [*tmp_path.iterdir()]


def test_a_question_that_fails_is_told_and_the_next_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.plan.cases", lambda _: iter([Case("none", "x", 1, [])]))
    options = ["--size", "smallest", "--device", "cpu", "--results", str(tmp_path)]
    assert main(["plan", "ridge", *options]) == 1
    assert capsys.readouterr().err.endswith("failed: plan\n")
    assert {row.question for path in tmp_path.iterdir() for row in read(path).rows} == {"ridge"}


def test_arms_take_turns_and_every_other_round_is_reversed() -> None:
    called: list[str] = []
    arms = [counting(called, name) for name in "ab"]
    seconds = rounds_of(arms, {"a": 1.0, "b": 1.0}, SMALLEST)
    assert called == ["a", "b", "b", "a", "a", "b"]
    assert [len(values) for values in seconds.values()] == [3, 3]


def test_a_peer_that_gives_something_else_is_refused() -> None:
    right, near, wrong = (
        Arm(name, lambda _, value=value: torch.tensor([value]), 1e-3)
        for name, value in (("ours", 1.0), ("near", 1.0005), ("wrong", 1.1))
    )
    row = measure("q", Case("c", "calls", 1, [right, near]), SMALLEST)
    assert row.differences["near"] == pytest.approx(5e-4, rel=1e-3)
    with pytest.raises(AssertionError, match=r"c: wrong differs by 0\.1"):
        measure("q", Case("c", "calls", 1, [right, wrong]), SMALLEST)


def test_what_cannot_be_done_is_skipped_by_name_with_the_reason() -> None:
    def cannot(_: int) -> object:
        msg = "no such kernel\nand more"
        raise NotImplementedError(msg)

    arms = [Arm("ours", float), Arm("theirs", cannot, refusals=(NotImplementedError,))]
    row = measure("q", Case("c", "calls", 1, arms), SMALLEST)
    assert row.skipped == {"theirs": "NotImplementedError: no such kernel"}
    with pytest.raises(NotImplementedError):
        measure("q", Case("c", "calls", 1, [arms[0], replace(arms[1], refusals=())]), SMALLEST)


def test_an_arm_that_times_itself_is_believed() -> None:
    arms = [Arm(name, lambda _, s=s: Timed(s, 7.0)) for name, s in (("ours", 2.0), ("peer", 6.0))]
    row = measure("q", Case("c", "calls", 1, arms, flop=10**9), SMALLEST)
    assert row.ratios["peer"].median == 3.0
    assert row.floor_share == pytest.approx((row.floor_seconds or 0) / 2)
    assert difference(Timed(1.0, 3.0), Timed(9.0, 3.5)) == 0.5


def work(pipe: Connection) -> None:
    """Compute, tell the CPU time that this process took so far, and wait."""
    sum(range(5_000_000))
    pipe.send(time.process_time())
    pipe.recv()


def test_the_time_of_worker_processes_counts_while_they_live_and_after() -> None:
    def of_workers() -> float:
        return cpu_seconds() - time.thread_time()

    context = torch.multiprocessing.get_context("fork")
    here, there = context.Pipe()
    before = of_workers()
    worker = context.Process(target=work, args=(there,))
    worker.start()
    told = here.recv()
    assert of_workers() - before >= told
    here.send("done")
    worker.join()
    assert of_workers() - before >= told


def test_rows_are_kept_by_machine_and_replaced_by_case(tmp_path: Path) -> None:
    path = keep([a_row(), a_row(case="other")], tmp_path)
    assert path == results_file(a_row().run, tmp_path)
    keep([a_row(items=7)], tmp_path)
    assert [(row.case, row.items) for row in read(path).rows] == [
        (f"{crops.INTEGER}, batch 256", 7),
        ("other", 256),
    ]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"items": "many"}, "items"),
        ({"items": True}, "items"),
        ({"useful_bytes": 1.5}, "useful_bytes"),
        ({"floor_share": float("nan")}, "floor_share"),
        ({"extra": 1}, "missing or unknown: extra"),
        ({"arms": [{"name": "x"}]}, r"arms\[0\]: missing or unknown: first_seconds"),
    ],
)
def test_another_form_is_refused(change: dict[str, object], where: str, tmp_path: Path) -> None:
    document = json.loads(keep([a_row()], tmp_path).read_text())
    document["rows"][0] |= change
    with pytest.raises(ValueError, match=where):
        parse(Machine, document, "file")


def test_the_target_table_tells_gates_goals_and_what_is_not_measured() -> None:
    table = target_table([a_row()]).splitlines()
    (line,) = (line for line in table if line.startswith("| cpu: integer cut | kornia crop_by_"))
    assert line.endswith("crop_by_indices | 2 | 4 | 12.0 | 11.0 | goal reached |")
    for low, verdict in ((2.3, "gate met"), (1.9, "**gate missed**")):
        slower = {"kornia crop_by_indices": Spread(2.5, low, 2.6, 3)}
        assert f"| 2.50 | {low:.2f} | {verdict} |" in target_table([a_row(ratios=slower)])
    missing = [line for line in table if line.startswith("| H200")]
    assert len(missing) == 8
    assert all("| not measured |" in line for line in missing)


def test_verdicts_are_told_for_what_was_measured() -> None:
    (line,) = verdicts([a_row()])
    assert line.startswith("  integer cut against kornia crop_by_indices: 12.0 (11.0), gate 2, ")
    assert line.endswith(": goal reached")
    slower = {"kornia crop_by_indices": Spread(1.1, 1.0, 1.6, 3)}
    (line,) = verdicts([a_row(ratios=slower)])
    assert line.endswith("1.10 (1.00), gate 2, goal 4: **gate missed**")


def test_targets_read_shares_rates_and_seconds() -> None:
    row = a_row(run=replace(a_row().run, device="NVIDIA H200"))
    share, rate, seconds = (
        Target("x", "H200", "crops", crops.INTEGER, kind, 1, 1)
        for kind in ("share", "rate", "seconds")
    )
    assert [one.row([a_row()]) for one in (share, rate, seconds)] == [None] * 3
    assert share.row([row]) is row
    assert share.figure(row) == (0.5, 0.5)
    assert rate.figure(row) == (256_000, 256_000)
    assert seconds.meets(0.9, 1.0)
    assert not share.meets(0.9, 1.0)


def test_the_report_replaces_what_is_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    slow = {"kornia crop_by_indices": Spread(0.8, 0.7, 0.9, 3)}
    scaling = [a_row(question="scaling", case=f"the cut, batch {n}", items=n) for n in (64, 256)]
    keep([a_row(ratios=slow), *scaling], tmp_path)
    write_report(tmp_path, page)
    text = page.read_text()
    assert text.startswith(f"before\n\n{BEGIN}\n\n| target |")
    assert text.endswith(f"{END}\n\nafter\n")
    assert "old" not in text
    assert "0.8 (0.7 to 0.9), **faster than ours**" in text
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "speed-chip-peers.png",
        "speed-chip-scaling.png",
    }
    page.write_text("no markers")
    with pytest.raises(ValueError, match="lacks the markers"):
        write_report(tmp_path, page)


def test_numbers_are_written_with_three_digits() -> None:
    values = (0.0123, 1.234, 12.34, 123.4, 12_345.0, 1_234_567.0)
    assert [short(value) for value in values] == [
        *("0.0123", "1.23", "12.3", "123", "12.3 k", "1.23 M"),
    ]
    assert with_quartiles(Spread(0.0021, 0.002, 0.0024, 9)) == "2.10 ms (2.00 to 2.40)"


def test_the_time_to_an_error_is_that_of_the_first_validation_below_it() -> None:
    curve = [{"error": 1.2, "all": 1.0}, {"error": 0.9, "all": 2.0}, {"error": 0.95, "all": 3.0}]
    assert first_below(curve, 1.0) == curve[1]
    assert first_below(curve, 0.85) is None


def test_two_configs_are_compared_by_the_seeds_that_both_reached_the_error_with() -> None:
    def curves(*seconds: float, errors: tuple[float, ...] = (0.8, 0.8, 0.8)) -> list[Curve]:
        names = ("step", "steps", "steady", "all", "processor", "first step's excess")
        ends = zip(errors, seconds, strict=True)
        return [[{"error": error} | dict.fromkeys(names, each)] for error, each in ends]

    slow, fast = curves(10.0, 20.0, 40.0), curves(5.0, 5.0, 1.0, errors=(0.8, 0.85, 0.9))
    steps, _, everything, _ = side_by_side(("slow", slow), ("fast", fast), 0.85)
    assert everything["case"] == "fast beside slow to 0.85 px, everything"
    assert steps["ratios"] == {"fast": Spread(0.375, 0.3125, 0.4375, 2)}
    assert [arm.seconds.median for arm in steps["arms"]] == [15.0, 5.0]
    assert steps["skipped"] == {"not reached by both": "in 1 of 3 seeds"}
    assert not [*side_by_side(("slow", slow), ("fast", fast), 0.5)]


def test_the_peers_bank_holds_the_stores_pictures() -> None:
    data = inputs.RandomPictures(3, 20, 30, 6, (8, 9), inputs.ONE_SAMPLE, 2, 4)
    bank = inputs.bank_of(data, CPU)
    assert bank.shape == (3, 3, 20, 30)
    assert torch.equal(bank[2].permute(1, 2, 0), torch.from_numpy(inputs.noise(3, 20, 30)[2]))


def test_a_module_that_is_not_there_is_none() -> None:
    assert optional("no_such_module_anywhere") is None
    assert optional("kornia") is not None


@pytest.mark.compile
def test_the_stages_of_predict_and_the_rest_are_all_of_its_time() -> None:
    forward = OffsetNet.forward
    found = measured(SMALLEST, runs=1)
    assert OffsetNet.forward is forward
    for seconds in found.values():
        assert sum(seconds[stage] for stage in (*STAGES, REST)) == pytest.approx(seconds[TOTAL])
    assert all(found["5 boxes in each of 3 JPEGs of 80 x 60"][stage] > 0 for stage in STAGES)
    first, *_, last = as_markdown(found).splitlines()
    assert first.endswith("| `Refiner`, a box of 80 x 60 |")
    assert last.startswith("| Pillow alone, decoding | ")
    assert last.endswith(" |  |")
