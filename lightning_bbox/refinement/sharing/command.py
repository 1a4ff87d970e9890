"""The command `card`: a run's card, alone or in a folder that holds the model too."""

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import encoded, expanded, make_folder, write_atomically
from lightning_bbox.core.messages import say
from lightning_bbox.core.options import CommandParser
from lightning_bbox.models.checkpoints import checkpoint_of, read_checkpoint, write_shared
from lightning_bbox.refinement.sharing.card import RunFacts, card_of

CARD, README = "card.md", "README.md"
"""What the card is called in a run's folder, and in that of a shared model."""


def card(arguments: list[str]) -> None:
    """Run the command `card`.

    Args:
        arguments: The command line after `card`.

    Raises:
        BadInput: The run can't be read or wasn't tested, or something is there already.
    """
    own = card_parser().parse_args(arguments)
    run = expanded(own.run)
    facts = RunFacts.of(run)
    folder = run if own.to is None else expanded(own.to)
    name = CARD if own.to is None else README
    text = card_of(facts, own.title, own.licence, shared=own.to is not None)
    copied = {} if own.to is None else {each: (run / each).read_bytes() for each in facts.pictures}
    for each in (name, *copied):
        if (folder / each).exists():
            remedy = "move it" if own.to is None else "move it, or name another folder by --to"
            raise BadInput.at(str(folder / each), "is there already", remedy)
    if own.to is not None:
        write_shared(read_checkpoint(checkpoint_of(run)), folder, "--to")
    make_folder(folder, "--to")
    for each, content in copied.items():
        write_atomically(folder / each, content, "--to")
    write_atomically(folder / name, encoded(text), "--to")
    beside = "" if own.to is None else f"; the model: Refiner.from_pretrained('{folder}')"
    say(f"{folder / name}{beside}")


def card_parser() -> CommandParser:
    """Return what reads the options of `card`."""
    parser = CommandParser(
        "card",
        "Write a card of a trained model, from what its run left: data, figures "
        "beside those of predicting the mean, whom it harms, calibration, limits, licence, how to "
        "load it.",
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument(
        "--to",
        metavar="FOLDER",
        help="make a folder of the model to share: weights in safetensors, the recipe in JSON, the "
        "card as README.md; card.md in the run's folder otherwise",
    )
    parser.add_argument(
        "--licence",
        help="terms of the model, such as apache-2.0 (the hub's words) or a sentence of your own",
    )
    parser.add_argument("--title", help="what the model is called; as its run by default")
    return parser
