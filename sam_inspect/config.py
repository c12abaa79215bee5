"""What a recipe can say: a pydantic schema in which every value has a default that was found on data.

Unknown keys are refused with the nearest valid name. How each default was found stands in `docs/choices.md`.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sam_inspect.errors import ConfigError

SCHEMA_VERSION = 4
"""Of a recipe folder; raised when an older recipe would be read wrongly (2: the map's unit changed)."""
M = TypeVar("M", bound=BaseModel)


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StageConfig(Section):
    """A stage by its plugin's name; `args` are checked by the plugin's own schema."""

    name: str
    args: dict[str, Any] = Field(default_factory=dict)


class PromptConfig(Section):
    """From the anomaly map to regions, and from regions to what SAM is asked."""

    grow: float = Field(0.6, ge=0, le=1)
    """A region reaches down to this share of its own peak (but not below `floor`)."""
    floor: float = Field(0.6, gt=0, le=1)
    """Share of the threshold below which no region reaches."""
    blur_cells: float = Field(3.0, ge=0, le=32)
    """How wide the map shows a point, in its own cells: a region's box is drawn in by that."""
    context: float = Field(1.5, ge=1, le=8)
    """Side of a view, in longer sides of the box that it shows."""
    least_view_px: int = Field(96, ge=16)
    """No view is smaller, pixels of the image: SAM needs surroundings to see an edge against."""
    view: Literal["zoom", "image"] = "zoom"
    """Zoomed views of regions, or the whole image as SAM's own predictor sees it."""
    input_px: int = Field(512, ge=256, le=1024, multiple_of=64)
    """Side of a zoomed view as SAM sees it; the whole image is always seen at 1024."""
    least_input_px: int = Field(256, ge=128, le=1024, multiple_of=64)
    """The same where an image has many: more than three share the pixels of three, down to this."""


class ChooseConfig(Section):
    """What of SAM's masks is the defect."""

    predicted_iou: float = Field(0.3, ge=0, le=10)
    """Weight of SAM's own estimate beside the agreement with the map."""
    from_peak: float = Field(0.4, ge=0, lt=1)
    """Share of a region's peak from which on the map counts as evidence."""
    least_share: float = Field(0.5, gt=0, lt=1)
    """A pixel is defect where the mean of SAM's probability and the map's evidence is above this."""
    least_agreement: float = Field(0.05, ge=0, le=1)
    """Where no mask agrees with the map as much as this, the map's own outline stays."""
    duplicate_iou: float = Field(0.7, gt=0, le=1)
    """Of two defects that a map shows and that overlap more, the better one stays."""
    mirrored: bool = False
    """SAM sees each view's three mirror images as well; its masks are the mean: better, for four times the encoding."""


class JudgeConfig(Section):
    """From masks to a verdict."""

    false_reject_rate: float = Field(0.01, gt=0, lt=1)
    """Share of good images that may fail; the threshold is calibrated to it on held-out good images."""
    min_area_px: int = Field(0, ge=0)
    """Defects of fewer pixels are dropped."""
    pixel_size_mm: float | None = Field(None, gt=0, le=1000)
    """Side of one pixel on the part, millimetres; areas are then given in mm² too."""


class RecipeConfig(Section):
    """The whole of what a recipe can say."""

    localizer: StageConfig = StageConfig(name="memory_bank")
    segmenter: StageConfig = StageConfig(name="mobile_sam")
    prompt: PromptConfig = PromptConfig()
    choose: ChooseConfig = ChooseConfig()
    judge: JudgeConfig = JudgeConfig()


def find_config(name: str) -> RecipeConfig:
    """A ready recipe by name (those of the folder `configs`), or a YAML file.

    Raises:
        ConfigError: no such name or file, no YAML, an unknown key, a value out of range.
    """
    path = Path(name)
    if not path.is_file():
        ready = ready_configs()
        if name not in ready:
            near = difflib.get_close_matches(name, ready, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"ready are {', '.join(ready)}; or name a YAML file"
            raise ConfigError(f"{name}: no ready config and no file", remedy)
        path = ready[name]
    return validated(RecipeConfig, read_yaml(path), str(path))


def ready_configs() -> dict[str, Path]:
    """File by name of the configs that come with the package: in the wheel inside it, in a checkout beside it.

    Raises:
        ConfigError: none did.
    """
    here = Path(__file__).resolve().parent
    for folder in (here / "configs", here.parent / "configs"):
        if found := sorted(folder.glob("*.yaml")):
            return {path.stem: path for path in found}
    raise ConfigError(f"{here / 'configs'}: the ready configs are missing", "install sam-inspect again, whole")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty one. Raises ConfigError."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})", "check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: is not YAML ({reason})", "fix it") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds {type(data).__name__} where keys are expected", "see the files of configs/")
    return data


def validated(schema: type[M], data: Any, where: str) -> M:
    """`data` as `schema`, or one clear line.

    Raises:
        ConfigError: naming `where`, the key, and for an unknown key the nearest valid one.
    """
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{where}: unknown key {path!r}", _nearest(schema, first["loc"])) from None
        # Around a missing key lies a whole section, with what may be secret.
        got = "give it" if first["type"] == "missing" else f"got {first['input']!r}"
        raise ConfigError(f"{where}: {path or 'content'}: {first['msg']}", got) from None


def _nearest(schema: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """The remedy for an unknown key: the nearest valid one in its section, or all of them."""
    for part in (part for part in loc[:-1] if isinstance(part, str)):  # a number is a place in a tuple of sections
        annotation = schema.model_fields[part].annotation
        kinds = (annotation, *get_args(annotation))
        schema = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), schema)
    valid = [field.alias or name for name, field in schema.model_fields.items()]
    near = difflib.get_close_matches(str(loc[-1]), valid, n=1)
    return f"did you mean {near[0]!r}?" if near else f"valid keys are {', '.join(valid)}"
