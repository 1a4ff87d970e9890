"""The service itself: which address answers what, and how it refuses."""

import asyncio
import base64
import hmac
import json
import math
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from jaxtyping import UInt8
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from lightning_bbox.core.errors import BadInput, listed
from lightning_bbox.refinement.refiner import Refinement
from lightning_bbox.refinement.serving.engine import Asked, BusyError, Engine
from lightning_bbox.refinement.serving.label_studio import (
    Region,
    image_key,
    moved,
    rectangles,
    regions_of,
)
from lightning_bbox.refinement.serving.requests import (
    Limits,
    TooLargeError,
    boxes_in,
    decode_picture,
    labels_in,
    local_picture,
    picture_in,
)

_TASK = "the task"
_REQUEST = "the request"
_TASKS = "tasks"
_RECTANGLES = "rectangles"

_BUSY = "the service: is busy, and as many requests wait as may; ask again"
_OPEN = ("/health",)
"""What is answered without a token."""

_AT_ONCE = 8  # pictures that are decoded and wait: of 50 megapixels they are 1.2 GB
_PATIENCE = 4  # times the largest body that is read of a larger one
_LONGEST_TEXT = 16 << 20  # bytes of a form's boxes or labels

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Served(NamedTuple):
    """What is served, and to whom.

    Attributes:
        engine: What answers.
        name: What the model goes by.
        limits: How large a request may be.
        token: What requests must bring; None where anybody may ask.
        pictures: Folder of the pictures that labelling tasks name.
        most_waiting: How many requests may be at work or wait.
    """

    engine: Engine
    name: str
    limits: Limits = Limits()
    token: str | None = None
    pictures: Path | None = None
    most_waiting: int = 64


def create_app(served: Served) -> FastAPI:
    """Return the service as an ASGI application.

    Args:
        served: What is served, and to whom.
    """
    app = FastAPI(
        title="lightning_bbox",
        version=version("lightning_bbox"),
        summary="Moves rough boxes onto their objects.",
    )
    app.add_middleware(Door, served=served)
    desk = _Desk(served)
    for kind, answer in _REFUSALS.items():
        app.add_exception_handler(kind, answer)

    @app.get("/health", summary="Whether it serves.")
    async def health() -> Response:
        return Json({"status": "UP", "model_class": "lightning_bbox"})

    @app.get("/info", summary="Which model it is, and how large requests may be.")
    async def info() -> Response:
        refiner = served.engine.refiner
        law = None if refiner.law is None else refiner.law.words()
        return Json(
            {
                "model": served.name,
                "classes": list(refiner.spec.classes),
                "labels_needed": refiner.model.net.head.per_class,
                "px": f"a crop's side over {refiner.spec.geometry.reference_size:g}",
                "law": law,
                "limits": served.limits._asdict(),
                "version": version("lightning_bbox"),
            }
        )

    @app.post("/refine", summary="Refine boxes of a picture.", openapi_extra=_REFINE)
    async def refine(request: Request) -> Response:
        sent = await _sent(request)
        boxes = boxes_in(sent.get("boxes"), served.limits)
        labels = labels_in(sent.get("labels"), len(boxes))
        content = sent.get("image")
        if not isinstance(content, bytes):
            content = picture_in(content)
        _, found = await desk.refine(content, lambda picture: Asked(picture, boxes, labels))
        return Json(_answer(found))

    @app.post("/setup", summary="Label Studio: tells the model's version.")
    async def setup(request: Request) -> Response:
        await _sent(request)
        return Json({"model_version": served.name})

    @app.post("/webhook", summary="Label Studio: events, of which none is needed.")
    async def webhook(request: Request) -> Response:
        await _sent(request)
        return Json({"status": "ignored", "result": {}})

    @app.post("/predict", summary="Label Studio: refines the rectangles of tasks.")
    async def predict(request: Request) -> Response:
        sent = await _sent(request)
        tasks = sent.get("tasks")
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            raise BadInput.at(_TASKS, "are missing, or no list of tasks", "send a list of them")
        params = sent.get("params")
        context = params.get("context") if isinstance(params, dict) else None
        config = sent.get("label_config")
        each = [desk.of_task(task, context, config) for task in tasks]
        results = await asyncio.gather(*each)
        return Json({"results": results, "model_version": served.name})

    return app


class _Desk:
    """Where requests become answers; only so many pictures are decoded at once."""

    def __init__(self, served: Served) -> None:
        self.served, self.room = served, asyncio.Semaphore(_AT_ONCE)

    async def refine(
        self, content: bytes, ask: Callable[[UInt8[np.ndarray, "h w 3"]], Asked]
    ) -> tuple[Asked, Refinement]:
        """Decode a picture, and return what is then asked, and the answer."""
        refiner = self.served.engine.refiner
        async with self.room:
            arguments = content, self.served.limits, refiner.white_level, refiner.spec.part
            asked = ask(await run_in_threadpool(decode_picture, *arguments))
            if refiner.model.net.head.per_class and asked.labels is None and len(asked.boxes):
                msg = f"labels: are missing; send one a box, of {listed(refiner.spec.classes)}"
                raise BadInput(msg)
            return asked, await asyncio.wrap_future(self.served.engine.submit(asked))

    async def of_task(
        self, task: Mapping[str, Any], context: object, config: object
    ) -> dict[str, object]:
        """Return a labelling task's regions, the upright rectangles among them refined."""
        data = task.get("data")
        if not isinstance(data, dict):
            raise BadInput.at(_TASK, "has no data", "send it as Label Studio does")
        regions, score = regions_of(task, context), None
        if regions:
            address = data[image_key(config, data)]
            if address.startswith("data:"):
                content = picture_in(address)
            else:
                content = await run_in_threadpool(local_picture, address, self.served.pictures)
            regions, score = await self.moved(content, regions)
        return {"result": regions, "score": score, "model_version": self.served.name}

    async def moved(
        self, content: bytes, regions: list[Region]
    ) -> tuple[list[Region], float | None]:
        """Return regions on a picture, refined, and the largest expected gain."""
        rows = list[int]()

        def ask(picture: UInt8[np.ndarray, "h w 3"]) -> Asked:
            height, width = picture.shape[:2]
            found, boxes, labels = rectangles(regions, width, height)
            rows.extend(found)
            if len(boxes) > (most := self.served.limits.boxes):
                problem = f"are {len(boxes)}, more than {most}"
                raise TooLargeError.at(_RECTANGLES, problem, "send fewer")
            return Asked(picture, boxes.float(), labels)

        asked, found = await self.refine(content, ask)
        height, width = asked.picture.shape[:2]
        for at, old, new in zip(rows, asked.boxes, found.boxes, strict=True):
            if not torch.equal(old, new) and bool(new.isfinite().all()):
                regions[at] = moved(regions[at], new.tolist(), width, height)
        gains = [gain for gain in found.gains.tolist() if math.isfinite(gain)]
        return regions, max(gains, default=None)


def _answer(found: Refinement) -> dict[str, object]:
    """Return what is sent back; what isn't known is null."""
    stds = [[_known(each) for each in row] for row in found.stds.tolist()]
    return {
        "boxes": [[_known(each) for each in row] for row in found.boxes.tolist()],
        "stds": stds,
        "gains": [_known(each) for each in found.gains.tolist()],
        "beyond": found.beyond.tolist(),
        "unmoved": {str(at): reason for at, reason in found.unmoved.items()},
    }


def _known(number: float) -> float | None:
    return number if math.isfinite(number) else None


async def _sent(request: Request) -> dict[str, Any]:
    """Return what a request holds: JSON, or a form with a file.

    Raises:
        BadInput: It is neither.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _form(request)
    content = await request.body()
    try:
        sent = _loaded(content)
    except (ValueError, RecursionError) as error:
        said = " ".join(str(error).split())[:120]
        remedy = "send JSON, or a form with the picture as a file"
        raise BadInput.at(_REQUEST, f"is no JSON ({said})", remedy) from error
    if not isinstance(sent, dict):
        raise BadInput.at(_REQUEST, f"is {type(sent).__name__}", "send an object of JSON")
    return sent


def _loaded(text: str | bytes) -> Any:  # noqa: ANN401 (JSON)
    """Read JSON whose numbers are all finite."""

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            msg = f"{number} is no number of JSON's"
            raise ValueError(msg)
        return value

    return json.loads(text, parse_float=finite, parse_constant=finite)


async def _form(request: Request) -> dict[str, Any]:
    sent: dict[str, Any] = {}
    limits = {"max_files": 1, "max_fields": 8, "max_part_size": _LONGEST_TEXT}
    try:
        async with request.form(**limits) as form:
            for name in ("boxes", "labels"):
                if isinstance(text := form.get(name), str):
                    sent[name] = _of_field(name, text)
            picture = form.get("image")
            sent["image"] = await picture.read() if isinstance(picture, UploadFile) else picture
    except HTTPException as error:
        problem = f"is no form that can be read ({error.detail})"
        raise BadInput.at(_REQUEST, problem, "send image, boxes and labels") from error
    return sent


def _of_field(name: str, text: str) -> object:
    try:
        return _loaded(text)
    except (ValueError, RecursionError) as error:
        raise BadInput.at(name, f"are {text[:60]!r}", "write them as JSON") from error


class Door:
    """What each request passes first: its token is looked at, and its size.

    Args:
        app: What is behind.
        served: Whom it serves, and how large requests may be.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], served: Served) -> None:
        self.app, self.served, self.inside = app, served, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        token, brought = self.served.token, headers.get(b"authorization", b"")
        if token is not None and scope["path"] not in _OPEN and not _has_token(brought, token):
            sentence = "authorization: is missing or wrong; send Authorization: Bearer TOKEN"
            await _refusal(401, sentence)(scope, receive, send)
            return
        most = int(self.served.limits.megabytes * 1e6)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > most:
            await _drain(receive, most)
            await _refusal(413, _too_many(most))(scope, receive, send)
            return
        if self.inside >= self.served.most_waiting and scope["path"] not in _OPEN:
            await _refusal(503, _BUSY)(scope, receive, send)
            return
        seen = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                if message.get("more_body"):
                    await _drain(receive, most)
                raise TooLargeError(_too_many(most))
            return message

        self.inside += 1
        try:
            await self.app(scope, counted, send)
        finally:
            self.inside -= 1


async def _drain(receive: Receive, most: int) -> None:
    """Throw the rest of a body away, in bounds, so that its sender comes to read the refusal."""
    left = _PATIENCE * most
    while left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
        if not message.get("more_body"):
            return


def _too_many(most: int) -> str:
    return f"the request: has more than {most / 1e6:g} MB; send a smaller picture"


def _has_token(header: bytes, token: str) -> bool:
    """Tell whether a header brings the token, by itself or as the password of basic access."""
    kind, _, value = header.partition(b" ")
    if kind.lower() == b"basic":
        try:
            value = base64.b64decode(value, validate=True).partition(b":")[2]
        except ValueError:
            return False
    return hmac.compare_digest(value.strip(), token.encode())


class Json(JSONResponse):
    """An answer in JSON of ASCII alone: what came in half a character goes out again so."""

    def render(self, content: object) -> bytes:
        """Write it."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def _refusal(status: int, sentence: str) -> JSONResponse:
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(status)
    return Json({"error": sentence}, status_code=status, headers=headers)


async def _bad_input(_: Request, error: Exception) -> JSONResponse:
    return _refusal(413 if isinstance(error, TooLargeError) else 400, str(error))


async def _busy(_: Request, __: Exception) -> JSONResponse:
    return _refusal(503, _BUSY)


async def _other(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    sentence = f"{request.method} {request.url.path}: {error.detail}; see /docs for what there is"
    return _refusal(error.status_code, sentence)


async def _too_deep(_: Request, __: Exception) -> JSONResponse:
    return _refusal(400, "the request: is nested too deeply; send it as /docs says")


_REFUSALS = {
    BadInput: _bad_input,
    BusyError: _busy,
    HTTPException: _other,
    RecursionError: _too_deep,
}

_BOX = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
_FIELDS: dict[str, object] = {
    "boxes": {
        "type": "array",
        "items": _BOX,
        "description": "[xmin, ymin, xmax, ymax] in pixels of the upright picture, edges",
    },
    "labels": {
        "type": "array",
        "items": {"type": "string"},
        "description": "the boxes' classes, for a model with a regressor for each",
    },
}


def _body(image: Mapping[str, object]) -> dict[str, object]:
    properties = {"image": image, **_FIELDS}
    return {"schema": {"type": "object", "required": ["image", "boxes"], "properties": properties}}


_REFINE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": _body({"type": "string", "description": "its file in base64"}),
            "multipart/form-data": _body({"type": "string", "format": "binary"}),
        },
    }
}
