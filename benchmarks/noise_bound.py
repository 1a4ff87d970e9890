"""How near to the Cramer-Rao bound does each recipe come, where nothing but noise limits it?

    python -m benchmarks.noise_bound [--only NAME ...] [--seeds 0 1 2] [--runs runs/noise_bound]

All scenes are one template, a band-limited 1/f texture of contrast 0.2; what differs is the shift,
uniform within 5 px, and white noise of 0.05 in every pixel of the crop. The matched filter, told
the template, shows that the bound is there to be reached; the recipes learn from crops alone. Every
run is a process of its own, and isn't run again where its file in the folder of runs is there.
`benchmarks/results/noise_bound.json` and `.md` hold the root mean square error of the test's shifts
in px and its ratio to the bound, with a 95 % t-interval of the mean over seeds.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import scipy.stats  # type: ignore[import-untyped] # scipy has no types
import torch

from benchmarks.ranks import machine
from lightning_bbox import BoxRegressor, SceneDataModule, ShallowConvNet
from lightning_bbox.core.compiling import default_precision
from lightning_bbox.geometry.boxes import box_centers
from lightning_bbox.geometry.crop_geometry import CropGeometry
from lightning_bbox.nn.heads.bins.head import BinHead
from lightning_bbox.nn.heads.linear import LinearHead
from lightning_bbox.nn.losses import L2Loss, SmoothL1Loss
from lightning_bbox.pictures.augment import Augment

RESULTS = Path(__file__).parent / "results"
FILTER = "matched filter, told the template"
NOISE = 0.05


class Recipe(NamedTuple):
    """One row of the table: how to call it, what it trains, and with how much more noise."""

    name: str
    title: str
    model: Callable[[], BoxRegressor]
    precision: Any = default_precision()
    steps: int = 4_000
    more_noise: float = 0.0


def no_norm() -> ShallowConvNet:
    """Return a small net without batch norm: statistics of a batch are noise in its features."""
    return ShallowConvNet(channels=(16, 32, 64), batch_norm=False)


def wide_kernels() -> ShallowConvNet:
    """Return one of wide kernels, which can smooth the noise before the first ReLU."""
    return ShallowConvNet((8, 32, 64), kernel=5, convs_per_scale=1, fc=(512,), batch_norm=False)


RECIPES = (
    Recipe("l2", "scaled L2", lambda: BoxRegressor(head=LinearHead(L2Loss()))),
    Recipe("smooth-l1", "scaled smooth L1", lambda: BoxRegressor(head=LinearHead(SmoothL1Loss()))),
    Recipe("bins", "HL-Gauss bins of 0.5 px", lambda: BoxRegressor(head=BinHead())),
    Recipe(
        "narrow", "HL-Gauss bins of 0.25 px", lambda: BoxRegressor(head=BinHead(bin_width=0.25))
    ),
    Recipe("exact", "bins in fp32", lambda: BoxRegressor(head=BinHead()), "32-true"),
    Recipe("no-norm", "bins, small net, no batch norm", lambda: BoxRegressor(no_norm())),
    Recipe("wide", "bins, kernels of 5, no batch norm", lambda: BoxRegressor(wide_kernels())),
    Recipe(
        "wide-noise",
        "bins, kernels of 5, no batch norm, 0.1 more noise in training",
        lambda: BoxRegressor(wide_kernels()),
        more_noise=0.1,
    ),
    Recipe(
        "wide-noise-l2",
        "scaled L2, kernels of 5, no batch norm, 0.1 more noise in training",
        lambda: BoxRegressor(wide_kernels(), LinearHead(L2Loss())),
        more_noise=0.1,
    ),
)


def main(args: list[str] | None = None) -> int:
    """Run what is missing, then write the table of all that is there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.noise_bound")
    parser.add_argument("--only", nargs="*", default=[recipe.name for recipe in RECIPES])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="instead of each recipe's own")
    parser.add_argument("--runs", type=Path, default=Path("runs/noise_bound"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--here", action="store_true", help="in this process, without the table")
    options = parser.parse_args(args)
    options.runs.mkdir(parents=True, exist_ok=True)
    missing = [
        (recipe, seed)
        for recipe in RECIPES
        for seed in options.seeds
        if recipe.name in options.only and not run_file(options.runs, recipe, seed).is_file()
    ]
    for recipe, seed in missing:
        if options.here:
            steps = options.steps or recipe.steps
            data = template_data(seed, draws=128 * steps, more_noise=recipe.more_noise)
            found = train(recipe, data, steps)
            run_file(options.runs, recipe, seed).write_text(json.dumps(found) + "\n")
        else:
            command = [sys.executable, "-m", "benchmarks.noise_bound", "--here"]
            command += [f"--only={recipe.name}", f"--seeds={seed}", f"--runs={options.runs}"]
            command += [f"--steps={options.steps or recipe.steps}"]
            subprocess.run(command, check=True)
    if not options.here:
        write_results(options.runs, options.results)
    return 0


def run_file(runs: Path, recipe: Recipe, seed: int) -> Path:
    """Return where a run's figures are kept."""
    return runs / f"{recipe.name}-{seed}.json"


def template_data(
    seed: int = 0, draws: int = 128, eval_draws: int = 2_000, more_noise: float = 0.0
) -> SceneDataModule:
    """Return the scenes of one template; the test's shifts and noise don't depend on the seed."""
    return SceneDataModule(
        kind="template",
        noise=NOISE,
        crop=CropGeometry(),
        augment=Augment(flip_x=False, flip_y=False, noise=more_noise),
        draws_per_epoch=draws,
        eval_draws=eval_draws,
        seed=seed,
    )


def train(recipe: Recipe, data: SceneDataModule, steps: int) -> dict[str, Any]:
    """Train a recipe and measure it."""
    torch.set_num_threads(1)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        precision=recipe.precision,
        max_epochs=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = recipe.model()
    since = time.perf_counter()
    trainer.fit(model, datamodule=data)
    seconds = time.perf_counter() - since
    (metrics,) = trainer.test(model, datamodule=data, verbose=False)
    return {
        "rmse_px": metrics["test/rmse_px"],
        "mae_px": metrics["test/mae_px"],
        "steps": steps,
        "precision": str(recipe.precision),
        "seconds": seconds,
    }


def matched_errors(data: SceneDataModule) -> np.ndarray:
    """Return the errors in px of the maximum-likelihood shifts of the test's crops, (n, 2).

    The template's Fourier series is read off the stored picture; the likeliest of shifts half a px
    apart is refined by Gauss-Newton.
    """
    samples = data.samples("test")
    (picture,) = (store.picture(0) for store, _ in data.source.store.parts(torch.tensor([0])))
    crops = data.crops_of(samples).mean(dim=1).double().numpy()
    px = float(data.geometry.px(samples.proposals)[0, 0])
    centers = [
        box_centers(boxes).double().numpy() for boxes in (samples.gt_boxes, samples.proposals)
    ]
    grid = ((np.arange(len(crops[0])) + 0.5) / len(crops[0]) - 0.5) * data.geometry.size * px
    known = FourierSeries.of(picture[:, :, 0] / 255, centers[0][0], grid, px)
    errors: np.ndarray = likeliest_shifts(known, crops) - (centers[0] - centers[1]) / px
    return errors


def likeliest_shifts(known: "FourierSeries", crops: np.ndarray) -> np.ndarray:
    """Return the shifts in px (n, 2) at which a known picture is nearest to crops (n, s, s)."""
    steps = np.arange(-5.5, 5.6, 0.5)
    coarse = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    clean = known.crops(coarse)[0].reshape(len(coarse), -1)
    distances = (clean**2).sum(axis=1) - 2 * crops.reshape(len(crops), -1) @ clean.T
    shifts: np.ndarray = coarse[distances.argmin(axis=1)]
    for _ in range(4):
        clean, *slopes = known.crops(shifts)
        jacobian = np.stack(slopes, axis=-1).reshape(len(crops), -1, 2)
        residual = (crops - clean).reshape(len(crops), -1, 1)
        transposed = jacobian.transpose(0, 2, 1)
        shifts = shifts + np.linalg.solve(transposed @ jacobian, transposed @ residual)[..., 0]
    return shifts


class FourierSeries(NamedTuple):
    """A periodic square picture as (2 waves + 1) squared waves, and where crops are cut.

    A shift by (x, y) px means that the picture lies that much further right and down in the crop.
    """

    coefficients: np.ndarray
    side: int
    center: np.ndarray
    grid: np.ndarray
    px: float

    @classmethod
    def of(
        cls, picture: np.ndarray, center: np.ndarray, grid: np.ndarray, px: float, waves: int = 12
    ) -> "FourierSeries":
        """Read the series off a picture that has no shorter waves than these."""
        order = np.arange(-waves, waves + 1)
        coefficients = (np.fft.fft2(picture) / picture.size)[np.ix_(order, order)]
        return cls(coefficients, len(picture), center, grid, px)

    def crops(self, shifts: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the crops (n, s, s) shifted by (n, 2) px, and their slopes in x and in y."""
        waves = len(self.coefficients) // 2
        turns = 2j * np.pi * np.arange(-waves, waves + 1) / self.side
        places = (self.center - shifts * self.px)[:, :, None] + self.grid - 0.5
        along_x, along_y = (np.exp(places[:, axis, :, None] * turns) for axis in (0, 1))
        back_x = along_x.transpose(0, 2, 1)
        slopes = (self.coefficients * turns, self.coefficients * turns[:, None])
        return (
            (along_y @ self.coefficients @ back_x).real,
            *(-self.px * (along_y @ slope @ back_x).real for slope in slopes),
        )


def write_results(runs: Path, results: Path) -> None:
    """Measure bound and filter, and write them with what the runs found."""
    data = template_data()
    data.setup("test")
    floor = data.error_floor(data.samples("test"))["cramer_rao_rmse_px"]
    matched = float(np.sqrt((matched_errors(data) ** 2).mean()))
    found: dict[str, Any] = {"machine": machine(), "bound_px": floor, "matched_filter_px": matched}
    found["recipes"] = {recipe.name: collect(runs, recipe) for recipe in RECIPES}
    (results / "noise_bound.json").write_text(json.dumps(found, indent=1) + "\n")
    text = as_markdown(found)
    (results / "noise_bound.md").write_text(text)
    print(text)


def collect(runs: Path, recipe: Recipe) -> list[dict[str, Any]]:
    """Return the figures of a recipe's runs."""
    return [json.loads(file.read_text()) for file in sorted(runs.glob(f"{recipe.name}-[0-9].json"))]


def as_markdown(found: dict[str, Any]) -> str:
    """Return the table: error, and how many times the bound that is."""
    bound, matched = found["bound_px"], found["matched_filter_px"]
    lines = [
        "| recipe | steps | precision | seeds | RMSE, px | times the bound | seconds |",
        "|---|---|---|---|---|---|---|",
        f"| Cramer-Rao bound | | | | {bound:.4f} | 1 | |",
        f"| {FILTER} | | | | {matched:.4f} | {matched / bound:.2f} | |",
    ]
    for recipe in RECIPES:
        if runs := found["recipes"].get(recipe.name):
            errors = np.array([run["rmse_px"] for run in runs])
            seconds = np.median([run["seconds"] for run in runs])
            lines.append(
                f"| {recipe.title} | {runs[0]['steps']} | {runs[0]['precision']} | {len(runs)} | "
                f"{with_interval(errors, 4)} | {with_interval(errors / bound, 2)} | {seconds:.0f} |"
            )
    return "\n".join(lines) + "\n"


def with_interval(values: np.ndarray, digits: int) -> str:
    """Return the mean, and where there are several its 95 % t-interval."""
    mean = f"{values.mean():.{digits}f}"
    if len(values) < 2:
        return mean
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)
    return f"{mean} ± {half:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
