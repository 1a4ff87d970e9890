"""What MkDocs makes beside the written pages: pictures, options, names, and pages of notebooks."""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from option_list import option_page

import lightning_bbox

_ROOT = Path(__file__).parents[1]
_RESULTS = "benchmarks/results"
_FOUND_LAST = "---\nsearch: {boost: 0.01}\n---\n"
"""Of pages that search lists behind those for people who want something done."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures that benchmarks left, and the pages that are made of something else."""
    for picture in sorted((_ROOT / _RESULTS).rglob("*.png")):
        name = picture.relative_to(_ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(picture)))
    for room, page in _pages().items():
        files.append(File.generated(config, f"reference/{room}.md", content=page))
    files.append(File.generated(config, "reference/options.md", content=option_page()))
    for notebook in sorted((_ROOT / "docs" / "examples").glob("*.ipynb")):
        page = File.generated(
            config, f"examples/{notebook.stem}.md", content=_as_markdown(notebook)
        )
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Have links to those pictures, which start outside the pages' folder, start inside."""
    up = posixpath.relpath(".", posixpath.dirname(page.file.src_uri))
    inside = f"]({_RESULTS}/" if up == "." else f"]({up}/{_RESULTS}/"
    return re.sub(rf"\]\((?:\.\./)+{_RESULTS}/", inside, markdown)


def _pages() -> dict[str, str]:
    """Return a page of public names for each room that has some."""
    homes: dict[str, list[str]] = {}
    for name, home in lightning_bbox._HOME_OF.items():
        homes.setdefault(home.split(".")[1], []).append(f"{home}.{name}")
    return {
        room: "\n".join([_FOUND_LAST, f"# {room}", "", *(f"::: {path}\n" for path in paths)])
        for room, paths in sorted(homes.items())
    }


def _as_markdown(notebook: Path) -> str:
    """Return a notebook's words, code, and what that printed and showed, with a link to itself."""
    parts = []
    for cell in json.loads(notebook.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts.extend(map(_output, cell.get("outputs", ())))
    title, *rest = parts
    first, _, words = title.partition("\n")
    link = f"[Download this page as a notebook]({notebook.name})"
    return "\n\n".join([first, link, words, *rest])


def _output(output: dict[str, Any]) -> str:
    if "text" in output:
        return f"```text\n{''.join(output['text'])}```"
    return f"![What the code above shows](data:image/png;base64,{output['data']['image/png']})"
