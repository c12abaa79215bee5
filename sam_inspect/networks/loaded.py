"""Networks with their weights in them, each loaded once a process and device: heatmap and masks share one SAM."""

from __future__ import annotations

from typing import Any, Protocol

from sam_inspect.networks.backbone import Backbone, SamTrunk, build_backbone
from sam_inspect.networks.sam import SamNetwork, TinyVitEncoder, build_sam
from sam_inspect.weights import load_weights

_built: dict[tuple[str, str | None, str], tuple[str, SamNetwork]] = {}


class BackboneSpec(Protocol):
    """What names a backbone: see `sam_inspect.localize.patches.BackboneConfig`."""

    @property
    def name(self) -> str:
        """Known weights, or a timm model."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Which layers answer."""

    @property
    def weights(self) -> str | None:
        """A weights file instead of the known weights."""

    @property
    def options(self) -> dict[str, Any]:
        """Further arguments of `timm.create_model`."""


def load_backbone(spec: BackboneSpec, device: str) -> tuple[Backbone, dict[str, str]]:
    """The backbone on `device`, and name, sha256 and source of its weights.

    Raises:
        WeightsMissing, WeightsError, ConfigError.
    """
    if spec.name == "mobile_sam":
        network, facts = load_sam(spec.name, spec.weights, device)
        assert isinstance(network.image_encoder, TinyVitEncoder)
        return SamTrunk(network.image_encoder, spec.layers), facts
    loaded = load_weights(spec.weights or spec.name)
    backbone = build_backbone(spec.name, spec.layers, loaded.tensors, options=spec.options, device=device)
    return backbone, {"name": spec.name, "sha256": loaded.sha256, "source": loaded.source}


def load_sam(name: str, weights: str | None, device: str) -> tuple[SamNetwork, dict[str, str]]:
    """The SAM `name` on `device`, and name, sha256 and source of its weights; built again where they were replaced.

    Raises:
        WeightsMissing, WeightsError.
    """
    loaded = load_weights(weights or name)
    asked = name, weights, device
    if asked not in _built or _built[asked][0] != loaded.sha256:
        _built[asked] = loaded.sha256, build_sam(name, loaded.tensors, device)
    return _built[asked][1], {"name": name, "sha256": loaded.sha256, "source": loaded.source}
