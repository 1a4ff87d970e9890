"""The house: rooms of bearable size, and public names that lead where they should."""

import ast
import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_bbox

PACKAGE = Path(lightning_bbox.__file__).parent
ROOMS = sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(PACKAGE)))
def test_a_room_holds_two_to_twelve_modules(room: Path) -> None:
    modules = [path for path in room.glob("*.py") if path.name != "__init__.py"]
    sub_rooms = list(room.glob("*/__init__.py"))
    assert len(modules) + len(sub_rooms) >= 2
    assert len(modules) <= 12


def test_the_map_names_every_module_and_the_readme_every_room() -> None:
    place = (PACKAGE.parent / "docs" / "reference" / "rooms.md").read_text()
    modules = {path.stem for room in ROOMS for path in room.glob("*.py")} - {"__init__"}
    assert {name for name in modules if f"`{name}`" not in place} == set()
    readme = (PACKAGE.parent / "README.md").read_text()
    rooms = {room.name for room in ROOMS if room.parent == PACKAGE}
    assert {name for name in rooms if f"| `{name}/` |" not in readme} == set()


def test_three_files_at_the_door() -> None:
    assert len([path for path in PACKAGE.iterdir() if path.is_file()]) <= 3


def test_types_and_run_time_have_the_same_public_names() -> None:
    (block,) = (
        node
        for node in ast.parse(inspect.getsource(lightning_bbox)).body
        if isinstance(node, ast.If)
    )
    typed = {
        (alias.name, node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == set(lightning_bbox._HOME_OF.items())
    assert set(dir(lightning_bbox)) >= set(lightning_bbox.__all__)


@pytest.mark.parametrize("name", lightning_bbox.__all__)
def test_a_public_name_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(lightning_bbox, name))


def test_importing_the_package_imports_neither_torch_nor_lightning() -> None:
    heavy = "import sys, lightning_bbox; print(sorted({'torch', 'lightning'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", heavy], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_what_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'BinHaed'"):
        lightning_bbox.BinHaed  # noqa: B018


def test_public_functions_have_examples() -> None:
    public = [getattr(lightning_bbox, name) for name in lightning_bbox.__all__]
    functions = [one for one in public if inspect.isfunction(one)]
    assert len(functions) >= 4
    for function in functions:
        (found,) = doctest.DocTestFinder(recurse=False).find(function, function.__name__)
        assert found.examples
