"""How fast a trained model refines the boxes of pictures, beside other ways to apply it.

Pictures in files are timed beside Pillow, which decodes them and nothing else: no way is quicker.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from benchmarks.inputs import CROP, ONE_SAMPLE, RandomPictures, noise
from benchmarks.peers import kornia_resize
from benchmarks.runner import (
    NOT_INSTALLED,
    Arm,
    Case,
    Setting,
    Timed,
    as_any,
    optional,
    process_clock,
)
from benchmarks.train_step import fitted_model
from lightning_bbox import BoxDataModule, BoxRegressor, Refiner
from lightning_bbox.core.compiling import default_precision
from lightning_bbox.core.messages import quietly
from lightning_bbox.pictures.cut import cut_crops
from lightning_bbox.pictures.store import ImageStore

Picture = UInt8[np.ndarray, "h w 3"]
ONNX = "onnxruntime"
FILES = {
    "one": ((1, 60, 80, 20), (1, 3464, 4618, 4000), (1, 3464, 4618, 4000)),
    "many": ((3, 60, 80, 5), (400, 480, 640, 5), (10_000, 480, 640, 5)),
}
"""Pictures, rows, columns, and boxes of each, by size of the question."""
LARGE = 3000, 4000
A_BOX = torch.tensor([[20.0, 10, 50, 40]])


def cases(setting: Setting) -> Iterator[Case]:
    """Yield one picture with a few boxes and with many, a large one, and many in files."""
    data = some_boxes()
    model = fitted_model(data, setting.device)
    refiner, picture = Refiner(model, setting.device), noise(1, 480, 640)[0]
    for count in setting.pick((4,), (10, 200), (10, 200, 5000)):
        boxes = data.source.splits["train"].boxes.repeat(1 + count // 100, 1)[:count]
        yield Case(
            name=f"{count} boxes of a picture of 640 x 480",
            unit="boxes",
            items=count,
            arms=[
                Arm("Refiner", partial(refined, refiner, picture, boxes)),
                *peers(model, picture, boxes, setting),
            ],
            skipped={} if optional(ONNX) else {ONNX: NOT_INSTALLED},
        )
    large = setting.pick((60, 80), *(LARGE,) * 2)
    yield Case(
        name=f"a box of a picture of {large[1]} x {large[0]}",
        unit="boxes",
        items=1,
        arms=[Arm("Refiner", partial(refined, refiner, noise(1, *large)[0], A_BOX))],
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, sizes in FILES.items():
            yield in_files(model, Path(folder) / name, setting, *setting.pick(*sizes))


def some_boxes() -> RandomPictures:
    """Return pictures and boxes that a model is built for."""
    data = RandomPictures(10, 300, 300, 100, (28, 60), ONE_SAMPLE, 16, 32)
    data.setup("fit")
    return data


def in_files(
    model: BoxRegressor,
    root: Path,
    setting: Setting,
    pictures: int,
    height: int,
    width: int,
    boxes: int,
) -> Case:
    """Refine the boxes of JPEG files, a number of them in each."""
    write_jpegs(root, pictures, height, width, boxes)

    def predict(_: int) -> Timed:
        since = process_clock(setting.device)
        predict_files(model, root, setting)
        return Timed(process_clock(setting.device) - since, model.predictions.boxes)

    def decode(_: int) -> Timed:
        since = process_clock(setting.device)
        decode_files(root)
        return Timed(process_clock(setting.device) - since, None)

    files = "a JPEG" if pictures == 1 else f"each of {pictures:,} JPEGs"
    return Case(
        name=f"{boxes:,} boxes of {files} of {width} x {height}",
        unit="boxes",
        items=pictures * boxes,
        arms=[Arm("predict", predict), Arm("Pillow decodes", decode, None, "and does no more")],
    )


def write_jpegs(root: Path, pictures: int, height: int, width: int, boxes: int) -> None:
    """Write JPEG files into a new folder, and a table of a number of small boxes in each."""
    root.mkdir()
    random = np.random.default_rng(0)
    lines = ["image,xmin,ymin,xmax,ymax"]
    for number in range(pictures):
        # Noise of 8 pixels and more, as photographs compress rather than noise of one does.
        coarse = random.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(root / f"{number}.jpg", quality=90)
        corners = random.uniform(0, [width - 40, height - 40], (boxes, 2))
        ends = corners + random.uniform(20, 40, (boxes, 2))
        rows = np.concatenate([corners, ends], axis=1).tolist()
        lines += [f"{number}.jpg,{','.join(f'{edge:.1f}' for edge in row)}" for row in rows]
    (root / "boxes.csv").write_text("\n".join(lines))


def predict_files(
    model: BoxRegressor, root: Path, setting: Setting, callbacks: Sequence[pl.Callback] = ()
) -> None:
    """Refine the boxes of a folder, in the precision that the command line takes."""
    trainer = pl.Trainer(
        accelerator="gpu" if setting.on_cuda else "cpu",
        devices=1,
        precision=as_any(default_precision()),
        logger=False,
        enable_progress_bar=False,
        callbacks=[*callbacks],
    )
    with quietly():
        trainer.predict(model, BoxDataModule(str(root)), return_predictions=False)


def decode_files(root: Path) -> None:
    """Decode the JPEG files of a folder by Pillow, and do no more."""
    for path in root.glob("*.jpg"):
        with Image.open(path) as picture:
            picture.load()


def refined(refiner: Refiner, picture: Picture, boxes: Tensor, _: int) -> Tensor:
    """Refine."""
    return refiner.refine(picture, boxes)


def peers(
    model: BoxRegressor,
    picture: Picture,
    boxes: Tensor,
    setting: Setting,
) -> list[Arm]:
    """Return the same network box by box, after kornia's cut, and in onnxruntime."""
    geometry, device = ONE_SAMPLE, setting.device
    bank = torch.from_numpy(picture).permute(2, 0, 1)[None].to(device)
    proposals = boxes.to(device)
    limit = boxes.new_tensor([640, 480, 640, 480])

    @torch.inference_mode()
    def kornia(_: int) -> Tensor:
        index = torch.zeros(len(proposals), dtype=torch.int64, device=device)
        crops = kornia_resize(bank, index, geometry.crop_boxes(proposals), CROP)
        found: Tensor = model(crops, proposals)
        return found.cpu().clamp(min=0).minimum(limit)

    refiner = Refiner(model, device)

    def one_by_one(_: int) -> Tensor:
        return torch.cat([refiner.refine(picture, box) for box in boxes[:, None]])

    arms = []
    if len(boxes) <= 1000:  # kornia's cut copies the picture for each box
        arms.append(Arm("kornia crop_and_resize, same network", kornia, 0.05))
    if len(boxes) <= 10:
        arms.append(Arm("Refiner, box by box", one_by_one, 1e-3))
    if optional(ONNX) and optional("onnxscript"):
        run = onnx_session(model, len(boxes))

        def onnx(_: int) -> Tensor:
            store = ImageStore.from_array(picture[None])
            index = torch.zeros(len(boxes), dtype=torch.int64)
            crops = cut_crops(store, index, geometry.crop_boxes(boxes), CROP)
            deltas = model.net.head.decode(run(crops).to(device))
            found: Tensor = model.codec.decode(deltas, proposals)
            return found.detach().cpu().clamp(min=0).minimum(limit)

        arms.append(Arm(ONNX, onnx, 0.05, "the network alone, on the CPU"))
    return arms


def onnx_session(model: BoxRegressor, batch: int) -> Callable[[Tensor], Tensor]:
    """Return the network for a batch of this size as onnxruntime applies it, in one thread."""
    runtime = as_any(optional(ONNX))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        net, crops = model.net.eval(), torch.rand(batch, 3, CROP, CROP, device=model.device)
        with quietly():  # torch warns of what it does itself
            torch.onnx.export(net, (crops,), path, dynamo=True, verbose=False)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (name,) = (one.name for one in session.get_inputs())
    return lambda crops: torch.from_numpy(session.run(None, {name: crops.numpy()})[0])
