"""images/s of data.decode=stream against torchvision's reference loader, on a generated folder of JPEGs.

GOMP_SPINCOUNT=5000 python -m benchmarks.stream [--rounds 3] [--workers 2] [--images 2000]

All loaders give normalised float batches of 32 random resized crops of 224 pixels. The reference is DataLoader
with torchvision.transforms.v2, on PIL images and on tensors; its workers are processes, which are started before
the clock is. "In processes" is normlab's own decoding in DataLoader's workers instead of threads. The loaders take
turns in one process, so that a machine whose speed drifts slows all of them. GOMP_SPINCOUNT is what train.py sets.
"""

import argparse
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from normlab import data
from normlab.config.config import Precision
from normlab.config.data import Decode, ImageFolderConfig
from normlab.data.batches import Batch, TrainBatches
from normlab.data.order import epoch_order
from normlab.data.streamed import IMAGENET_MEAN, IMAGENET_STD, SMALLEST_PART, read_pixels
from normlab.distributed import Ranks, available_cores, device_name
from normlab.numerics import Numerics

CPU = torch.device("cpu")
BATCH, SIZE, CLASSES = 32, 224, 10
SHORTEST = math.ceil(SIZE / SMALLEST_PART)
"""Pixels that an image must keep along its shorter side when it is decoded."""

Loader = Callable[[], Iterator[Batch]]
"""Begins a pass over the training images."""


def draw(generator: np.random.Generator, width: int, height: int) -> Image.Image:
    """Coarse random colours under fine noise."""
    coarse = generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray((smooth + generator.normal(0, 10, smooth.shape)).clip(0, 255).astype(np.uint8))


def make_folder(root: Path, images: int) -> None:
    """JPEGs of quality 90 with sides of 300 to 600 pixels."""
    generator = np.random.default_rng(0)
    for index in range(images + CLASSES):
        folder = root / ("train" if index < images else "test") / f"class_{index % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        width, height = generator.integers(300, 601, 2).tolist()
        draw(generator, width, height).save(folder / f"{index:06}.jpg", quality=90)


def in_threads(cfg: ImageFolderConfig) -> Loader:
    """What a trainer iterates over."""
    dataset = data.load(cfg)
    inputs = data.inputs(cfg, dataset, Numerics.of(Precision.fp32, CPU), Ranks(0, 1, 1, CPU))
    options = {"seed": 0, "batch_size": BATCH, "accumulate": 1, "logical_ranks": 1}
    batches = TrainBatches(dataset.train, inputs, ranks_here=range(1), augment=True, **options)
    return lambda: (batch for [batch] in batches.epoch(0))


class OwnDecoding(Dataset):
    """Whole batches, as normlab's threads make their pieces, for DataLoader's workers."""

    def __init__(self, cfg: ImageFolderConfig) -> None:
        dataset = data.load(cfg)
        self.split, self.augmentation = dataset.train, data.augmentation(cfg, dataset)
        self.draws = self.augmentation.draws(len(self.split), seed=0, epoch=0)

    def __getitem__(self, index_B: torch.Tensor) -> Batch:
        return self.augmentation.batch(self.split, index_B, self.draws, CPU)


def in_processes(cfg: ImageFolderConfig) -> Loader:
    own = OwnDecoding(cfg)
    shape = {"seed": 0, "epoch": 0, "accumulate": 1, "logical_ranks": 1, "batch_size": BATCH}
    order = list(epoch_order(len(own.split), **shape).flatten(0, 2))
    assert cfg.workers is not None
    loader = DataLoader(own, None, sampler=order, num_workers=cfg.workers, persistent_workers=True)
    numerics = Numerics.of(Precision.fp32, CPU)
    mean_C, std_C = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return lambda: ((numerics.images(images, mean_C, std_C), labels) for images, labels in loader)


def reference(folder: Path, workers: int, *, tensors: bool) -> Loader:
    """torchvision's training loader, on PIL images or on tensors."""
    steps = [
        v2.RandomResizedCrop(SIZE, antialias=True),
        v2.RandomHorizontalFlip(),
        *([] if tensors else [v2.ToImage()]),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        v2.ToPureTensor(),
    ]
    decoding = {"loader": lambda path: decode_image(path, mode=ImageReadMode.RGB)} if tensors else {}
    images = ImageFolder(str(folder), v2.Compose(steps), **decoding)
    loader = DataLoader(images, BATCH, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True)
    return lambda: iter(loader)


def images_per_second(loader: Loader) -> float:
    """Over one pass."""
    began, images = time.perf_counter(), 0
    for images_BCHW, _ in loader():
        images += len(images_BCHW)
    return images / (time.perf_counter() - began)


def pillow(path: str) -> None:
    with Image.open(path) as image:
        np.asarray(image.convert("RGB"))


def pillow_draft(path: str) -> None:
    with Image.open(path) as image:
        image.draft("RGB", (SHORTEST, SHORTEST))
        np.asarray(image.convert("RGB"))


DECODERS: dict[str, Callable[[str], object]] = {
    "simplejpeg, as normlab calls it": lambda path: read_pixels(path, SHORTEST),
    "simplejpeg, at full size": lambda path: simplejpeg.decode_jpeg(Path(path).read_bytes(), "RGB"),
    "Pillow, at full size": pillow,
    "Pillow, draft": pillow_draft,
    "torchvision.io": lambda path: decode_image(path, mode=ImageReadMode.RGB),
}


def decoding_ms(paths: list[str]) -> dict[str, float]:
    """Processor time of one thread per image, by decoder."""
    found = {}
    for name, decode in DECODERS.items():
        began = time.thread_time()
        for path in paths:
            decode(path)
        found[name] = (time.thread_time() - began) / len(paths) * 1e3
    return found


def shown(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--images", type=int, default=2000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        train = Path(folder) / "train"
        make_folder(Path(folder), args.images)
        photograph = str(Path(folder) / "photograph.jpg")
        draw(np.random.default_rng(1), 4000, 3000).save(photograph, quality=90)
        cfg = ImageFolderConfig(root=folder, decode=Decode.stream, image_size=SIZE, workers=args.workers)
        loaders: dict[str, Loader] = {
            "normlab": in_threads(cfg),
            "normlab, in processes": in_processes(cfg),
            "torchvision, PIL images": reference(train, args.workers, tensors=False),
            "torchvision, tensors": reference(train, args.workers, tensors=True),
        }
        for loader in loaders.values():  # starts DataLoader's workers
            images_per_second(loader)
        rounds = [{name: images_per_second(loaders[name]) for name in loaders} for _ in range(args.rounds)]
        some = [str(path) for path in sorted(train.glob("*/*"))[:200]]
        small, large = ([decoding_ms(paths) for _ in range(args.rounds)] for paths in (some, [photograph] * 4))
    print(f"{device_name(CPU)}, torch {torch.__version__}, Python {platform.python_version()}")
    print(f"{args.workers} workers, {available_cores()} cores, median of {args.rounds} rounds (min to max)\n")
    print("| loader | images/s | normlab against it |\n|---|---|---|")
    for name in loaders:
        ratios = [one["normlab"] / one[name] for one in rounds]
        print(f"| {name} | {shown([one[name] for one in rounds], 0)} | {shown(ratios, 2)} |")
    print("\n| decoder | ms per image of 300 to 600 pixels a side | ms per image of 4000 x 3000 |\n|---|---|---|")
    for name in DECODERS:
        print(f"| {name} | {shown([o[name] for o in small], 2)} | {shown([o[name] for o in large], 0)} |")


if __name__ == "__main__":
    main()
