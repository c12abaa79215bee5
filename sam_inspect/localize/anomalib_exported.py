"""A model that anomalib exported as ONNX or OpenVINO: a graph that its own runtime draws maps with, on the CPU.

No code of a file runs. The graph is kept in the recipe; neither the file nor anomalib is needed later.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from sam_inspect.config import Section, validated
from sam_inspect.errors import ConfigError, WeightsError
from sam_inspect.images import read_image
from sam_inspect.localize import Fit
from sam_inspect.localize.drawn_maps import UNPLACED, Place, fit_of, located, maps_of, measured
from sam_inspect.networks.graphs import onnx_session, openvino_compiled
from sam_inspect.plugins import EXTRA_OF, not_installed
from sam_inspect.progress import Progress
from sam_inspect.records import Localization, Map

GRAPHS = (".onnx", ".xml")
MAP = "anomaly_map"
BORDER_SHARE, MOST_CUT = 0.03, 0.5
log = logging.getLogger(__name__)
AGAIN = "export the model again by anomalib's Engine"


class ExportedArgs(Section):
    """Arguments of the localizer `anomalib_exported`."""

    file: str
    """model.onnx, or model.xml with model.bin beside it."""
    size_px: int | None = Field(None, ge=32, le=2048)
    """Side of the square to which images are scaled; needed only where the graph does not say."""


class DrawnGraph(Protocol):
    """A network in a runtime.

    Attributes:
        input_hw: (h, w) of the images that it takes; None for any.
        map_hw: (h, w) of the maps that it draws; None where that depends on the image.
    """

    input_hw: tuple[int, int] | None
    map_hw: tuple[int, int] | None

    def __call__(self, pixels: NDArray[np.float32]) -> Map:
        """(1, 3, h, w) float32 RGB in 0..1 -> (1, 1, h, w) or (1, h, w) float32."""
        ...


class ExportedModel:
    """See the module. A `Trainable` that is calibrated, not fitted."""

    def __init__(self, args: ExportedArgs, files: Mapping[str, bytes], place: Place = UNPLACED) -> None:
        self.files, self.place = dict(files), place
        self.graph = _graph(files, args.file)
        side = args.size_px
        size_hw = self.graph.input_hw or self.graph.map_hw or ((side, side) if side else None)
        if size_hw is None:
            raise ConfigError(f"{args.file}: does not say the size of its images", "say localizer.args.size_px")
        self.size_hw = size_hw

    def localize(self, image: NDArray[np.uint8]) -> Localization:
        """See `Localizer.localize`."""
        return located(self.distances(image)[0], image.shape[:2], self.place)

    def distances(self, image: NDArray[np.uint8]) -> list[Map]:
        """The map as the graph draws it, over the whole image."""
        return [self._drawn(self._scaled(image))]

    def _scaled(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(1, 3, h, w): without antialiasing, as exported graphs scale, maps would not be those of training."""
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255
        return functional.interpolate(pixels, self.size_hw, mode="bilinear", antialias=True).numpy()

    def _drawn(self, pixels: NDArray[np.float32]) -> Map:
        return np.ascontiguousarray(self.graph(pixels).squeeze(), np.float32)

    @classmethod
    def fit(
        cls, images: Sequence[Path], args: Mapping[str, Any], *, device: str, progress: Progress
    ) -> tuple[Self, Fit]:
        """See `Trainable.fit`: `images` are good parts that the model has not seen. `device` is not used."""
        parsed = validated(ExportedArgs, dict(args), "localizer.args")
        model = cls(parsed, read_files(Path(parsed.file)))
        model._refuse_cropping(read_image(images[0]), parsed.file)
        maps = maps_of(model, images, progress)
        _warn_of_cut(maps, parsed.file)
        model.place = measured(model, images, maps)
        return model, fit_of(maps, model.place.base, {}, images)

    def _refuse_cropping(self, image: NDArray[np.uint8], file: str) -> None:
        """A graph that crops does not answer to what its border shows, and does not say how much of it.

        Raises:
            ConfigError: it crops.
        """
        plain = self._scaled(image)
        edged, depth = plain.copy(), max(1, round(BORDER_SHARE * min(self.size_hw)))
        noise = np.random.default_rng(0).random(edged.shape, np.float32)
        edged[..., :depth], edged[..., -depth:] = noise[..., :depth], noise[..., -depth:]
        if np.array_equal(self._drawn(plain), self._drawn(edged)):
            problem = f"{file}: its map does not answer to the image's border (it crops, or its normalisation cuts all)"
            raise ConfigError(problem, "give the model's checkpoint instead, or export one that does neither")

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See `Trainable.state`: the files' bytes."""
        tensors = {
            name: torch.frombuffer(bytearray(content), dtype=torch.uint8) for name, content in self.files.items()
        }
        return tensors, self.place.facts()

    @classmethod
    def from_state(
        cls, args: Mapping[str, Any], tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, device: str
    ) -> Self:
        """See `Trainable.from_state`."""
        parsed = validated(ExportedArgs, dict(args), "localizer.args")
        files = {name: value.numpy().tobytes() for name, value in tensors.items()}
        return cls(parsed, files, Place.from_facts(facts))


def read_files(file: Path) -> dict[str, bytes]:
    """What a graph consists of: `onnx`, with the weights that lie beside it, or `xml` and `bin`.

    Raises:
        WeightsError: it is missing, damaged, or of another kind.
    """
    if file.suffix not in GRAPHS:
        raise WeightsError(f"{file}: is not an exported model", f"give one of {', '.join(GRAPHS)}")
    try:
        if file.suffix == ".xml":
            return {"xml": file.read_bytes(), "bin": file.with_suffix(".bin").read_bytes()}
        import onnx

        return {"onnx": onnx.load(file).SerializeToString()}
    except OSError as error:
        raise WeightsError(f"{error.filename or file}: {error.strerror or error}", AGAIN) from None
    except Exception as error:  # of protobuf and onnx, for any damage
        raise WeightsError(f"{file}: is not an ONNX model ({type(error).__name__})", AGAIN) from None


def _warn_of_cut(maps: Sequence[Map], file: str) -> None:
    """anomalib's normalisation, which its exports contain, cuts maps to 0..1; from good parts alone nearly all to 0."""
    cut = float(np.mean([np.mean((found <= 0) | (found >= 1)) for found in maps]))
    if cut > MOST_CUT:
        log.warning(
            "%s: anomalib's normalisation cuts %.0f %% of good parts' maps to 0 or 1; an export of a model with "
            "post_processor=PostProcessor(enable_normalization=False) keeps them whole",
            file,
            100 * cut,
        )


def _graph(files: Mapping[str, bytes], source: str) -> DrawnGraph:
    """Raises ExtraMissing where its runtime is not installed, WeightsError where it cannot be run."""
    kind, package = (OnnxGraph, "onnxruntime") if "onnx" in files else (OpenVinoGraph, "openvino")
    try:
        return kind(files)
    except ImportError:
        raise not_installed(f"{source}: {package}", EXTRA_OF[package]) from None
    except KeyError as error:
        raise WeightsError(f"{source}: has no {error}", AGAIN) from None
    except Exception as error:  # whatever a runtime raises for a graph that it does not take
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{source}: {package} cannot run it ({reason})", AGAIN) from None


class OnnxGraph:
    """A `DrawnGraph` of onnxruntime."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.session = onnx_session(files["onnx"])
        outputs = {output.name: output for output in self.session.get_outputs()}
        self.input = self.session.get_inputs()[0].name
        self.input_hw = _fixed(self.session.get_inputs()[0].shape)
        self.map_hw = _fixed(outputs[MAP].shape)

    def __call__(self, pixels: NDArray[np.float32]) -> Map:
        """See `DrawnGraph`."""
        (anomaly_map,) = self.session.run([MAP], {self.input: pixels})
        return np.asarray(anomaly_map, np.float32)


class OpenVinoGraph:
    """A `DrawnGraph` of OpenVINO."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        import openvino

        model = openvino.Core().read_model(model=files["xml"], weights=files["bin"])
        drawn = {name: output for output in model.outputs for name in output.get_names()}[MAP]
        self.input_hw, self.map_hw = (
            _fixed([side.get_length() if side.is_static else None for side in end.partial_shape])
            for end in (model.inputs[0], drawn)
        )
        self.compiled = openvino_compiled(model, "f32")

    def __call__(self, pixels: NDArray[np.float32]) -> Map:
        """See `DrawnGraph`."""
        return np.asarray(self.compiled({0: pixels})[MAP], np.float32)


def _fixed(shape: Sequence[Any]) -> tuple[int, int] | None:
    """The last two sides where both are numbers."""
    height, width = shape[-2:]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None
