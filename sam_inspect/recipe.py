"""A recipe folder to a `Recipe` and back: configuration and tensors, data only; nothing is built from it here.

`recipe.yaml` is the configuration and the list of the other files with their SHA-256; `localizer.safetensors` is what
the localizer learned, `calibration.safetensors` the scores of held-out good parts; `metrics.json` is what training
found, `provenance.json` says from what, with what and when. `decoder-HASH.safetensors` is a mask decoder tuned on
labelled defects, where there is one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import numpy as arrays

from sam_inspect.config import SCHEMA_VERSION, RecipeConfig, validated
from sam_inspect.errors import RecipeError
from sam_inspect.files import make_folder, output_errors, write_bytes, write_text

if TYPE_CHECKING:
    from torch import Tensor

RECIPE, LOCALIZER, CALIBRATION = "recipe.yaml", "localizer.safetensors", "calibration.safetensors"
METRICS, PROVENANCE, TUNING = "metrics.json", "provenance.json", "finetune"
BASE, UNTUNED_CHOOSE, END = "base_sha256", "untuned_choose", "whole"
READABLE, FIRST_WITH_END = (2, 3, SCHEMA_VERSION), 4
AGAIN = "copy the whole folder again, or train it again"
T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """Everything that inspecting a product needs beside the pretrained weights.

    Attributes:
        folder: where it lies.
        config: every choice, defaults included.
        tensors: what the localizer learned; not interpreted here.
        facts: plain data that the localizer keeps beside its tensors.
        calibration_scores: (n,) float32 scores of good images, each by a fit that had not seen it.
        calibration_pixels: (1001,) float32 quantiles of the values of their anomaly maps.
        metrics: what training found: threshold, counts, seconds.
        provenance: versions, weights, hash of the data, command, date.
        decoder: the tuned mask decoder's tensors; empty where the segmenter is used as it comes.
        decoder_facts: `base_sha256`, the weights that it was tuned from, and how and on what it was.
        runtime: `runtime` and `precision` that were found to keep this recipe's masks, and the figures; empty where
            that was not tried.
    """

    folder: Path
    config: RecipeConfig
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    calibration_scores: NDArray[np.float32]
    calibration_pixels: NDArray[np.float32]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    decoder: Mapping[str, Tensor] = field(default_factory=dict)
    decoder_facts: Mapping[str, Any] = field(default_factory=dict)
    runtime: Mapping[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        """The folder that it was trained on, wherever that is by now."""
        return Path(str(self.provenance.get("data", "")))

    @property
    def image_hw(self) -> tuple[int, int] | None:
        """(H, W) pixels of the first good part it was trained on; None where that was not kept yet."""
        size = self.provenance.get("image_size")
        return (int(size[1]), int(size[0])) if size else None

    def untuned(self) -> Recipe:
        """The same as it was before its decoder was tuned."""
        choose = self.decoder_facts.get(UNTUNED_CHOOSE, self.config.choose.model_dump())
        config = validated(RecipeConfig, self.config.model_dump() | {"choose": choose}, str(self.folder / RECIPE))
        return replace(self, config=config, decoder={}, decoder_facts={})


def save_recipe(recipe: Recipe) -> None:
    """Writes the folder; `recipe.yaml` goes first and comes last, so that a folder with one is whole.

    All of it is written beside what stands there first. A tuned decoder is `save_decoder`'s; one that was in the folder
    goes, with what proves it.

    Raises:
        OutputError: the folder cannot be written or the disk is full; a recipe that stood there stays.
    """
    from safetensors.torch import save

    calibration = {"scores": recipe.calibration_scores, "pixels": recipe.calibration_pixels}
    contents = {
        LOCALIZER: save({name: tensor.contiguous() for name, tensor in recipe.tensors.items()}),
        CALIBRATION: arrays.save({name: np.ascontiguousarray(array) for name, array in calibration.items()}),
        METRICS: _json(recipe.metrics),
        PROVENANCE: _json(recipe.provenance),
    }
    document = {
        "schema_version": SCHEMA_VERSION,
        "config": recipe.config.model_dump(mode="json"),
        "localizer_facts": dict(recipe.facts),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    }
    folder = make_folder(recipe.folder)
    with output_errors(folder), tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as beside:
        for name, content in contents.items():
            write_bytes(Path(beside) / name, content)
        write_text(Path(beside) / RECIPE, _yaml(document))
        (folder / RECIPE).unlink(missing_ok=True)
        for name in (*contents, RECIPE):
            (Path(beside) / name).replace(folder / name)
    _without_old_decoders(folder, document)
    if (folder / TUNING).is_dir():
        log.warning("%s: was tuned for the recipe that stood there, and goes with it", folder / TUNING)
        shutil.rmtree(folder / TUNING, ignore_errors=True)


def _write_document(folder: Path, document: Mapping[str, Any]) -> None:
    """`recipe.yaml`; then the decoders go that it does not name."""
    write_text(folder / RECIPE, _yaml(document))
    _without_old_decoders(folder, document)


def _yaml(document: Mapping[str, Any]) -> str:
    """With a last line that says so: without it, it is cut."""
    inner = {key: value for key, value in document.items() if key != END}
    return yaml.safe_dump(inner | {END: True}, sort_keys=False, allow_unicode=True)


def _without_old_decoders(folder: Path, document: Mapping[str, Any]) -> None:
    for stale in folder.glob("decoder-*.safetensors"):
        if stale.name not in document["files"]:
            stale.unlink(missing_ok=True)


def save_decoder(folder: Path, decoder: Mapping[str, Tensor], facts: Mapping[str, Any], config: RecipeConfig) -> None:
    """Puts a tuned decoder into a recipe, or takes the one in it out; nothing else of it changes but the config.

    Whenever it is interrupted, the recipe is the old one or the new one.

    Args:
        folder: of a whole recipe.
        decoder: its tensors; empty for the untuned one.
        facts: with `base_sha256`, and `untuned_choose` where the config has another one now; plain data besides.
        config: of the whole recipe, as it is from now on.

    Raises:
        RecipeError: the recipe cannot be read.
        OutputError: the folder cannot be written, or the disk is full.
    """
    from safetensors.torch import save

    document = _document(folder)
    hashes = {name: sha for name, sha in document["files"].items() if not name.startswith("decoder-")}
    if decoder:
        tensors = {name: tensor.contiguous() for name, tensor in decoder.items()}
        content = save(tensors, metadata={BASE: str(facts[BASE])})
        sha256 = hashlib.sha256(content).hexdigest()
        name = f"decoder-{sha256[:8]}.safetensors"
        write_bytes(folder / name, content)
        hashes[name] = sha256
    document |= {"schema_version": SCHEMA_VERSION, "config": config.model_dump(mode="json"), "files": hashes}
    document["decoder_facts"] = dict(facts)
    document.pop("runtime", None)  # it was found with other masks
    _write_document(folder, document)


def save_runtime(folder: Path, checked: Mapping[str, Any]) -> None:
    """Puts the runtime that was checked with a recipe into it. Raises RecipeError, OutputError."""
    _write_document(folder, _document(folder) | {"runtime": dict(checked)})


def load_recipe(folder: Path) -> Recipe:
    """The recipe that `save_recipe` wrote, after checking that every file is the one that it wrote.

    Raises:
        RecipeError: the folder or a file is missing, cut or changed, or of another schema.
        ConfigError: a value of its configuration was changed to one that cannot be.
    """
    document = _document(folder)
    hashes = document["files"]
    contents = {
        name: _content(folder / name, hashes.get(name)) for name in (LOCALIZER, CALIBRATION, METRICS, PROVENANCE)
    }
    from safetensors.torch import load  # torch takes seconds, and is not needed to refuse a recipe

    calibration = _parsed(folder / CALIBRATION, contents[CALIBRATION], arrays.load)
    decoder: Mapping[str, Tensor] = {}
    for name in hashes:
        if name.startswith("decoder-"):
            decoder = _parsed(folder / name, _content(folder / name, hashes[name]), load)
    return Recipe(
        folder=folder,
        config=validated(RecipeConfig, document["config"], str(folder / RECIPE)),
        tensors=_parsed(folder / LOCALIZER, contents[LOCALIZER], load),
        facts=document["localizer_facts"],
        calibration_scores=calibration["scores"],
        calibration_pixels=calibration["pixels"],
        metrics=json.loads(contents[METRICS]),
        provenance=json.loads(contents[PROVENANCE]),
        decoder=decoder,
        decoder_facts=document.get("decoder_facts", {}),
        runtime=document.get("runtime", {}),
    )


def _json(data: Mapping[str, Any]) -> bytes:
    """In ASCII: a name out of a folder may be no Unicode."""
    return (json.dumps(dict(data), indent=2) + "\n").encode()


def _document(folder: Path) -> dict[str, Any]:
    """`recipe.yaml`, of this program's schema."""
    path = folder / RECIPE
    if not path.is_file():
        if folder.is_file():
            raise RecipeError(f"{folder}: is a file", f"name the folder of a recipe, such as {folder.parent}")
        what = "holds no recipe.yaml" if folder.is_dir() else "does not exist"
        raise RecipeError(f"{folder}: {what}", f"train a recipe: sam-inspect train DATA --recipe {folder}")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({' '.join(str(error).split())})", AGAIN) from None
    if not isinstance(document, dict) or not isinstance(document.get("schema_version"), int):
        raise RecipeError(f"{path}: has no schema_version", AGAIN)
    version = document["schema_version"]
    if version not in READABLE:
        remedy = "update sam-inspect, or train it again with this one" if version > SCHEMA_VERSION else "train it again"
        raise RecipeError(f"{path}: its schema is {version}, this program's is {SCHEMA_VERSION}", remedy)
    missing = [key for key in ("config", "localizer_facts", "files") if not isinstance(document.get(key), dict)]
    if missing:
        raise RecipeError(f"{path}: lacks {missing[0]!r}", AGAIN)
    if version >= FIRST_WITH_END and document.get(END) is not True:
        raise RecipeError(f"{path}: is cut, its last line is not `{END}: true`", AGAIN)
    return document


def _content(path: Path, sha256: str | None) -> bytes:
    """A file's bytes, if they are those that were written."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})", AGAIN) from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise RecipeError(f"{path}: is cut or was changed, its SHA-256 is not the one in {RECIPE}", AGAIN)
    return content


def _parsed(path: Path, content: bytes, load: Callable[[bytes], dict[str, T]]) -> dict[str, T]:
    try:
        return load(content)
    except SafetensorError as error:
        raise RecipeError(f"{path}: holds no tensors ({error})", AGAIN) from None
