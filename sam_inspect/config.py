"""What a recipe can say: a pydantic schema in which every value has a default that was found on data.

Unknown keys are refused with the nearest valid name. How each default was found stands in `docs/choices.md`.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sam_inspect.errors import ConfigError

SCHEMA_VERSION = 1
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

    grow: float = Field(0.5, ge=0, le=1)
    """A region above the threshold grows down to `threshold + grow * (peak - threshold)`... see prompt.py."""


class JudgeConfig(Section):
    """From masks to a verdict."""

    false_reject_rate: float = Field(0.01, gt=0, lt=1)
    """Share of good images that may fail; the threshold is calibrated to it on held-out good images."""
    min_area_px: int = Field(0, ge=0)
    """Defects of fewer pixels are dropped."""
    pixel_size_mm: float | None = Field(None, gt=0)
    """Side of one pixel on the part, millimetres; areas are then given in mm² too."""


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
        raise ConfigError(f"{where}: {path or 'content'}: {first['msg']}", f"got {first['input']!r}") from None


def _nearest(schema: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """The remedy for an unknown key: the nearest valid one in its section, or all of them."""
    for part in loc[:-1]:
        annotation = schema.model_fields[str(part)].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            schema = annotation
    valid = list(schema.model_fields)
    near = difflib.get_close_matches(str(loc[-1]), valid, n=1)
    return f"did you mean {near[0]!r}?" if near else f"valid keys are {', '.join(valid)}"
