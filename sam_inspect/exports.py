"""The folder that `sam-inspect export` wrote, to an `Export`: facts and whole files; nothing is run here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sam_inspect.config import RecipeConfig, validated
from sam_inspect.errors import RecipeError
from sam_inspect.recipe import RECIPE, Recipe

FACTS, SCHEMA = "recipe.json", 2
AGAIN = "copy the whole folder again, or export it again"


@dataclass(frozen=True, slots=True, eq=False)
class Export:
    """A recipe as graphs.

    Attributes:
        recipe: its choices and calibration; of what it learned nothing, which is inside the graphs.
        threshold: scores above it fail.
        form: `onnx` or `openvino`, of the files.
        heatmap, encoder, decoder: the graphs' files.
        original_hw: (H, W) of the images that the heatmap is for, pixels.
        looks_hw: to what each of its inputs is scaled.
        side_px: of the encoder's square views.
        pad_with: RGB that fills what a crop leaves empty.
    """

    recipe: Recipe
    threshold: float
    form: str
    heatmap: Path
    encoder: Path
    decoder: Path
    original_hw: tuple[int, int]
    looks_hw: tuple[tuple[int, int], ...]
    side_px: int
    pad_with: tuple[float, ...]


def is_export(folder: Path) -> bool:
    """Whether that folder is an export and no recipe."""
    return (folder / FACTS).is_file() and not (folder / RECIPE).is_file()


def load_export(folder: Path) -> Export:
    """What `sam-inspect export` wrote, after checking that every file is the one that it wrote.

    Raises:
        RecipeError: a file is missing, cut or changed, or of another schema.
    """
    facts = _facts(folder / FACTS)
    try:
        for name, sha256 in facts["sha256"].items():
            _check(folder / Path(name).name, sha256)
        stages = {stage: facts[stage] for stage in ("prompt", "choose", "judge")}
        heatmap, original = facts["heatmap"], facts["heatmap"]["original"]
        return Export(
            recipe=Recipe(
                folder=folder,
                config=validated(RecipeConfig, stages, str(folder / FACTS)),
                tensors={},
                facts={},
                calibration_scores=np.array(facts["calibration_scores"], np.float32),
                calibration_pixels=np.zeros(0, np.float32),
                provenance={"weights": facts["weights"]},
            ),
            threshold=float(facts["threshold"]),
            form=str(facts["format"]),
            heatmap=folder / Path(heatmap["file"]).name,
            encoder=folder / Path(facts["encoder"]["file"]).name,
            decoder=folder / Path(facts["decoder"]["file"]).name,
            original_hw=(int(original["height"]), int(original["width"])),
            looks_hw=tuple((int(look["height"]), int(look["width"])) for look in heatmap["inputs"]),
            side_px=int(facts["encoder"]["side_px"]),
            pad_with=tuple(map(float, facts["encoder"]["pad_with"])),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RecipeError(f"{folder / FACTS}: {error} is missing or malformed", AGAIN) from None


def _refuse(number: str) -> None:
    raise ValueError(f"{number} is not a JSON number")


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read ({' '.join(str(error).split())})", AGAIN) from None
    if not isinstance(facts, dict) or not isinstance(facts.get("schema_version"), int):
        raise RecipeError(f"{path}: has no schema_version", AGAIN)
    if facts["schema_version"] != SCHEMA:
        newer = facts["schema_version"] > SCHEMA
        remedy = "update sam-inspect, or export it again with this one" if newer else "export it again"
        raise RecipeError(f"{path}: its schema is {facts['schema_version']}, this program's is {SCHEMA}", remedy)
    return facts


def _check(path: Path, sha256: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})", AGAIN) from None
    if found != sha256:
        raise RecipeError(f"{path}: is cut or was changed, its SHA-256 is not the one in {FACTS}", AGAIN)
