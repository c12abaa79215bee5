"""A recipe as graphs that a program in any language can run: images to the anomaly map, views and prompts to masks."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sam_inspect.datasets import good_images
from sam_inspect.errors import ConfigError, UsageError
from sam_inspect.exports import FACTS, SCHEMA, is_export
from sam_inspect.files import make_folder, write_bytes, write_text
from sam_inspect.images import read_size
from sam_inspect.localize.heatmap_graph import HeatmapGraph
from sam_inspect.localize.memory_bank import MemoryBank
from sam_inspect.networks.backbone import Normalise
from sam_inspect.networks.graphs import installed
from sam_inspect.networks.mask_decoder import decode_each
from sam_inspect.networks.runtime import Free, exported
from sam_inspect.networks.sam import NATIVE_PX, PIXEL_MEAN, PIXEL_STD, STRIDE, SamNetwork
from sam_inspect.pipeline import Inspector
from sam_inspect.plugins import not_installed
from sam_inspect.recipe import RECIPE
from sam_inspect.segment.sam import Sam

Format = Literal["onnx", "openvino"]
PROMPTS: Free = {1: (0, 1), 2: (0, 1)}


def export(recipe: Path, out: Path, form: Format = "onnx", original_hw: tuple[int, int] | None = None) -> Path:
    """Writes `heatmap`, `encoder` and `decoder` and `recipe.json`, which says all that runs around them.

    Args:
        recipe: its folder; of the localizer `memory_bank` and a SAM.
        out: folder of the export.
        form: `onnx`, or `openvino` for .xml with .bin beside.
        original_hw: of the product's images, pixels; that of its first good part where it is not said.

    Returns:
        the path of `recipe.json`.

    Raises:
        UsageError: the size of the images is not known.
        ConfigError: its localizer or segmenter has no graph, or its images are cut into tiles.
        ExtraMissing: OpenVINO is not installed.
        RecipeError, WeightsError, OutputError.
    """
    if form == "openvino" and not installed("openvino"):
        raise not_installed("--format openvino: OpenVINO", "openvino")
    if is_export(recipe):
        raise UsageError(f"{recipe}: is an export already", "give the recipe itself")
    if (out / RECIPE).is_file():
        raise UsageError(f"{out}: holds a recipe", "give another --out")
    inspector = Inspector.from_recipe(recipe, "cpu", runtime="torch")
    localizer, sam = inspector.localizer, inspector.segmenter
    if not isinstance(localizer, MemoryBank) or not isinstance(sam, Sam):
        names = f"{inspector.config.localizer.name} and {inspector.config.segmenter.name}"
        raise ConfigError(f"{recipe}: {names} have no graph", "export a recipe of memory_bank and a SAM")
    original_hw = original_hw or _size_of(inspector)
    heatmap = HeatmapGraph(localizer, original_hw)
    side = sam.fixed_input_px or (
        inspector.config.prompt.input_px if inspector.config.prompt.view == "zoom" else NATIVE_PX
    )
    looks = [torch.zeros(1, 3, height, width) for height, width in heatmap.sizes_hw]
    features = torch.zeros(1, 256, side // STRIDE, side // STRIDE)
    graphs = {
        "heatmap": exported(heatmap, looks),
        "encoder": exported(_encoder(sam.network), [torch.zeros(1, 3, side, side)]),
        "decoder": exported(
            _Prompted(sam.network, side), [features, torch.zeros(1, 2, 2), torch.zeros(1, 2)], free=PROMPTS
        ),
    }
    make_folder(out)
    written = {name: _write(out, name, content, form) for name, content in graphs.items()}
    write_text(out / FACTS, json.dumps(_facts(inspector, heatmap, side, written, form), indent=2) + "\n")
    return out / FACTS


def parse_size(text: str) -> tuple[int, int]:
    """`900x600`, width by height, as (600, 900). Raises UsageError."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise UsageError(f"--size {text}: is not a size", "give width and height in pixels, such as 900x600")
    return int(height), int(width)


def _size_of(inspector: Inspector) -> tuple[int, int]:
    assert inspector.recipe is not None
    if inspector.recipe.image_hw is not None:
        return inspector.recipe.image_hw
    data = inspector.recipe.data
    if not data.is_dir():
        raise UsageError(f"{data}: the recipe's good parts are not here to tell their size", "give --size WIDTHxHEIGHT")
    return read_size(good_images(data)[0])


def _encoder(network: SamNetwork) -> nn.Module:
    """Views, (1, 3, s, s) RGB in 0..255, to features, (1, 256, s / 16, s / 16)."""
    return nn.Sequential(Normalise(PIXEL_MEAN, PIXEL_STD), network.image_encoder)


class _Prompted(nn.Module):
    """Features and prompts to logits (N, 4, s / 4, s / 4) and predicted IoU (N, 4).

    A prompt is (P, 2) points in pixels of the view with their labels: 1 on the object, 0 beside it, 2 and 3 a box's two
    corners, -1 nothing; one without a box ends with a point of label -1, as in SAM's own predictor.
    """

    image_pe: Tensor

    def __init__(self, network: SamNetwork, side: int) -> None:
        super().__init__()
        self.decoder, self.prompts, self.side = network.mask_decoder, network.prompt_encoder, side
        self.register_buffer("image_pe", network.prompt_encoder_for(side).get_dense_pe())

    def forward(self, features: Tensor, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        encoder, which = self.prompts, labels[..., None]
        place = encoder.pe_layer._pe_encoding((points + 0.5) / self.side)
        sparse = torch.where(which == -1, encoder.not_a_point_embed.weight, place)
        for label, embedding in enumerate(encoder.point_embeddings):
            sparse = sparse + (which == label) * embedding.weight
        cells = self.side // STRIDE
        dense = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(-1, -1, cells, cells)
        return decode_each(self.decoder, features, self.image_pe, sparse, dense)


def _write(out: Path, name: str, content: bytes, form: Format) -> dict[str, str]:
    """The hash of each file by its name; the graph itself first."""
    files = {f"{name}.onnx": content} if form == "onnx" else _as_openvino(name, content)
    for file, data in files.items():
        write_bytes(out / file, data)
    return {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}


def _as_openvino(name: str, content: bytes) -> dict[str, bytes]:
    import openvino

    return openvino_files(name, openvino.Core().read_model(model=content))


def openvino_files(name: str, model: Any) -> dict[str, bytes]:
    """An OpenVINO model's .xml and the .bin beside it, by their names."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.xml"
        openvino.save_model(model, path, compress_to_fp16=False)
        return {file.name: file.read_bytes() for file in (path, path.with_suffix(".bin"))}


def _facts(
    inspector: Inspector, heatmap: HeatmapGraph, side: int, written: dict[str, dict[str, str]], form: Format
) -> dict[str, Any]:
    """Everything that runs around the graphs."""
    assert inspector.recipe is not None
    files = {name: next(iter(hashes)) for name, hashes in written.items()}
    config = inspector.config
    return {
        "schema_version": SCHEMA,
        "sam_inspect": version("sam-inspect"),
        "format": form,
        "colour": "RGB, 0 to 255, float32, (1, 3, height, width)",
        "heatmap": {
            "file": files["heatmap"],
            "original": _size(heatmap.original_hw),
            "inputs": _inputs(heatmap.sizes_hw),
            "scaling": "by area where the image shrinks, else bilinear",
            "output": "anomaly_map (h, w) over the whole image; its peak is the score",
        },
        "threshold": inspector.threshold,
        "calibration_scores": inspector.recipe.calibration_scores.tolist(),
        "encoder": {"file": files["encoder"], "side_px": side, "pad_with": list(PIXEL_MEAN)},
        "decoder": {
            "file": files["decoder"],
            "labels": {"on": 1, "beside": 0, "box": [2, 3], "nothing": -1},
            "outputs": [
                "low_res_logits (N, 4, side / 4, side / 4), above 0 is mask; the single mask first",
                "iou (N, 4)",
            ],
        },
        "prompt": config.prompt.model_dump(mode="json"),
        "choose": config.choose.model_dump(mode="json"),
        "judge": config.judge.model_dump(mode="json"),
        "weights": inspector.recipe.provenance.get("weights", {}),
        "sha256": {file: digest for hashes in written.values() for file, digest in hashes.items()},
    }


def _inputs(sizes_hw: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    return [{"name": f"input_{place}"} | _size(size_hw) for place, size_hw in enumerate(sizes_hw)]


def _size(size_hw: tuple[int, int]) -> dict[str, int]:
    return {"width": size_hw[1], "height": size_hw[0]}
