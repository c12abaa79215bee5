"""SAM's three modules by name: an image encoder, segment_anything's own prompt encoder and mask decoder.

`mobile_sam`'s trunk is timm's `tiny_vit_5m_224` under renamed keys (MobileSAM, Zhang et al. 2023), the vit_* encoders
are segment_anything's (Kirillov et al., ICCV 2023), their attention fused. `mobile_sam` answers at any input size that
is a multiple of 32, vit_* only at 1024, to which their position table belongs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from timm.models.tiny_vit import ConvNorm
from torch import Tensor, nn

from sam_inspect.errors import WeightsError
from sam_inspect.networks.vit_encoder import VitEncoder

EMBED_DIM = 256
STRIDE = 16
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
NATIVE_PX = 1024
MOBILE_TRUNK = "tiny_vit_5m_224"
VIT = {
    "sam_vit_b": (768, 12, 12, (2, 5, 8, 11)),
    "sam_vit_l": (1024, 24, 16, (5, 11, 17, 23)),
    "sam_vit_h": (1280, 32, 16, (7, 15, 23, 31)),
}
NAMES = ("mobile_sam", *VIT)


class TinyVitEncoder(nn.Module):
    """MobileSAM's image encoder: timm's TinyViT trunk, its last stage kept at stride 16, and SAM's neck."""

    patch_embed: nn.Module
    stages: nn.Sequential
    traced_px = 512
    """See `sam_inspect.networks.runtime.AnySize`: no stage's windows (7, 14 and 7 cells) fit in, so that each pads."""

    def __init__(self) -> None:
        super().__init__()
        trunk: Any = timm.create_model(MOBILE_TRUNK, num_classes=0)
        trunk.stages[3].downsample.conv2.conv.stride = (1, 1)
        del trunk.head
        self.patch_embed, self.stages = trunk.patch_embed, trunk.stages
        self.neck = nn.Sequential(
            nn.Conv2d(320, EMBED_DIM, 1, bias=False),
            LayerNorm2d(EMBED_DIM),
            nn.Conv2d(EMBED_DIM, EMBED_DIM, 3, padding=1, bias=False),
            LayerNorm2d(EMBED_DIM),
        )

    def fuse(self) -> None:
        """Folds every batch norm into its convolution and lays weights out channels last: 1.7 times as fast on a CPU.

        The answers differ by rounding alone, 1e-5 of the largest.
        """
        for parent in list(self.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, ConvNorm):
                    setattr(parent, name, child.fuse())  # type: ignore[no-untyped-call]
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised, H and W multiples of 32 -> (B, 256, H / 16, W / 16)."""
        embedding: Tensor = self.neck(self.stage_features(images, [3])[0])
        return embedding

    def stage_features(self, images: Tensor, stages: Sequence[int]) -> list[Tensor]:
        """Outputs of the named stages (0 to 3; strides 4, 8, 16, 16), each (B, C, h, w); later stages do not run."""
        features, found = self.patch_embed(images.contiguous(memory_format=torch.channels_last)), []
        for index in range(max(stages) + 1):
            features = self.stages[index](features)
            if index in stages:
                found.append(features)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class SamNetwork:
    """The three modules, in evaluation mode, without gradients, on one device."""

    image_encoder: nn.Module
    prompt_encoder: PromptEncoder
    mask_decoder: MaskDecoder

    def prompt_encoder_for(self, input_px: int) -> PromptEncoder:
        """The same prompt encoder (shared parameters) for a square input of another size, pixels."""
        encoder = copy.copy(self.prompt_encoder)
        side = input_px // STRIDE
        encoder.input_image_size = (input_px, input_px)
        encoder.image_embedding_size = (side, side)
        encoder.mask_input_size = (4 * side, 4 * side)
        return encoder


def build_sam(name: str, tensors: Mapping[str, Tensor], device: str | torch.device = "cpu") -> SamNetwork:
    """The network `name` with weights under segment_anything's key names.

    Raises:
        WeightsError: a key is absent, unknown or of another shape; the first one is named.
    """
    modules = nn.ModuleDict(
        {"image_encoder": _image_encoder(name), "prompt_encoder": _prompt_encoder(), "mask_decoder": _mask_decoder()}
    )
    renamed = _timm_keys(tensors) if name == "mobile_sam" else dict(tensors)
    load_checked(modules, renamed, name)
    modules.eval()
    if isinstance(modules["image_encoder"], TinyVitEncoder):
        modules["image_encoder"].fuse()
    modules.to(device).requires_grad_(False)  # after it: what is fused is made anew, on the CPU
    return SamNetwork(modules["image_encoder"], modules["prompt_encoder"], modules["mask_decoder"])


def load_checked(module: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Loads `tensors` into `module`, every key and shape as expected; recomputable buffers may be absent.

    Raises:
        WeightsError: naming the first key that is absent, unknown or of another shape.
    """
    expected = module.state_dict()
    optional = {key for key in expected if key.endswith(("attention_bias_idxs", "num_batches_tracked", "total_ops"))}
    wrong = [f"{key} is absent" for key in expected if key not in tensors and key not in optional]
    wrong += [f"{key} is unknown" for key in tensors if key not in expected and not key.endswith("attention_bias_idxs")]
    wrong += [
        f"{key} is {tuple(tensors[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    if wrong:
        raise WeightsError(
            f"weights do not fit {name}: {wrong[0]} ({len(wrong)} such keys)", "use that network's weights"
        )
    module.load_state_dict(dict(tensors), strict=False)


def _timm_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MobileSAM's tensors as timm names them, without the trunk's classifier, which SAM never runs."""
    unused = ("image_encoder.head.", "image_encoder.norm_head.")
    return {_timm_key(key): value for key, value in tensors.items() if not key.startswith(unused)}


def _timm_key(key: str) -> str:
    if not key.startswith("image_encoder."):
        return key
    key = key.replace("patch_embed.seq.0.", "patch_embed.conv1.").replace("patch_embed.seq.2.", "patch_embed.conv2.")
    for stage in range(3):
        key = key.replace(f"layers.{stage}.downsample.", f"stages.{stage + 1}.downsample.")
    return key.replace("layers.", "stages.").replace(".c.weight", ".conv.weight")


def _image_encoder(name: str) -> nn.Module:
    if name == "mobile_sam":
        return TinyVitEncoder()
    width, depth, heads, global_attention = VIT[name]
    encoder: nn.Module = VitEncoder(
        img_size=NATIVE_PX,
        patch_size=STRIDE,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=4,
        out_chans=EMBED_DIM,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=global_attention,
    )
    return encoder


def _prompt_encoder() -> PromptEncoder:
    side = NATIVE_PX // STRIDE
    return PromptEncoder(
        embed_dim=EMBED_DIM,
        image_embedding_size=(side, side),
        input_image_size=(NATIVE_PX, NATIVE_PX),
        mask_in_chans=16,
    )


def _mask_decoder() -> MaskDecoder:
    transformer = TwoWayTransformer(depth=2, embedding_dim=EMBED_DIM, mlp_dim=2048, num_heads=8)
    return MaskDecoder(
        num_multimask_outputs=3,
        transformer=transformer,
        transformer_dim=EMBED_DIM,
        iou_head_depth=3,
        iou_head_hidden_dim=256,
    )
