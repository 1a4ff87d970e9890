"""Where a shared model lies: in a folder here, or on the Hugging Face hub."""

import re
from os import PathLike
from pathlib import Path

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import expanded
from lightning_bbox.models.checkpoints import CONFIG, WEIGHTS

_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def folder_of(source: str | PathLike[str], revision: str | None = None) -> Path:
    """Return the folder of a shared model, which is downloaded once where it is the hub's.

    Nothing but its weights and its recipe is fetched.

    Args:
        source: A folder, or the id of a model on the Hugging Face hub, `OWNER/NAME`.
        revision: Branch, tag or commit of the hub's model.

    Raises:
        BadInput: There is no such folder, it holds no shared model, or the model can't be had
            from the hub.

    Examples:
        >>> folder_of("nowhere")
        Traceback (most recent call last):
        lightning_bbox.BadInput: nowhere: is no folder; correct its path, or give OWNER/NAME of ...
    """
    folder = expanded(str(source))
    if not folder.is_dir():
        folder = _downloaded(str(source), revision)
    elif revision is not None:
        problem = f"is a folder here, and revision {revision} is asked for"
        raise BadInput.at(str(source), problem, "leave it out")
    if not (folder / WEIGHTS).is_file():
        remedy = "make such a folder by lightning-bbox card RUN --to FOLDER"
        raise BadInput.at(str(source), f"holds no {WEIGHTS}, so no shared model", remedy)
    return folder


def _downloaded(source: str, revision: str | None) -> Path:
    if not _ID.fullmatch(source):
        remedy = "correct its path, or give OWNER/NAME of a model on the Hugging Face hub"
        raise BadInput.at(source, "is no folder", remedy)
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        problem = "is no folder here, and the Hugging Face hub needs huggingface_hub"
        remedy = "pip install 'lightning_bbox[hub]', or download the model's files to a folder"
        raise BadInput.at(source, problem, remedy) from error
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=[WEIGHTS, CONFIG]))
    except Exception as error:  # its errors have no common base
        why = " ".join(str(error).split())
        problem = f"can't be had from the Hugging Face hub ({why})"
        remedy = "correct the id, or log in where it is private"
        raise BadInput.at(source, problem, remedy) from error
