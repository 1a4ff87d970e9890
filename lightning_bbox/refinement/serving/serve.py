"""The command `serve`: a trained model that answers over HTTP until it is stopped."""

import ipaddress
import os

from lightning_bbox.core.errors import BadInput
from lightning_bbox.core.files import expanded
from lightning_bbox.core.messages import say
from lightning_bbox.core.options import CommandParser
from lightning_bbox.refinement.refiner import Refiner
from lightning_bbox.refinement.serving.engine import BATCH, Engine
from lightning_bbox.refinement.serving.requests import Limits

TOKEN = "LIGHTNING_BBOX_TOKEN"
"""The variable of the environment that holds the token, where no option does."""
_PATIENCE = 60  # seconds for what was begun


def serve(arguments: list[str]) -> None:
    """Run the command `serve` until it is interrupted or terminated; what was begun is answered.

    Args:
        arguments: The command line after `serve`.

    Raises:
        BadInput: The run has no model that can be read, a package is missing, or an option is
            wrong.
    """
    own = serve_parser().parse_args(arguments)
    try:
        import python_multipart as _  # noqa: F401 (FastAPI asks for it when a form comes)
        import uvicorn

        from lightning_bbox.refinement.serving.service import Served, create_app
    except ImportError as error:
        msg = f"serve needs {error.name}; pip install 'lightning_bbox[serve]'"
        raise BadInput(msg) from error
    for name in ("megabytes", "megapixels", "boxes", "waiting"):
        if not getattr(own, name) > 0:
            msg = f"--{name} is {getattr(own, name)}; give more than 0"
            raise BadInput(msg)
    if not 0 <= own.port < 65536:
        msg = f"--port is {own.port}; give one in 0..65535"
        raise BadInput(msg)
    pictures = None if own.pictures is None else expanded(own.pictures)
    if pictures is not None and not pictures.is_dir():
        raise BadInput.at(str(pictures), "is no folder", "correct --pictures")
    token = own.token or os.environ.get(TOKEN) or None
    checkpoint = expanded(own.run)
    refiner = Refiner(checkpoint, own.device, BATCH, own.max_shift, isolated=True)
    limits = Limits(own.megabytes, own.megapixels, own.boxes)
    name = checkpoint.resolve().stem
    with Engine(refiner) as engine:
        app = create_app(Served(engine, name, limits, token, pictures, own.waiting))
        say(f"serving {own.run} at http://{own.host}:{own.port} (what it answers: /docs)")
        if token is None and not _is_own(own.host):
            say(f"anybody who reaches {own.host} may ask; --token says who")
        uvicorn.run(
            app,
            host=own.host,
            port=own.port,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=_PATIENCE,
        )


def _is_own(host: str) -> bool:
    """Tell whether an address is this machine's own, which others don't reach."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve_parser() -> CommandParser:
    """Return what reads the options of `serve`."""
    most = Limits()
    parser = CommandParser(
        "serve",
        "Answer over HTTP: POST /refine takes a picture and boxes; /predict, /setup "
        "and /webhook are Label Studio's; /docs says it all. Each request gets, to the bit, what "
        "it gets alone, by the law that the checkpoint has.",
    )
    parser.add_argument("run", help="a run's folder, or a checkpoint")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; this machine's")
    parser.add_argument("--port", type=int, default=8000, help="port to listen at; 8000 by default")
    parser.add_argument(
        "--token",
        help=f"what requests must bring (Authorization: Bearer TOKEN); {TOKEN} keeps it from lists "
        "of processes",
    )
    parser.add_argument("--device", default="cpu", help="where the model runs, such as cuda")
    parser.add_argument(
        "--max_shift", type=float, help="leave boxes that would move farther, in px"
    )
    parser.add_argument(
        "--pictures", help="folder of the pictures that Label Studio's tasks name; none is fetched"
    )
    parser.add_argument("--megabytes", type=float, default=most.megabytes, help="of a request")
    parser.add_argument("--megapixels", type=float, default=most.megapixels, help="of a picture")
    parser.add_argument("--boxes", type=int, default=most.boxes, help="of a request")
    parser.add_argument("--waiting", type=int, default=64, help="requests at work or waiting")
    return parser
