"""From a file of weights to tensors under the key names of our networks, without running anything of the file."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_inspect.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".safetensors", ".pt", ".pth")
MOBILENET_V2_BLOCKS = (1, 2, 3, 4, 3, 3, 1)  # a stage (Sandler et al., CVPR 2018, table 2)
SAM_OF_TRANSFORMERS = (
    (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
    (r"^vision_encoder\.", "image_encoder."),
    (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
    (r"\.neck\.conv1\.", ".neck.0."),
    (r"\.neck\.layer_norm1\.", ".neck.1."),
    (r"\.neck\.conv2\.", ".neck.2."),
    (r"\.neck\.layer_norm2\.", ".neck.3."),
    (r"\.mask_embed\.conv1\.", ".mask_downscaling.0."),
    (r"\.mask_embed\.layer_norm1\.", ".mask_downscaling.1."),
    (r"\.mask_embed\.conv2\.", ".mask_downscaling.3."),
    (r"\.mask_embed\.layer_norm2\.", ".mask_downscaling.4."),
    (r"\.mask_embed\.conv3\.", ".mask_downscaling.6."),
    (r"\.point_embed\.", ".point_embeddings."),
    (r"^shared_image_embedding\.", "prompt_encoder.shared_embedding."),
    (r"\.shared_embedding\.positional_embedding$", ".pe_layer.positional_encoding_gaussian_matrix"),
    (r"\.upscale_conv1\.", ".output_upscaling.0."),
    (r"\.upscale_layer_norm\.", ".output_upscaling.1."),
    (r"\.upscale_conv2\.", ".output_upscaling.3."),
    (r"((?:_head|_mlps\.\d)\.)layers\.0\.", r"\1layers.1."),
    (r"((?:_head|_mlps\.\d)\.)proj_in\.", r"\1layers.0."),
    (r"((?:_head|_mlps\.\d)\.)proj_out\.", r"\1layers.2."),
    (r"\.layer_norm", ".norm"),
)
AGAIN = "it is cut or damaged: bring it again"


def read_tensors(path: Path, suffix: str | None = None) -> dict[str, Tensor]:
    """A user's or author's file as tensors on the CPU, under the key names that our networks load.

    Accepts `.safetensors`, `.pt` and `.pth` (a state dict, also under the key `state_dict` or `model`); torchvision's
    MobileNetV2 and Meta's DINOv2 are renamed to timm's keys, the SAM of Hugging Face's transformers to
    segment_anything's.

    Args:
        path: the file.
        suffix: what it is, where its name does not say so.

    Raises:
        WeightsError: naming the file: absent, cut, no weights file, or a pickle with more than tensors in it.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file", "give the path of a weights file")
    kind = (suffix or path.suffix).lower()
    if kind not in SUFFIXES:
        raise WeightsError(f"{path}: weights are files of {', '.join(SUFFIXES)}", "convert it to safetensors")
    tensors = read_safetensors(path) if kind == ".safetensors" else _read_pickle(path)
    return _our_names(tensors)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped from disk. Raises WeightsError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read as safetensors ({error})", AGAIN) from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for bytes that it cannot read
        raise _refused(path, error) from error
    return _state_dict(path, loaded)


def _refused(path: Path, error: Exception) -> WeightsError:
    """Why torch did not load it, without its advice to load it unsafely."""
    with path.open("rb") as file:
        is_pickle = file.read(1) in (b"\x80", b"P")  # a bare pickle, or the zip that torch.save writes
    foreign = re.search(r"GLOBAL (\S+)", str(error))
    if foreign or (is_pickle and isinstance(error, pickle.UnpicklingError)):
        what = f" ({foreign[1]})" if foreign else ""
        return WeightsError(
            f"{path}: refused, its pickle holds more than tensors{what} and could run code",
            "bring it from where it was published, or save its state dict alone as safetensors",
        )
    return WeightsError(f"{path}: cannot be read as PyTorch weights", AGAIN)


def _state_dict(path: Path, loaded: Any) -> dict[str, Tensor]:
    import torch

    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded:
        raise WeightsError(f"{path}: holds no state dict", "save model.state_dict() alone as safetensors")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise WeightsError(f"{path}: {key!r} is not a tensor", "save model.state_dict() alone as safetensors")
    return {key: value.detach() for key, value in loaded.items()}


def _our_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if "features.18.0.weight" in tensors and "features.1.conv.0.0.weight" in tensors:
        return _mobilenet_v2_to_timm(tensors)
    if "mask_token" in tensors and "blocks.0.ls1.gamma" in tensors:
        # Meta's DINOv2 without registers has timm's names but for the token of its training.
        return {key: value for key, value in tensors.items() if key != "mask_token"}
    if "vision_encoder.patch_embed.projection.weight" in tensors:
        return _sam_from_transformers(tensors)
    return tensors


def _sam_from_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's `SamModel` under segment_anything's names.

    Its positional table has two names; `save_pretrained` writes one of them, which is either.
    """
    renamed = {}
    for key, value in tensors.items():
        for theirs, ours in SAM_OF_TRANSFORMERS:
            key = re.sub(theirs, ours, key)
        renamed[key] = value
    return renamed


def _mobilenet_v2_to_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's `mobilenet_v2` as timm's `mobilenetv2_100`: the same layers (padding, eps) under other names."""
    prefixes = {"features.0.0": "conv_stem", "features.0.1": "bn1", "classifier.1": "classifier"}
    prefixes |= {"features.18.0": "conv_head", "features.18.1": "bn2"}
    first = {"0.0": "conv_dw", "0.1": "bn1", "1": "conv_pw", "2": "bn2"}
    later = {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2", "2": "conv_pwl", "3": "bn3"}
    places = [(stage, block) for stage, count in enumerate(MOBILENET_V2_BLOCKS) for block in range(count)]
    for index, (stage, block) in enumerate(places, start=1):
        for theirs, ours in (later if index > 1 else first).items():
            prefixes[f"features.{index}.conv.{theirs}"] = f"blocks.{stage}.{block}.{ours}"
    split = {key: key.rpartition(".") for key in tensors}
    return {f"{prefixes.get(head, head)}.{tail}": tensors[key] for key, (head, _, tail) in split.items()}
