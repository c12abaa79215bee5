"""How a decoder is tuned: every choice with its range, and the presets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from sam_inspect.config import Section, validated
from sam_inspect.errors import UsageError

PromptKind = Literal["box", "points", "both"]


class Settings(Section):
    """Choices of one fit; the defaults are those of the preset `default`, each found on data (docs/finetuning.md)."""

    prompt: PromptKind = "box"
    """Boxes, points in the defect, or both with correction clicks as in SAM's own training."""
    loss: Literal["mse", "focal_dice", "bce_dice", "boundary"] = "bce_dice"
    """Of a mask, at SAM's low resolution in the defect's own view, so that a small defect weighs as much as a large."""
    unfreeze: Literal["none", "encoder-lora", "encoder"] = "none"
    """Besides the decoder: a low-rank change of the image encoder's linear layers, or all of it."""
    optimizer: Literal["adam", "adamw"] = "adamw"
    lr: float = Field(3e-4, gt=0, le=1)
    weight_decay: float = Field(0.01, ge=0, le=1)
    schedule: Literal["constant", "steps", "cosine"] = "cosine"
    """`steps` is SAM's: warmed up, divided by ten twice; `cosine` is warmed up and falls to nothing."""
    steps: int = Field(200, ge=1, le=10_000_000)
    """At least so many."""
    epochs: float = Field(7, ge=0, le=1_000_000)
    """Passes over all views, where that is more."""
    batch: int = Field(8, ge=1, le=1024)
    views: int = Field(20, ge=1, le=1000)
    """Augmented views of each labelled defect that are encoded and kept; with 1 the view is not augmented."""
    most_views: int = Field(900, ge=1)
    """Of all defects together: where there are many labels, fewer views of each are kept."""
    masks: Literal["single", "all"] = "all"
    """Which of SAM's outputs learn: the single mask, or also the best of the three, as in SAM's training."""
    iou_head: bool = True
    """Whether the decoder's estimate of its masks' IoU learns too; without it, ranking breaks."""
    jitter: float = Field(1.0, ge=0, le=3)
    """Of a prompt's box, in units of the localizer's own errors on the labels."""
    empty: float = Field(0.1, ge=0, le=0.9)
    """Share of random boxes on good parts, which must give an empty mask."""
    keep: float = Field(20, ge=0, le=1000)
    """Weight of what the untuned network had right and the tuned one changes."""
    leash: float = Field(0.05, ge=0, le=10)
    """How far each of the decoder's tensors may go, as a share of its norm; 0 for as far as it likes."""
    mirrored: bool = True
    """Whether the tuned network is asked about each view's mirror images as well: see `ChooseConfig.mirrored`."""
    guard: bool = True
    """Held-out labels decide how far to go, and whether the untuned decoder stays."""
    seed: int = 0


PRESETS: dict[str, Settings] = {
    "default": Settings(),
    "study": Settings(
        loss="mse",
        optimizer="adam",
        lr=1e-6,
        weight_decay=0,
        schedule="constant",
        batch=1,
        steps=1,
        epochs=100,
        views=1,
        masks="single",
        iou_head=False,
        jitter=0,
        empty=0,
        keep=0,
        leash=0,
        mirrored=False,
        guard=False,
    ),
    "sam": Settings(
        prompt="both",
        loss="focal_dice",
        lr=8e-4,
        weight_decay=0.1,
        schedule="steps",
        jitter=0,
        empty=0,
        keep=0,
        leash=0,
        mirrored=False,
        guard=False,
    ),
}


def settings_of(preset: str, choices: Mapping[str, Any]) -> Settings:
    """A preset with what a command line says instead; choices that are None are the preset's. Raises ConfigError."""
    given = {name: value for name, value in choices.items() if value is not None}
    return validated(Settings, PRESETS[preset].model_dump() | given, f"preset {preset}")


def parse_curve(text: str) -> tuple[int, ...]:
    """`1,5,10` as numbers, ascending. Raises UsageError."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    wrong = [word for word in words if not word.isdecimal() or int(word) < 1]
    if wrong:
        raise UsageError(f"--curve {text}: {wrong[0]!r} is not a number of labelled images", "give e.g. 1,2,5,10,20")
    return tuple(sorted({int(word) for word in words}))
