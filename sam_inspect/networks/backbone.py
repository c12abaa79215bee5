"""Backbones for heatmaps: a frozen network by name that answers with the features of its middle layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import timm
import torch
from torch import Tensor, nn

from sam_inspect.errors import ConfigError
from sam_inspect.networks.runtime import run
from sam_inspect.networks.sam import PIXEL_MEAN, PIXEL_STD, TinyVitEncoder, load_checked

TIMM_NAMES = {"dinov2_vits14": "vit_small_patch14_dinov2.lvd142m", "mobilenet_v2": "mobilenetv2_100.ra_in1k"}
CLASSIFIERS = ("head.", "classifier.", "fc.", "conv_head.", "bn2.", "norm.", "norm_head.")


class Backbone(Protocol):
    """A frozen feature network.

    Attributes:
        multiple_px: input sides must be multiples of this.
        device: where it runs.
        network: what `features` runs, as a module.
    """

    multiple_px: int
    device: torch.device
    network: nn.Module

    def features(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) float32 RGB in 0..255 -> one (B, C, h, w) a layer, fine to coarse, on any strides."""
        ...


class SamTrunk:
    """The trunk of MobileSAM's image encoder; `layers` are its stages, 0 to 3 (strides 4, 8, 16, 16)."""

    multiple_px = 32

    def __init__(self, encoder: TinyVitEncoder, layers: Sequence[int]) -> None:
        self.device = next(encoder.parameters()).device
        self.network: nn.Module = _Stages(encoder, layers).to(self.device)
        self._run = run(self.network, self.device)

    def features(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.features`."""
        return self._run(images.to(self.device))


class _Stages(nn.Module):
    """The trunk up to its last wanted stage, of RGB in 0..255."""

    def __init__(self, encoder: TinyVitEncoder, stages: Sequence[int]) -> None:
        super().__init__()
        self.encoder, self.wanted, self.normalise = encoder, list(stages), Normalise(PIXEL_MEAN, PIXEL_STD)
        self.traced_px = encoder.traced_px

    def extra_repr(self) -> str:
        return f"stages={self.wanted}"

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.encoder.stage_features(self.normalise(images), self.wanted))


class TimmBackbone:
    """Any timm model with `forward_intermediates`; `layers` are its indices there (blocks of a ViT, else stages)."""

    def __init__(self, model: Any, layers: Sequence[int]) -> None:
        reductions = [info["reduction"] for info in model.feature_info]
        if max(layers) >= len(reductions) or min(layers) < 0:
            raise ConfigError(f"layers: {list(layers)} do not exist", f"choose among 0 to {len(reductions) - 1}")
        self.multiple_px = int(max(reductions[layer] for layer in layers))
        mean, std = (np.array(model.pretrained_cfg[key]) * 255 for key in ("mean", "std"))
        self.device = next(model.parameters()).device
        self.network: nn.Module = _Intermediates(model, layers, Normalise(mean, std)).to(self.device)
        self._run = run(self.network, self.device)

    def features(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.features`."""
        return self._run(images.to(self.device))


class _Intermediates(nn.Module):
    """A timm model up to its last wanted layer, of RGB in 0..255."""

    def __init__(self, model: Any, layers: Sequence[int], normalise: nn.Module) -> None:
        super().__init__()
        self.model, self.wanted, self.normalise = model, list(layers), normalise

    def extra_repr(self) -> str:
        return f"layers={self.wanted}"

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        answer = self.model.forward_intermediates(
            self.normalise(images), indices=self.wanted, intermediates_only=True, stop_early=True
        )
        return tuple(answer)

    def for_size(self, height: int, width: int) -> nn.Module:
        """See `sam_inspect.networks.runtime.Sizable`: a ViT's position table is interpolated once, not in the graph."""
        if not getattr(self.model, "dynamic_img_size", False):
            return self
        model = copy.deepcopy(self.model)
        model.set_input_size(img_size=(height, width))
        return _Intermediates(model, self.wanted, self.normalise)


class Normalise(nn.Module):
    """RGB in 0..255 to what the network was trained on."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] | np.ndarray[Any, Any], std: Any) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(np.asarray(values), dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float32 of both."""
        return (images - self.mean) / self.std


def build_backbone(
    name: str,
    layers: Sequence[int],
    tensors: Mapping[str, Tensor],
    *,
    options: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> Backbone:
    """A timm backbone with weights in it.

    Args:
        name: `dinov2_vits14`, `mobilenet_v2`, or any timm model's name.
        layers: which layers answer.
        tensors: weights under timm's key names; the classifier may be absent.
        options: further arguments of `timm.create_model`, such as `pad_type` and `bn_eps` of converted weights.
        device: where it runs.

    Raises:
        ConfigError: timm knows no such model or layer.
        WeightsError: the weights do not fit.
    """
    model = _timm_model(TIMM_NAMES.get(name, name), dict(options or {}))
    used = {key for key in model.state_dict() if not key.startswith(CLASSIFIERS)}
    wanted = {key: value for key, value in tensors.items() if key in used or not key.startswith(CLASSIFIERS)}
    missing = {key: value for key, value in model.state_dict().items() if key.startswith(CLASSIFIERS)}
    load_checked(model, {**missing, **wanted}, name)
    return TimmBackbone(model.to(device).eval().requires_grad_(False), layers)


def _timm_model(name: str, options: dict[str, Any]) -> nn.Module:
    if name.startswith("vit_"):
        options = {"dynamic_img_size": True, **options}
    if not timm.is_model(name.split(".")[0]):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:3]
        remedy = f"did you mean one of {', '.join(near)}?" if near else "see timm.list_models()"
        raise ConfigError(f"backbone {name!r} is not a timm model", remedy)
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **options)
    return model
