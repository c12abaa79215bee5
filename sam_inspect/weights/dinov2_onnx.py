"""DINOv2 ViT-S/14 as timm's state dict, out of an exported graph of Hugging Face's Dinov2Model.

Initializers keep their names there, except the weights of linear layers, which are found through the MatMul that uses
them, and the position table, whose names are those of the one graph that `known.py` pins by its hash.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_inspect.errors import WeightsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Arrays = Mapping[str, NDArray[np.float32]]

DEPTH = 12
CLASS_POSITION, PATCH_POSITIONS = "onnx::Concat_1957", "onnx::Reshape_1962"  # (1, 1, 384); 37 x 37 patches
EMBEDDINGS = {
    "cls_token": "embeddings.cls_token",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
BLOCK = {
    "attn.proj.bias": "attention.output.dense.bias",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.bias": "mlp.fc2.bias",
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
LINEAR = {"attn.proj": "output/dense", "mlp.fc1": "fc1", "mlp.fc2": "fc2"}
QKV = ("query", "key", "value")


def read_dinov2_onnx(path: Path) -> dict[str, Tensor]:
    """The graph's backbone under the keys of timm's `vit_small_patch14_dinov2.lvd142m`, float32.

    Raises:
        WeightsError: it is no such graph.
    """
    import onnx
    import torch
    from onnx import numpy_helper

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
        arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        state = _embeddings(arrays)
        linear = _linear_weights(graph, arrays)
        for index in range(DEPTH):
            state |= _block(index, arrays, linear)
    except Exception as error:  # protobuf's, onnx's and our own look-ups: all mean another graph
        raise WeightsError(f"{path}: is not the expected DINOv2 graph ({type(error).__name__}: {error})") from error
    return {key: torch.from_numpy(value.astype("float32", order="C")) for key, value in state.items()}


def _embeddings(arrays: Arrays) -> dict[str, Any]:
    import numpy as np

    state = {ours: arrays[f"backbone.{theirs}"] for ours, theirs in EMBEDDINGS.items()}
    width = state["cls_token"].shape[-1]
    positions = [arrays[name].reshape(1, -1, width) for name in (CLASS_POSITION, PATCH_POSITIONS)]
    return state | {"pos_embed": np.concatenate(positions, axis=1)}


def _linear_weights(graph: Any, arrays: Arrays) -> dict[tuple[int, str], Any]:
    """(block, the layer's path) -> weight (out, in), of every MatMul with a constant operand."""
    found = {}
    for node in graph.node:
        place = re.search(r"layer\.(\d+)/(.*)/MatMul$", node.name)
        constants = [arrays[name] for name in node.input if name in arrays]
        if node.op_type == "MatMul" and place and constants:
            found[int(place[1]), place[2]] = constants[0].T
    return found


def _block(index: int, arrays: Arrays, linear: Mapping[tuple[int, str], Any]) -> dict[str, Any]:
    import numpy as np

    def weight(layer: str) -> Any:
        return next(value for (block, path), value in linear.items() if block == index and path.endswith(layer))

    theirs = f"backbone.encoder.layer.{index}."
    state = {ours: arrays[theirs + name] for ours, name in BLOCK.items()}
    state |= {f"{ours}.weight": weight(layer) for ours, layer in LINEAR.items()}
    state["attn.qkv.weight"] = np.concatenate([weight(part) for part in QKV])
    state["attn.qkv.bias"] = np.concatenate([arrays[f"{theirs}attention.attention.{part}.bias"] for part in QKV])
    return {f"blocks.{index}.{key}": value for key, value in state.items()}
