"""The house: modules in the order of the data, public names documented, exemplified and tested."""

import ast
import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import lightning_bbox

PACKAGE = Path(lightning_bbox.__file__).parent
ORDER = [
    *(
        "memory",
        "errors",
        "files",
        "keyed_files",
        "messages",
        "parts",
        "plan",
        "ahead",
        "compiling",
        "boxes",
    ),
    *("records", "nested_formats", "line_formats", "headers", "pictures", "layouts", "tables"),
    "annotations",
    "writers",
    *("images", "stores", "kernels", "triton_cut", "crops", "codecs", "jitter", "augment"),
    *("loader", "samples", "draws", "data", "descriptions"),
    *("box_data", "patch_data", "scenes", "scene_data"),
    *("preprocess", "whitening", "inits", "regularizers", "losses", "box_losses"),
    *("pretrained", "stochastic_layers", "backbones", "alexnet", "extractor"),
    *("least_squares", "ridge_sums", "calibration", "heads"),
    *("bins", "links", "bin_losses", "decoders", "bin_head"),
    *("soft_argmax", "likelihoods", "likelihood_head", "schedules"),
    *("network", "advice", "feature_cache", "stability", "tuning"),
    *("metrics", "evaluation", "divergence", "stopping", "checkpoints"),
    *("checkpointed", "models", "step_graph", "stepping", "tasks", "ridge_regressor", "refiner"),
    *("layers", "readings", "charts", "probe"),
    *("report", "preprocess_pictures", "callbacks", "predictions", "arguments", "options", "ranks"),
    *("designs", "study", "results"),
    *("intervals", "comparison", "comparison_tables", "comparison_charts", "comparison_page"),
    *("compare", "run_folders", "cli"),
]


def imported_modules(path: Path) -> set[str]:
    """Return the modules of the package that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning_bbox."):
            found.add(str(node.module).split(".")[1])
    return found


def test_the_order_names_every_module() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == {*ORDER, "__init__", "__main__"}


@pytest.mark.parametrize("module", ORDER)
def test_module_imports_only_from_those_above_it(module: str) -> None:
    above = set(ORDER[: ORDER.index(module)])
    assert imported_modules(PACKAGE / f"{module}.py") <= above


@pytest.mark.parametrize("module", ORDER)
def test_module_stays_within_400_lines(module: str) -> None:
    assert len((PACKAGE / f"{module}.py").read_text().splitlines()) <= 400


def public_functions() -> list[tuple[str, str]]:
    """Return (module, name) of every public function and class with a constructor of its own."""
    found = []
    for module in ORDER:
        loaded = importlib.import_module(f"lightning_bbox.{module}")
        found += [
            (module, name)
            for name, value in vars(loaded).items()
            if not name.startswith("_")
            and getattr(value, "__module__", "") == loaded.__name__
            and inspect.isfunction(inspect.unwrap(value))
        ]
    return found


@pytest.mark.parametrize(("module", "name"), public_functions())
def test_public_function_has_an_example(module: str, name: str) -> None:
    function = getattr(importlib.import_module(f"lightning_bbox.{module}"), name)
    examples = doctest.DocTestFinder(recurse=False).find(inspect.unwrap(function), name)
    assert any(test.examples for test in examples)


@pytest.mark.parametrize("name", lightning_bbox.__all__)
def test_exported_name_is_tested(name: str) -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert name in tests.replace(f'"{name}",', "")
