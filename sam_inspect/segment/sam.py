"""SAM as a segmenter: encode a view to a value, decode all its prompts in batches.

Every prompt answers with four masks from one pass of the decoder: the single mask (`multimask_output=False`, index 0),
then the three of `multimask_output=True`.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import MaskDecoder
from torch import Tensor, nn

from sam_inspect.config import Section, validated
from sam_inspect.errors import WeightsError
from sam_inspect.networks.backbone import Normalise
from sam_inspect.networks.loaded import load_sam
from sam_inspect.networks.mask_decoder import decode_each
from sam_inspect.networks.runtime import batches_of, run
from sam_inspect.networks.sam import PIXEL_MEAN, PIXEL_STD, SamNetwork, build_sam, load_checked
from sam_inspect.records import Candidates, Prompt, View
from sam_inspect.segment.views import batches, shown, to_input

# A CPU is fastest with what its caches hold: prompts for two views of 1024 pixels or eight of 512.
TOKENS_PER_BATCH = {"cpu": 8192, "cuda": 262_144}
ENCODER = "image_encoder."
PROMPTS_AND_TOKENS = {2: (0, 1), 3: (0,)}
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """A view, encoded: a value that can be kept and decoded again with other prompts.

    Attributes:
        view: what was encoded; its prompts play no part.
        features: (1, 256, input_px / 16, input_px / 16) on the network's device.
    """

    view: View
    features: Tensor


class SamArgs(Section):
    """Arguments of every SAM."""

    weights: str | None = None
    """A weights file instead of the known weights of that name."""


class Sam:
    """A `SamNetwork` as a `Segmenter`; the subclasses below are the plugins, by the name of their network."""

    name: ClassVar[str]
    fixed_input_px: ClassVar[int | None] = None
    """The only size at which the network sees, whatever a view says; None where it takes any."""

    def __init__(self, network: SamNetwork, sha256: str = "", encoder_tuned: bool = False) -> None:
        self.network, self.sha256, self.encoder_tuned = network, sha256, encoder_tuned
        self.device = next(network.mask_decoder.parameters()).device
        self._encode = run(network.image_encoder, self.device)
        self._decode = run(_Decoding(network.mask_decoder), self.device, free=PROMPTS_AND_TOKENS)

    @classmethod
    def from_tensors(cls, name: str, tensors: Mapping[str, Tensor], device: str = "cpu") -> Sam:
        """The network `name` from tensors under segment_anything's key names. Raises WeightsError."""
        digest = hashlib.sha256()
        for key, tensor in sorted(tensors.items()):
            digest.update(key.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return cls(build_sam(name, tensors, device), digest.hexdigest())

    @classmethod
    def from_config(cls, args: Mapping[str, Any], *, device: str) -> Sam:
        """See `Segmenter.from_config`; the subclass says which network."""
        parsed = validated(SamArgs, dict(args), "segmenter.args")
        network, facts = load_sam(cls.name, parsed.weights, device)
        return cls(network, facts["sha256"])

    def with_tuned(self, tensors: Mapping[str, Tensor], base_sha256: str) -> Self:
        """See `Tunable.with_tuned`."""
        if base_sha256 != self.sha256:
            raise WeightsError(
                f"the tuned decoder belongs to weights {base_sha256[:12]}, {self.name} here has {self.sha256[:12]}",
                "bring the same weights, or tune it again",
            )
        own = {key: value for key, value in tensors.items() if not key.startswith(ENCODER)}
        moved = {key.removeprefix(ENCODER): value for key, value in tensors.items() if key.startswith(ENCODER)}
        network = replace(
            self.network, mask_decoder=_copy_with(self.network.mask_decoder, own, f"{self.name}'s mask decoder")
        )
        if moved:
            whole = self.network.image_encoder.state_dict() | moved
            network = replace(
                network, image_encoder=_copy_with(self.network.image_encoder, whole, f"{self.name}'s image encoder")
            )
        tuned = type(self)(network, self.sha256, encoder_tuned=bool(moved))
        if not moved:
            tuned._encode = self._encode
        return tuned

    def tunable_tensors(self) -> dict[str, Tensor]:
        """The network's own tensors under the names that `with_tuned` knows."""
        decoder: dict[str, Tensor] = self.network.mask_decoder.state_dict()
        encoder = self.network.image_encoder.state_dict()
        return decoder | {ENCODER + name: value for name, value in encoder.items()}

    def segment(self, image: NDArray[np.uint8], views: Sequence[View]) -> list[Candidates]:
        """See `Segmenter.segment`; views of the same input size share batches where that pays."""
        return [
            candidates
            for embedding in self.encode(image, views)
            for candidates in self.decode(embedding, embedding.view.prompts)
        ]

    @torch.inference_mode()
    def encode(self, image: NDArray[np.uint8], views: Sequence[View]) -> Iterator[Embedding]:
        """An `Embedding` for each view, in order; its own view says at which size the network saw it.

        Args:
            image: (H, W, 3) uint8 RGB.
            views: crops of it.
        """
        if self.fixed_input_px is not None:
            views = [replace(view, input_px=self.fixed_input_px) for view in views]
        for _, group in groupby(views, key=lambda view: view.input_px):
            same_size = list(group)
            for batch in batches_of(len(same_size), same_size[0].input_px ** 2, self.device):
                seen = [normalised(shown(image, view), view.input_px, self.device) for view in same_size[batch]]
                (features,) = self._encode(torch.stack(seen))
                for index, view in enumerate(same_size[batch]):
                    yield Embedding(view, features[index : index + 1])

    @torch.inference_mode()
    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Candidates]:
        """The answers to `prompts`, in order; any mix of boxes, points and mask logits."""
        view, answers = embedding.view, {}
        encoder = self.network.prompt_encoder_for(view.input_px)
        image_pe = encoder.get_dense_pe()
        tokens = embedding.features.shape[-2] * embedding.features.shape[-1]
        for indices in batches(prompts, max(1, TOKENS_PER_BATCH[self.device.type] // tokens)):
            batch = [prompts[index] for index in indices]
            sparse, dense = encoder(*_as_tensors(batch, view, self.device))
            if batch[0].mask_logits is None:
                dense = dense[:1]
            found = self._decode(embedding.features, image_pe, sparse, dense)
            logits, iou = (tensor.cpu().numpy() for tensor in found)
            for row, index in enumerate(indices):
                answers[index] = Candidates(view, prompts[index], logits[row], iou[row])
        return [answers[index] for index in range(len(prompts))]


class MobileSam(Sam):
    """MobileSAM (Zhang et al. 2023), the default: views of any size."""

    name = "mobile_sam"


class SamVitB(Sam):
    """SAM with ViT-B (Kirillov et al., ICCV 2023)."""

    name, fixed_input_px = "sam_vit_b", 1024


class SamVitL(Sam):
    """SAM with ViT-L."""

    name, fixed_input_px = "sam_vit_l", 1024


class SamVitH(Sam):
    """SAM with ViT-H."""

    name, fixed_input_px = "sam_vit_h", 1024


class _Decoding(nn.Module):
    """All answers about one view."""

    def __init__(self, decoder: MaskDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, features: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        return decode_each(self.decoder, features, image_pe, sparse, dense)


def _copy_with(module: M, tensors: Mapping[str, Tensor], what: str) -> M:
    fresh = copy.deepcopy(module)
    load_checked(fresh, tensors, what)
    fresh.train()  # timm's attention forgets what it kept of the old weights
    return fresh.eval().requires_grad_(False)


def normalised(pixels: NDArray[np.uint8], input_px: int, device: torch.device) -> Tensor:
    """(h, w, 3) uint8 -> (3, input_px, input_px) float32 there, padded right and below with zeros as SAM does."""
    height, width = pixels.shape[:2]
    square = torch.zeros(3, input_px, input_px, device=device)
    square[:, :height, :width] = _normalise(device)(torch.tensor(pixels, device=device).permute(2, 0, 1))[0]
    return square


@lru_cache
def _normalise(device: torch.device) -> Normalise:
    return Normalise(PIXEL_MEAN, PIXEL_STD).to(device)


PromptTensors = tuple[tuple[Tensor, Tensor] | None, Tensor | None, Tensor | None]


def _as_tensors(prompts: Sequence[Prompt], view: View, device: torch.device) -> PromptTensors:
    """Points with labels, boxes and masks in the view's input frame, as `PromptEncoder.forward` takes them."""
    first = prompts[0]
    points = boxes = masks = None
    if len(first.points_xy):
        xy = np.stack([to_input(prompt.points_xy, view) for prompt in prompts])
        labels = np.stack([prompt.point_labels for prompt in prompts])
        points = (torch.from_numpy(xy).to(device), torch.from_numpy(labels).to(device))
    if first.box_xyxy is not None:
        corners = np.array([prompt.box_xyxy for prompt in prompts], np.float32).reshape(-1, 2, 2)
        boxes = torch.from_numpy(to_input(corners, view).reshape(-1, 4)).to(device)
    if first.mask_logits is not None:
        masks = torch.from_numpy(np.stack([prompt.mask_logits for prompt in prompts])[:, None].copy()).to(device)  # type: ignore[misc]
    return points, boxes, masks
