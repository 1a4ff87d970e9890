"""The notebooks of the docs: run without Jupyter, and what they print and show kept in them.

`python -m tests.notebooks docs/examples/NAME.ipynb DATA="'FOLDER'"` runs one anew and keeps it.
"""

import ast
import base64
import io
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

Kept = Callable[[dict[str, Any], str, object], None]


def run(notebook: Path, settings: Mapping[str, object], keep: Kept | None = None) -> dict[str, Any]:
    """Run the cells in their order and return their names and values.

    Args:
        notebook: The file.
        settings: Values in the place of those that its first cell of code sets.
        keep: What is done with each cell of code, what it printed and the value of its last line.
    """
    names: dict[str, Any] = {"__name__": "notebook"}
    cells = [cell for cell in read(notebook)["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells):
        with redirect_stdout(io.StringIO()) as printed:
            value = _value_of("".join(cell["source"]), names)
        if not number:
            unknown = settings.keys() - names.keys()
            assert not unknown, f"{notebook}: {unknown} isn't set in its first cell"
            names |= settings
        if keep is not None:
            keep(cell, printed.getvalue(), value)
    return names


def read(notebook: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(notebook.read_text())
    return content


def _value_of(source: str, names: dict[str, Any]) -> object:
    """Run a cell and return the value of its last line, if that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def main(arguments: list[str]) -> None:
    path, *given = arguments
    settings = {
        name: ast.literal_eval(value) for name, _, value in (a.partition("=") for a in given)
    }
    outputs: list[list[dict[str, Any]]] = []
    run(Path(path), settings, lambda _, *shown: outputs.append(_outputs(*shown)))
    content = read(Path(path))
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    for number, (cell, shown) in enumerate(zip(cells, outputs, strict=True), start=1):
        cell |= {"outputs": shown, "execution_count": number}
    Path(path).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _outputs(printed: str, value: object) -> list[dict[str, Any]]:
    """Return what a cell leaves, as a notebook keeps it: text, and a Pillow image."""
    outputs: list[dict[str, Any]] = []
    if printed:
        text = printed.splitlines(keepends=True)
        outputs.append({"output_type": "stream", "name": "stdout", "text": text})
    if hasattr(value, "_repr_png_"):
        png = base64.b64encode(value._repr_png_()).decode()
        outputs.append({"output_type": "display_data", "data": {"image/png": png}, "metadata": {}})
    return outputs


if __name__ == "__main__":
    main(sys.argv[1:])
