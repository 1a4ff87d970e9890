"""The service: its answers are Refiner's, its refusals are sentences, and it goes on serving."""

import asyncio
import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_bbox import BadInput, DisplacementLaw, Refiner
from lightning_bbox.cli.main import main
from lightning_bbox.geometry.reliability import Reliability
from lightning_bbox.nn.heads.linear import LinearHead
from lightning_bbox.refinement.serving.engine import BATCH, Asked, BusyError, Engine
from lightning_bbox.refinement.serving.requests import Limits
from tests.refinement.test_refiner import BOXES, built_model, picture
from tests.runs import fit

uvicorn = pytest.importorskip("uvicorn", reason="no uvicorn; see extra serve")
pytest.importorskip("fastapi", reason="no fastapi; see extra serve")
pytest.importorskip("python_multipart", reason="no python-multipart; see extra serve")

from lightning_bbox.refinement.serving.service import Served, create_app  # noqa: E402

LIMITS = Limits(megabytes=1.0, megapixels=0.1, boxes=200)


def with_law(**parts):
    model = built_model(num_targets=4, **parts)
    model.reliability = Reliability((0.01,) * 4, (0.9,) * 4, (1.2,) * 4, ((0.9, 1.0), (0.1, 2.0)))
    model.law = DisplacementLaw(0.01, (0.99,), ((0.1,) * 4,), ((0.1,) * 4,))
    return model


class Running:
    """A service on the loopback, and what asks it."""

    def __init__(self, served):
        self.served = served
        config = uvicorn.Config(create_app(served), log_level="warning", port=0)
        self.server = uvicorn.Server(config)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        run = lambda: asyncio.run(self.server.serve([self.socket]))  # noqa: E731
        self.thread = threading.Thread(target=run)
        self.thread.start()

    def stop(self):
        self.server.should_exit = True
        self.thread.join()
        self.socket.close()

    def ask(self, path, sent=None, headers=None, kind="application/json"):
        content = sent if isinstance(sent, bytes | None) else json.dumps(sent).encode()
        address = f"http://127.0.0.1:{self.port}{path}"
        asked = urllib.request.Request(address, content, {"content-type": kind, **(headers or {})})
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as refusal:
            return refusal.code, json.loads(refusal.read())


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    refiner = Refiner(with_law(), batch_size=BATCH, isolated=True)
    (folder / "upload" / "1").mkdir(parents=True)
    Image.fromarray(picture()).save(folder / "upload" / "1" / "a.png")
    (folder.parent / "secret.png").write_bytes(png(picture()))
    with Engine(refiner) as engine:
        running = Running(Served(engine, "tiny", LIMITS, pictures=folder))
        yield running
        running.stop()


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def in_base64(content):
    return base64.b64encode(content).decode()


def request(boxes=BOXES, pixels=None, **more):
    image = in_base64(png(picture() if pixels is None else pixels))
    return {"image": image, "boxes": np.asarray(boxes).tolist(), **more}


def assert_equal(answer, found):
    """See that an answer is a refinement, to the bit."""
    for name in ("boxes", "stds", "gains"):
        said = torch.tensor(answer[name], dtype=torch.float32)
        assert torch.equal(said.reshape(-1), getattr(found, name).reshape(-1))
    assert answer["beyond"] == found.beyond.tolist()
    assert answer["unmoved"] == {str(at): reason for at, reason in found.unmoved.items()}


def test_an_answer_is_what_a_refiner_says(serving):
    expected = Refiner(with_law(), batch_size=BATCH, isolated=True).refine_with_std(
        picture(), BOXES
    )
    status, answer = serving.ask("/refine", request())
    assert status == 200
    assert_equal(answer, expected)
    usual = Refiner(with_law()).refine_with_std(picture(), BOXES)
    torch.testing.assert_close(expected.boxes, usual.boxes, rtol=0, atol=1e-4)
    torch.testing.assert_close(expected.gains, usual.gains, rtol=0, atol=1e-5)
    assert (usual.gains > 0).any()


def test_a_form_with_a_file_is_asked_alike(serving):
    edge = "----edge"
    parts = {
        'name="boxes"': json.dumps(BOXES.tolist()).encode(),
        'name="image"; filename="a.png"': png(picture()),
    }
    body = b"".join(
        f"--{edge}\r\nContent-Disposition: form-data; {name}\r\n\r\n".encode() + content + b"\r\n"
        for name, content in parts.items()
    )
    body += f"--{edge}--\r\n".encode()
    kind = f"multipart/form-data; boundary={edge}"
    assert serving.ask("/refine", body, kind=kind) == serving.ask("/refine", request())


def test_what_is_invalid_stays_and_is_told_and_no_boxes_are_none(serving):
    boxes = [[10, 10, 40, 44], [50, 5, 50, 30], [500, 500, 600, 600]]
    status, answer = serving.ask("/refine", request(boxes))
    assert status == 200
    assert answer["boxes"][1:] == [list(map(float, box)) for box in boxes[1:]]
    assert set(answer["unmoved"]) >= {"1", "2"}
    assert answer["stds"][1] == [None] * 4
    assert serving.ask("/refine", request([])) == (
        200,
        {"boxes": [], "stds": [], "gains": [], "beyond": [], "unmoved": {}},
    )


def varied(number):
    random = np.random.default_rng(number)
    pixels = random.integers(0, 256, (40 + number, 60 + 2 * number, 3), dtype=np.uint8)
    corner = random.uniform(0, 20, (number * 3 % 41, 2))
    return pixels, np.concatenate([corner, corner + random.uniform(8, 20, corner.shape)], axis=1)


def test_fifty_requests_at_once_get_what_each_gets_alone(serving):
    refiner = Refiner(with_law(), batch_size=BATCH, isolated=True)
    asked = [varied(number) for number in range(50)]
    before = serving.served.engine.passes
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda one: serving.ask("/refine", request(one[1], one[0])), asked))
    assert serving.served.engine.passes - before < 50  # some were refined together
    for (pixels, boxes), (status, answer) in zip(asked, answers, strict=True):
        assert status == 200
        assert_equal(answer, refiner.refine_with_std(pixels, boxes))


@pytest.mark.parametrize("parts", [{}, {"average_flips": True}, {"head": LinearHead()}])
def test_an_isolated_refiner_gives_each_picture_what_it_gets_alone(parts):
    model = built_model(num_targets=4, **parts) if "head" in parts else with_law(**parts)
    refiner = Refiner(model, batch_size=8, isolated=True)
    pictures, boxes = zip(*(varied(number) for number in range(12)), strict=True)
    for order in (range(12), range(11, -1, -1), (5, 2, 9)):
        found = refiner.refine_batch([pictures[at] for at in order], [boxes[at] for at in order])
        for at, one in zip(order, found, strict=True):
            alone = refiner.refine_with_std(pictures[at], boxes[at])
            assert torch.equal(one.boxes, alone.boxes)
            assert torch.equal(one.stds.nan_to_num(), alone.stds.nan_to_num())
            assert torch.equal(one.gains.nan_to_num(), alone.gains.nan_to_num())


DEEP = b'{"tasks": [{"data": {"image": "a"}, "annotations": [{"result": ' + b"[" * 900 + b"]" * 900
BAD = {
    "no JSON": (b"{", 400, "is no JSON"),
    "nothing": (b"", 400, "is no JSON"),
    "no UTF-8": (b"\xff\xfe", 400, "is no JSON"),
    "a list": (b"[]", 400, "is list; send an object"),
    "nested": (b"[" * 100_000, 400, "is no JSON"),
    "nan": (b'{"boxes": [[NaN, 1, 2, 3]]}', 400, "is no JSON"),
    "infinite": (b'{"boxes": [[1e999, 1, 2, 3]]}', 400, "is no JSON"),
    "no boxes": ({"image": "aaaa"}, 400, "boxes: are missing"),
    "boxes a text": ({"image": "", "boxes": "1,2,3,4"}, 400, "boxes: are '1,2,3,4'"),
    "three numbers": (request([[1, 2, 3]]), 400, "box 0: is '[1, 2, 3]', not four numbers"),
    "words": (request([["a", 1, 2, 3]]), 400, "not four numbers"),
    "truths": ({**request(), "boxes": [[True, 1, 2, 3]]}, 400, "not four numbers"),
    "huge": (request([[1e30, 1, 2, 3]]), 400, "not four numbers"),
    "many": (request([[1, 2, 3, 4]] * 201), 413, "boxes: are 201, more than 200"),
    "labels": ({**request(), "labels": ["a"]}, 400, "labels: are 1 of 3 boxes"),
    "odd labels": ({**request(), "labels": [1, 2, 3]}, 400, "send a list of texts"),
    "half a character": ({**request(), "labels": "\ud800"}, 400, "send a list of texts"),
    "no image": ({"boxes": []}, 400, "image: is missing"),
    "a number": ({"boxes": [], "image": 7}, 400, "image: is '7', no text"),
    "an address": ({"boxes": [], "image": "http://a.b/c.png"}, 400, "this service fetches none"),
    "a file": ({"boxes": [], "image": "file:///etc/passwd"}, 400, "this service fetches none"),
    "a path": ({"boxes": [], "image": "/etc/passwd.."}, 400, "image: is no base64"),
    "no picture": ({"boxes": [], "image": in_base64(b"abc")}, 400, "image: can't be decoded"),
    "half": ({"boxes": [], "image": in_base64(png(picture())[:999])}, 400, "can't be decoded"),
    "bomb": (
        {"boxes": [], "image": in_base64(png(np.zeros((1000, 1000), np.uint8)))},
        413,
        "1000 x 1000 pixels, more than 0.1",
    ),
    "large": (b" " * 1_000_001, 413, "has more than 1 MB"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_get_a_sentence(name, serving):
    sent, status, sentence = BAD[name]
    found, answer = serving.ask("/refine", sent)
    assert (found, set(answer)) == (status, {"error"})
    assert sentence in answer["error"]
    assert len(answer["error"].splitlines()) == 1


def test_forms_addresses_and_methods_that_there_are_not(serving):
    kind = "multipart/form-data; boundary=x"
    for body in (
        b"",
        b"--x",
        b"--x\r\n\r\n--x--",
        b"--x\r\nContent-Disposition: form-data\r\n\r\n",
    ):
        assert serving.ask("/refine", body, kind=kind)[0] == 400
    assert serving.ask("/refine", b"", kind="multipart/form-data")[0] == 400
    assert serving.ask("/nothing")[0] == 404
    assert serving.ask("/refine")[0] == 405


@pytest.mark.parametrize("count", [11, 60])  # the end comes with what is too much, or later
def test_a_body_without_a_length_is_counted_as_it_comes(count, serving):
    head = b"POST /refine HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"186a0\r\n" + b" " * 100_000 + b"\r\n"
    with socket.create_connection(("127.0.0.1", serving.port), timeout=60) as link:
        link.sendall(head + chunk * count + b"0\r\n\r\n")
        assert link.recv(4096).startswith(b"HTTP/1.1 413")


def test_it_serves_on_after_requests_that_are_spoilt_at_random(serving):
    """A hundred kinds: bytes of a good request dropped, doubled, exchanged or cut."""
    good = json.dumps(request()).encode()
    for number in range(100):
        random = np.random.default_rng(number)
        spoilt = bytearray(good)
        for at in random.integers(0, len(good), 1 + number % 5):
            kind = random.integers(4)
            if kind == 0:
                spoilt = spoilt[: int(at)]
            elif kind == 1:
                del spoilt[int(at) : int(at) + 3]
            elif at < len(spoilt):
                spoilt[int(at)] = int(random.integers(256))
        assert serving.ask("/refine", bytes(spoilt))[0] in (200, 400, 413)
    assert serving.ask("/refine", request())[0] == 200


def test_whoever_hangs_up_harms_nobody(serving):
    body = json.dumps(request()).encode()
    head = f"POST /refine HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for part in (head, head + body[:100], head + body):
        with socket.create_connection(("127.0.0.1", serving.port)) as link:
            link.sendall(part)
    assert serving.ask("/refine", request())[0] == 200
    assert serving.ask("/health") == (200, {"status": "UP", "model_class": "lightning_bbox"})


def test_what_is_told_of_the_model_and_of_its_addresses(serving):
    status, answer = serving.ask("/info")
    assert status == 200
    assert answer["limits"] == {"megabytes": 1.0, "megapixels": 0.1, "boxes": 200}
    assert answer["law"].startswith("1 % of the boxes are right")
    _, described = serving.ask("/openapi.json")
    assert set(described["paths"]) == {
        *("/health", "/info", "/refine", "/setup", "/webhook", "/predict")
    }
    content = described["paths"]["/refine"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data"}


def test_a_token_is_asked_for_but_for_health(serving):
    running = Running(serving.served._replace(token="sésame"))
    try:
        assert running.ask("/health")[0] == 200
        for header in ({}, {"authorization": "Bearer x"}, {"authorization": "Basic !"}):
            status, answer = running.ask("/info", headers=header)
            assert status == 401
            assert "Authorization: Bearer TOKEN" in answer["error"]
        basic = base64.b64encode("any:sésame".encode()).decode()
        assert running.ask("/info", headers={"authorization": f"Basic {basic}"})[0] == 200
    finally:
        running.stop()


def test_more_requests_than_may_wait_are_told_to_ask_again(serving):
    running = Running(serving.served._replace(most_waiting=1))
    try:
        with socket.create_connection(("127.0.0.1", running.port)) as link:
            link.sendall(b"POST /refine HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
            while running.ask("/info")[0] == 200:
                time.sleep(0.01)
            status, answer = running.ask("/refine", request())
            assert (status, "ask again" in answer["error"]) == (503, True)
            assert running.ask("/health")[0] == 200
            link.sendall(b'{"a": 12}')
            assert link.recv(100).startswith(b"HTTP/1.1 400")
        assert running.ask("/refine", request())[0] == 200
    finally:
        running.stop()


# Label Studio.


def region(box, label="cell", width=90, height=70, **more):
    left, top, right, bottom = box
    place = {"x": 100 * left / width, "y": 100 * top / height}
    place |= {"width": 100 * (right - left) / width, "height": 100 * (bottom - top) / height}
    region = {
        "id": f"r{left}",
        "from_name": "label",
        "to_name": "image",
        "type": "rectanglelabels",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {**place, "rotation": 0, "rectanglelabels": [label]},
        "origin": "manual",
        "meta": {"text": ["kept"]},
    }
    return {**region, **more}


CONFIG = (
    '<View><Image name="image" value="$photo"/><RectangleLabels name="label" toName="image">'
    '<Label value="cell"/></RectangleLabels></View>'
)


def labelling(*results, context=None, address="/data/upload/1/a.png"):
    """Return a request as Label Studio 1.x sends it."""
    task = {"id": 7, "data": {"photo": address}, "predictions": [], "meta": {}}
    task["annotations"] = [{"id": 3, "result": list(result)} for result in results]
    params = {"login": None, "password": None, "context": context}
    asked = {"tasks": [task], "model_version": None, "project": "1.1690000000"}
    return asked | {"label_config": CONFIG, "params": params}


def edges(found, width=90, height=70):
    value = found["value"]
    left, top = value["x"] * width / 100, value["y"] * height / 100
    right, bottom = left + value["width"] * width / 100, top + value["height"] * height / 100
    return [left, top, right, bottom]


def test_rectangles_of_label_studio_come_back_moved_and_else_as_they_were(serving):
    regions = [region(box) for box in BOXES.tolist()]
    turned = region([20, 20, 40, 30])
    turned["value"]["rotation"] = 12.5
    sideways = region([20, 20, 40, 30], image_rotation=90)
    polygon = region([1, 1, 2, 2], type="polygonlabels")
    polygon["value"] = {"points": [[1, 2], [3, 4], [5, 6]], "polygonlabels": ["cell"]}
    endless = region([20, 20, 40, 30])
    endless["value"]["x"] = 10**400
    sent = [regions[0], turned, regions[1], polygon, sideways, regions[2], endless]
    status, answer = serving.ask("/predict", labelling([], sent))
    assert status == 200
    ((found,),) = (answer["results"],)
    assert (found["model_version"], answer["model_version"]) == ("tiny", "tiny")
    result = found["result"]
    assert [one["id"] for one in result] == [one["id"] for one in sent]
    assert [result[at] for at in (1, 3, 4, 6)] == [turned, polygon, sideways, endless]
    expected = Refiner(with_law(), batch_size=BATCH, isolated=True).refine_with_std(
        picture(), BOXES
    )
    assert found["score"] == pytest.approx(float(expected.gains.max()))
    for at, box in zip((0, 2, 5), expected.boxes.tolist(), strict=True):
        assert edges(result[at]) == pytest.approx(box, abs=1e-3)
        assert {**result[at], "value": 0} == {**sent[at], "value": 0}
        kept = {name: sent[at]["value"][name] for name in ("rotation", "rectanglelabels")}
        assert kept.items() <= result[at]["value"].items()


def test_the_region_that_is_drawn_just_now_is_what_is_refined(serving):
    drawn = region(BOXES[0].tolist(), id="now")
    sent = labelling([region(BOXES[1].tolist())], context={"result": [drawn]})
    ((found,),) = (serving.ask("/predict", sent)[1]["results"],)
    assert [one["id"] for one in found["result"]] == ["now"]
    assert found["result"][0]["value"] != drawn["value"]
    without = labelling([drawn])
    del without["params"]["context"]
    assert serving.ask("/predict", without)[1]["results"][0] == found
    del without["params"]
    assert serving.ask("/predict", without)[1]["results"][0] == found


def test_tasks_without_regions_get_none_and_other_addresses_of_a_picture_are_known(serving):
    assert serving.ask("/predict", labelling())[1]["results"][0]["result"] == []
    assert serving.ask("/predict", {"tasks": []}) == (200, {"results": [], "model_version": "tiny"})
    first = serving.ask("/predict", labelling([region(BOXES[0].tolist())]))
    data = "data:image/png;base64," + in_base64(png(picture()))
    for address in (data, "http://here:8080/data/upload/1/a.png",
                    "/data/local-files/?d=upload/1/a.png"):  # fmt: skip
        asked = labelling([region(BOXES[0].tolist())], address=address)
        assert serving.ask("/predict", asked) == first


@pytest.mark.parametrize("address", ["/data/../../secret.png", "/data/local-files/?d=../secret.png",
    "/etc/passwd", "s3://bucket/a.png", "/data/upload", "a\0.png"])  # fmt: skip
def test_pictures_elsewhere_are_neither_read_nor_fetched(address, serving):
    status, answer = serving.ask("/predict", labelling([region([1, 1, 9, 9])], address=address))
    assert status == 400
    assert "is no file in the folder of --pictures" in answer["error"]


@pytest.mark.parametrize("sent", [{}, {"tasks": 1}, {"tasks": [1]}, {"tasks": [{}]},
    {"tasks": [{"data": {}, "annotations": [{"result": [{}]}]}]},
    {"tasks": [{"data": {"image": 1}, "annotations": [{"result": 1}]}]}, DEEP])  # fmt: skip
def test_tasks_that_can_not_be_meant_are_refused(sent, serving):
    assert serving.ask("/predict", sent)[0] == 400


def test_setup_and_events_are_answered(serving):
    sent = {"project": "1.16", "schema": CONFIG, "hostname": "http://here", "access_token": "x"}
    assert serving.ask("/setup", sent) == (200, {"model_version": "tiny"})
    event = {"action": "ANNOTATION_CREATED", "annotation": {"id": 1}}
    assert serving.ask("/webhook", event) == (200, {"status": "ignored", "result": {}})


# What answers, and the command.


def test_an_engine_refuses_what_depends_on_others_and_more_than_may_wait():
    with pytest.raises(BadInput, match="isn't isolated"):
        Engine(Refiner(built_model()))
    refiner = Refiner(built_model(), batch_size=BATCH, isolated=True)
    held = threading.Event()
    whole, refiner.refine_batch = refiner.refine_batch, lambda *told: (held.wait(), whole(*told))[1]
    asked = Asked(picture(), torch.from_numpy(BOXES))
    with Engine(refiner, most_waiting=2) as engine:
        futures = [engine.submit(asked)]
        while engine.passes == 0:
            time.sleep(0.001)
        futures += [engine.submit(asked), engine.submit(asked)]
        with pytest.raises(BusyError):
            engine.submit(asked)
        futures[1].cancel()
        held.set()
        assert torch.equal(futures[0].result().boxes, futures[2].result().boxes)


def test_one_request_that_fails_fails_alone():
    refiner = Refiner(built_model(), batch_size=BATCH, isolated=True)
    good, bad = Asked(picture(), torch.from_numpy(BOXES)), Asked(picture(), torch.zeros(2, 3))
    engine = Engine(refiner)
    futures = [engine.submit(each) for each in (good, bad, good)]
    engine.close()
    assert len(futures[0].result().boxes) == len(futures[2].result().boxes) == 3
    with pytest.raises(BadInput, match="boxes have the shape"):
        futures[1].result()


OPTIONS = [
    *(("--boxes=0", "--boxes is 0"), ("--port=99999", "--port is 99999")),
    ("--pictures=nowhere", "nowhere: is no folder"),
]


@pytest.mark.parametrize(("option", "sentence"), OPTIONS)
def test_options_that_can_not_be_are_refused(option, sentence, capsys, tmp_path):
    assert main(["serve", str(tmp_path), option]) == 2
    assert sentence in capsys.readouterr().err
    assert main(["serve", str(tmp_path / "none")]) == 2


@pytest.mark.slow
def test_a_terminated_service_answers_what_was_begun(tmp_path):
    run = fit(tmp_path, "run")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "lightning_bbox", "serve", str(run), f"--port={port}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    body = json.dumps(request()).encode()
    head = f"POST /refine HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    try:
        for _ in range(600):
            try:
                link = socket.create_connection(("127.0.0.1", port))
                break
            except OSError:
                time.sleep(0.1)
        with link:
            link.sendall(head + body[:-1])
            time.sleep(0.5)
            os.kill(process.pid, signal.SIGTERM)
            time.sleep(0.5)
            link.sendall(body[-1:])
            assert link.recv(100).startswith(b"HTTP/1.1 200")
        assert process.wait(60) == 143
        assert "terminated" in process.stderr.read()
    finally:
        process.kill()
        process.stderr.close()
