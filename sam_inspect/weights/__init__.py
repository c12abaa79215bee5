"""Pretrained weights: what is known, where it comes from, under which terms; fetched, checked, converted once, loaded.

What decides is the SHA-256 of the weights file itself, not where it came from. Nothing of a file is ever run: tensors
come from safetensors, from `torch.load(weights_only=True)`, or out of an ONNX graph whose hash is known. The result is
kept as safetensors in the user's cache, `$SAM_INSPECT_CACHE` or the platform's own.
"""

from sam_inspect.weights.fetch import add_weights, fetch_weights
from sam_inspect.weights.known import KNOWN, KnownWeights, SourceKind, find_known
from sam_inspect.weights.store import LoadedWeights, Stored, WeightsState, cache_folder, load_weights, states

__all__ = [
    "KNOWN",
    "KnownWeights",
    "LoadedWeights",
    "SourceKind",
    "Stored",
    "WeightsState",
    "add_weights",
    "cache_folder",
    "fetch_weights",
    "find_known",
    "load_weights",
    "states",
]
