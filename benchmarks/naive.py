"""`inspect` beside what one would write first: anomalib's Patchcore, then SamPredictor on the whole image."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from measuring import JsonFile, Row, hardware, in_turn, peak_mb, show, versions, write_rows
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sam_inspect.config import RecipeConfig, validated
from sam_inspect.console import session
from sam_inspect.datasets import Sample, good_images, read_gt_mask, test_samples
from sam_inspect.images import read_image
from sam_inspect.localize.memory_bank import MemoryBankArgs
from sam_inspect.localize.patches import BackboneConfig
from sam_inspect.masks import components, union
from sam_inspect.metrics import mask_iou
from sam_inspect.networks.loaded import load_backbone, load_sam
from sam_inspect.options import Precision, Runtime
from sam_inspect.pipeline import Inspector
from sam_inspect.recipe import load_recipe

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
BANK_IMAGES, HELD_IMAGES = 10, 10
SAM_INPUT_PX = 1024
WAYS = ("sam-inspect", "naive")


@app.command()
def main(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="In MVTec layout.")],
    recipe: Annotated[Path, typer.Option(metavar="DIR", help="Trained on DATA/train/good.")],
    images: Annotated[int, typer.Option(metavar="N", min=1, help="Good images, and as many defective ones.")] = 16,
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="Runs of each way, in turn.")] = 3,
    runtime: Runtime = "auto",
    precision: Precision = "auto",
    json_file: JsonFile = None,
) -> None:
    """Times `inspect` and the naive way on the same images, each run in a process of its own, in turn.

    The naive way squeezes the image into a square of the recipe's size, takes anomalib's PatchcoreModel with the
    recipe's first backbone and layers and a memory of as many patches (drawn at random from ten good images: its
    nearest neighbours take the time of a coreset of that size), thresholds its map at the highest value of ten other
    good images, encodes an image that has a region with segment_anything's SamPredictor at 1024 and decodes its boxes
    one by one. Images are read alike. Peak memory is the process's own; seconds are those of the median image and
    leave out its start and a first image.
    Mean IoU is over the defective images.
    """
    with session(quiet=False, json_logs=False) as progress, tempfile.TemporaryDirectory() as folder:
        bank = Path(folder) / "bank.safetensors"
        fit_naive(data, load_recipe(recipe).config, bank)
        runs: dict[str, list[Row]] = {way: [] for way in WAYS}
        fresh = ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1)
        with fresh as process:
            for _ in progress(range(repeats), "runs of both ways", repeats):
                for way in WAYS:
                    run = Asked(way, data, recipe, bank, images, runtime, precision)
                    runs[way].append(process.submit(one, run).result())
        rows = [_row(way, kind, runs) for kind in ("good", "defective") for way in WAYS]
        machine = hardware()
        columns = {
            "images": "images",
            "way": "way",
            "images/s": "per_second:.2f",
            "ratio": "ratio:.2f",
            "read ms": "ms.read:.0f",
            "localize": "ms.localize:.0f",
            "segment": "ms.segment:.0f",
            "other": "ms.other:.1f",
            "mean IoU": "mean_iou:.3f",
            "peak MB": "peak_mb:.0f",
        }
        title = f"{data.name}: {images} good and {images} defective images, medians of {repeats} runs"
        show(title, machine, rows, columns)
        write_rows(json_file, machine, rows, data=str(data), versions=versions("torch", "anomalib", "segment-anything"))


@dataclass(frozen=True)
class Asked:
    """One run of one way."""

    way: str
    data: Path
    recipe: Path
    bank: Path
    images: int
    runtime: str
    precision: str


def one(asked: Asked) -> Row:
    """What it came to."""
    samples = _samples(asked.data, asked.images)
    if asked.way == "sam-inspect":
        run: OurWay | NaiveWay = OurWay(asked.recipe, asked.runtime, asked.precision)
    else:
        run = NaiveWay(load_recipe(asked.recipe).config, asked.bank)
    run(samples[0].image)
    answers = {"good": Answers(), "defective": Answers()}
    for sample in samples:
        answers["good" if sample.mask_path is None else "defective"].add(sample, *run(sample.image))
    row: Row = {kind: found.as_json() for kind, found in answers.items()}
    return row | {"peak_mb": peak_mb()}


def _samples(data: Path, images: int) -> list[Sample]:
    """The first good images and as many defective ones, of every type in turn."""
    samples = test_samples(data)
    good = [sample for sample in samples if sample.mask_path is None]
    kinds = sorted({sample.defect_type for sample in samples if sample.mask_path})
    defective = list(in_turn([[s for s in samples if s.defect_type == kind] for kind in kinds]))
    return [*good[:images], *defective[:images]]


@dataclass
class Answers:
    """What a way said about images of one kind."""

    ms: list[dict[str, float]] = field(default_factory=list)
    ious: list[float] = field(default_factory=list)

    def add(self, sample: Sample, mask: NDArray[np.bool_], ms: dict[str, float]) -> None:
        """One image's mask, and what its stages took."""
        self.ms.append(ms)
        if sample.mask_path is not None:
            self.ious.append(mask_iou(mask, read_gt_mask(sample, mask.shape)))

    def as_json(self) -> Row:
        """Medians over the images, so that what a runtime takes to get ready, once, does not count; the mean IoU."""
        named = ("read", "localize", "segment")
        split = [{stage: ms.get(stage, 0.0) for stage in named} for ms in self.ms]
        rest = [sum(ms.values()) - sum(stages.values()) for ms, stages in zip(self.ms, split, strict=True)]
        stages = {stage: float(np.median([each[stage] for each in split])) for stage in named}
        seconds = float(np.median([sum(ms.values()) for ms in self.ms])) / 1000
        iou = float(np.mean(self.ious)) if self.ious else None
        return {"seconds": seconds, "ms": stages | {"other": float(np.median(rest))}, "mean_iou": iou}


def _row(way: str, kind: str, runs: dict[str, list[Row]]) -> Row:
    """The medians of a way's runs, and how many times the naive way's rate it reaches."""

    def middle(which: str, *keys: str) -> float:
        values: list[Any] = list(runs[which])
        for key in keys:
            values = [value[key] for value in values]
        return float(np.median(values))

    seconds, naive = middle(way, kind, "seconds"), middle("naive", kind, "seconds")
    return {
        "images": kind,
        "way": way,
        "per_second": 1 / seconds,
        "ratio": naive / seconds,
        "ms": {stage: middle(way, kind, "ms", stage) for stage in ("read", "localize", "segment", "other")},
        "mean_iou": runs[way][0][kind]["mean_iou"],
        "peak_mb": middle(way, "peak_mb"),
    }


class OurWay:
    """The recipe's inspector."""

    def __init__(self, recipe: Path, runtime: str, precision: str) -> None:
        self.inspector = Inspector.from_recipe(recipe, runtime=runtime, precision=precision)

    def __call__(self, path: Path) -> tuple[NDArray[np.bool_], dict[str, float]]:
        """The union of an image's masks, (H, W) bool, and the milliseconds of its stages."""
        found = self.inspector.inspect(path)
        assert found.original_hw is not None
        return union([defect.mask for defect in found.defects], found.original_hw), dict(found.timings_ms)


class NaiveWay:
    """Patchcore's map at a threshold, and SamPredictor in its boxes."""

    def __init__(self, config: RecipeConfig, bank: Path) -> None:
        from segment_anything import SamPredictor

        tensors = load_file(bank)
        self.size_px, self.patchcore = _patchcore(config)
        self.patchcore.memory_bank, self.threshold = tensors["bank"], float(tensors["threshold"])
        self.patchcore.eval()
        self.predictor = SamPredictor(_official_sam())

    def __call__(self, path: Path) -> tuple[NDArray[np.bool_], dict[str, float]]:
        """See `OurWay.__call__`."""
        ms: dict[str, float] = {}
        with _clock(ms, "read"):
            image = read_image(path)
        with _clock(ms, "localize"):
            anomaly_map = self.patchcore(_square(image, self.size_px)).anomaly_map[0, 0].numpy()
            full = cv2.resize(anomaly_map, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
            boxes = [part.box_xyxy for part in components(full > self.threshold)]
        with _clock(ms, "segment"):
            mask = np.zeros(image.shape[:2], bool)
            if boxes:
                self.predictor.set_image(image)
            for box in boxes:
                found, _, _ = self.predictor.predict(box=np.array(box), multimask_output=False)
                mask |= found[0]
        return mask, ms


@contextmanager
def _clock(ms: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    ms[stage] = 1000 * (time.perf_counter() - start)


def fit_naive(data: Path, config: RecipeConfig, file: Path) -> None:
    """Patchcore's memory and threshold as a safetensors file."""
    size_px, patchcore = _patchcore(config)
    paths = good_images(data)
    step = max(1, len(paths) // (BANK_IMAGES + HELD_IMAGES))
    chosen = paths[::step]
    patchcore.train()
    patches = torch.cat([patchcore(_square(read_image(path), size_px)) for path in chosen[:BANK_IMAGES]])
    patchcore.eval()
    rows = validated(MemoryBankArgs, config.localizer.args, "localizer.args").bank_patches
    patchcore.memory_bank = patches[torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[:rows]]
    held = [patchcore(_square(read_image(path), size_px)).anomaly_map.max() for path in chosen[BANK_IMAGES:]]
    save_file({"bank": patchcore.memory_bank.contiguous(), "threshold": torch.stack(held).max()}, file)


def _patchcore(config: RecipeConfig) -> tuple[int, Any]:
    """The side of its input, and anomalib's model with the recipe's first backbone as its feature extractor."""
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    first = validated(MemoryBankArgs, config.localizer.args, "localizer.args").backbones[0]
    names = [str(layer) for layer in first.layers]
    model = PatchcoreModel(layers=["layer1"], backbone="resnet18", pre_trained=False)
    model.layers, model.feature_extractor = names, _Features(first, names)
    return first.size_px, model


class _Features(nn.Module):
    """A backbone as anomalib calls one: layers by name."""

    def __init__(self, config: BackboneConfig, names: Sequence[str]) -> None:
        super().__init__()
        self.names, self.features = names, load_backbone(config, "cpu")[0].features

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, self.features(images), strict=True))


def _square(image: NDArray[np.uint8], size_px: int) -> Tensor:
    """(1, 3, size, size) float32 in 0..255, squeezed."""
    scaled = cv2.resize(image, (size_px, size_px), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(scaled).permute(2, 0, 1)[None].float()


def _official_sam() -> Any:
    """segment_anything's own Sam around MobileSAM's modules."""
    from segment_anything.modeling import Sam

    network, _ = load_sam("mobile_sam", None, "cpu")
    encoder: Any = network.image_encoder
    encoder.img_size = SAM_INPUT_PX
    return Sam(encoder, network.prompt_encoder_for(SAM_INPUT_PX), network.mask_decoder).eval()


if __name__ == "__main__":
    app()
