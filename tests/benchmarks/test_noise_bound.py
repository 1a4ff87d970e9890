"""The command that compares recipes with the Cramer-Rao bound."""

import json
from pathlib import Path

import numpy as np

from benchmarks.noise_bound import (
    RECIPES,
    FourierSeries,
    Recipe,
    as_markdown,
    collect,
    run_file,
    template_data,
    train,
    with_interval,
)
from lightning_bbox import BinHead, BoxRegressor, ShallowConvNet


def test_a_fourier_series_and_its_gradient_are_those_of_the_wave_it_was_read_off() -> None:
    def wave(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 0.5 + 0.2 * np.sin(2 * np.pi * (3 * x + 2 * y) / 32)

    pixels = np.arange(32) + 0.5
    grid, center, shift, px = np.linspace(-5, 5, 7), np.array([14.3, 17.9]), (0.7, -1.2), 2.0
    picture = wave(pixels[None], pixels[:, None])
    clean, *slopes = FourierSeries.of(picture, center, grid, px, waves=4).crops(np.array([shift]))

    def crop(x: float, y: float) -> np.ndarray:
        return wave(center[0] - px * x + grid[None], center[1] - px * y + grid[:, None])

    np.testing.assert_allclose(clean[0], crop(*shift), atol=1e-12)
    step = 1e-5
    for slope, (dx, dy) in zip(slopes, ((step, 0.0), (0.0, step)), strict=True):
        ahead, behind = (crop(shift[0] + s * dx, shift[1] + s * dy) for s in (1, -1))
        np.testing.assert_allclose(slope[0], (ahead - behind) / (2 * step), atol=1e-8)


def test_a_recipe_is_trained_and_measured() -> None:
    net = ShallowConvNet(channels=(4,), fc=(8,), batch_norm=False)
    recipe = Recipe("tiny", "tiny", lambda: BoxRegressor(net, BinHead()), "32-true")
    data = template_data(draws=128 * 2, eval_draws=64)
    data.compile = False
    found = train(recipe, data, steps=2)
    assert 1 < found["rmse_px"] < 4
    assert (found["steps"], found["precision"]) == (2, "32-true")


def test_the_table_tells_how_many_times_the_bound_each_recipe_errs(tmp_path: Path) -> None:
    recipe = RECIPES[0]
    for seed, error in enumerate((0.02, 0.03)):
        run = {"rmse_px": error, "steps": 10, "precision": "32-true", "seconds": 7.0}
        run_file(tmp_path, recipe, seed).write_text(json.dumps(run))
    recipes = {recipe.name: collect(tmp_path, recipe)}
    table = as_markdown({"bound_px": 0.01, "matched_filter_px": 0.0102, "recipes": recipes})
    assert "told the template | | | | 0.0102 | 1.02 | |" in table
    assert f"| {recipe.title} | 10 | 32-true | 2 | 0.0250 ± 0.0635 | 2.50 ± 6.35 | 7 |" in table


def test_an_interval_of_the_mean_needs_two_seeds() -> None:
    assert with_interval(np.array([0.5]), 2) == "0.50"
    half = 12.706 * np.std([1.0, 2.0], ddof=1) / np.sqrt(2)
    assert with_interval(np.array([1.0, 2.0]), 2) == f"1.50 ± {half:.2f}"


def test_recipes_have_names_of_their_own() -> None:
    assert len({recipe.name for recipe in RECIPES}) == len(RECIPES)
