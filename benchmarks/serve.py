"""Load the service: clients on the loopback, for minutes, with good requests and bad ones.

    python -m benchmarks.serve RUN --data DIR [--minutes 5] [--clients 8]

Starts `lightning-bbox serve RUN`, and has each client ask for pictures of DIR in turn, and every
tenth time for something that can't be. Each answer must be, to the bit, the first one that this
picture got. Told are requests, refusals, errors, times, and the service's memory after a fifth of
the time and at the end; then how long a request of fifty boxes takes the engine beside `Refiner`,
decoded, in turns. The JSON is printed; the committed one is `results/serve.json`.
"""

import argparse
import base64
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import torch

from lightning_bbox.data.boxes import BoxDataModule
from lightning_bbox.pictures.decode import decode_image
from lightning_bbox.refinement.refiner import Refiner
from lightning_bbox.refinement.serving.engine import BATCH, Asked, Engine

BAD = (b"{", b'{"boxes": [[1, 2]]}', b'{"image": "http://a.b", "boxes": []}', b"\xff" * 1000)


def main(args: list[str] | None = None) -> int:
    """Start the service, load it, and tell how it went."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="a run's folder")
    parser.add_argument("--data", type=Path, required=True, help="folder of annotated pictures")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=8)
    own = parser.parse_args(args)
    table = BoxDataModule(str(own.data)).rough_table()
    paths = [table.root / name for name in table.images[:40]]
    boxes = [table.boxes[table.image_index == at] for at in range(len(paths))]
    bodies = [body(path, found) for path, found in zip(paths, boxes, strict=True)]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "lightning_bbox", "serve", own.run, f"--port={port}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        told = loaded(process.pid, port, bodies, 60 * own.minutes, own.clients)
    finally:
        process.terminate()
        code = process.wait(90)
    told |= {"clients": own.clients, "exit_code": code, "ratio_of_50_boxes": ratio(own.run, paths)}
    print(json.dumps(told, indent=1))
    return 0


def body(path: Path, boxes: torch.Tensor) -> bytes:
    """Return a request."""
    image = base64.b64encode(path.read_bytes()).decode()
    return json.dumps({"image": image, "boxes": boxes.tolist()}).encode()


def loaded(
    pid: int, port: int, bodies: list[bytes], seconds: float, clients: int
) -> dict[str, object]:
    """Have clients ask for some time, and return what was seen."""
    while True:
        try:
            ask(port, None, "/health")
            break
        except OSError:
            time.sleep(0.2)
    first = {at: ask(port, content)[1] for at, content in enumerate(bodies)}
    end = time.monotonic() + seconds
    times, problems, refused = list[float](), list[str](), [0]

    def client(number: int) -> None:
        turn = number
        while time.monotonic() < end:
            turn += 1
            if turn % 10 == 0:
                status, _ = ask(port, BAD[turn // 10 % len(BAD)])
                refused[0] += 1
                if not 400 <= status < 500:
                    problems.append(f"a bad request got {status}")
                continue
            at = turn * 7 % len(bodies)
            begun = time.perf_counter()
            status, answer = ask(port, bodies[at])
            times.append(time.perf_counter() - begun)
            if status != 200 or answer != first[at]:
                problems.append(f"picture {at} got {status}, or another answer")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 5)
    early = memory(pid)
    for thread in threads:
        thread.join()
    late = memory(pid)
    return {
        "seconds": seconds,
        "answered": len(times),
        "refused": refused[0],
        "problems": problems[:5],
        "median_s": round(statistics.median(times), 4),
        "slowest_s": round(max(times), 4),
        "memory_early_mb": round(early, 1),
        "memory_late_mb": round(late, 1),
        "growth": round(late / early - 1, 4),
    }


def ask(port: int, content: bytes | None, path: str = "/refine") -> tuple[int, bytes]:
    """Ask the service, and return its answer."""
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", content)
    try:
        with urllib.request.urlopen(asked, timeout=120) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.read()


def memory(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def ratio(run: str, paths: list[Path]) -> dict[str, object]:
    """Return how much longer than `Refiner` the engine takes for fifty boxes, in turns."""
    picture = decode_image(paths[0], None)
    height, width = picture.shape[:2]
    corner = np.random.default_rng(0).uniform(0, 1, (50, 2)) * [width - 90, height - 90]
    boxes = torch.from_numpy(np.concatenate([corner, corner + 80], axis=1)).float()
    refiner, found = Refiner(run), list[float]()
    with Engine(Refiner(run, batch_size=BATCH, isolated=True)) as engine:
        for _ in range(30):
            begun = time.perf_counter()
            refiner.refine_with_std(picture, boxes)
            between = time.perf_counter()
            engine.submit(Asked(picture, boxes)).result()
            found.append((time.perf_counter() - between) / (between - begun))
    low, median, high = (float(each) for each in np.quantile(found[5:], [0.25, 0.5, 0.75]))
    return {"median": round(median, 3), "quartiles": [round(low, 3), round(high, 3)]}


if __name__ == "__main__":
    raise SystemExit(main())
