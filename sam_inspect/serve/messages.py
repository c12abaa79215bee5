"""What clients send and what they are answered, as schemas: the OpenAPI document is made of these."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from sam_inspect.errors import UsageError
from sam_inspect.masks import cut_out, to_rle
from sam_inspect.records import CropMask
from sam_inspect.serve.clicks import Clicks
from sam_inspect.serve.tables import InspectionRow

MOST_BOXES, MOST_POINTS, MOST_MASKS = 200, 200, 200


def _plain(text: str) -> str:
    """Text that any database keeps."""
    if any(ord(letter) < 32 or 0xD800 <= ord(letter) <= 0xDFFF for letter in text):
        raise ValueError("holds control characters")
    return text


def _plain_lines(text: str) -> str:
    """The same of several lines."""
    _plain(text.replace("\n", " ").replace("\r", " ").replace("\t", " "))
    return text


def _is_a_box(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"the box [{x0:g}, {y0:g}, {x1:g}, {y1:g}] is not a box: expected x0 < x1 and y0 < y1")
    return box


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("lies outside the calendar") from None


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
Id = Annotated[str, Field(pattern="^[0-9a-f]{28}$")]
Word = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_plain)]
Number = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
XY = tuple[Number, Number]
Xyxy = Annotated[tuple[Number, Number, Number, Number], AfterValidator(_is_a_box)]


class Message(BaseModel):
    """Base of all; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


class Fields(Message):
    """What may come with an image."""

    part: Word | None = Field(None, description="What the part is.", examples=["bottle-0.5l"])
    serial: Word | None = Field(None, description="Which one it is.", examples=["A-004711"])
    camera: Word | None = Field(None, examples=["line 3, top"])
    triggered_at: Moment | None = Field(None, examples=["2026-11-26T06:55:13.250Z"])
    boxes: list[Xyxy] | None = Field(
        None, max_length=MOST_BOXES, description="[x0, y0, x1, y1] pixels, outlined instead of what the heatmap finds."
    )


class Rle(Message):
    """A mask of the image's size as COCO's run lengths: of the columns, of unset and set pixels in turn."""

    size: tuple[Annotated[int, Field(ge=1, le=100_000)], Annotated[int, Field(ge=1, le=100_000)]]
    counts: str | list[int] = Field(examples=["o12d0j42C4N2N1O001"], max_length=4_000_000)

    def mask(self, original_hw: tuple[int, int]) -> CropMask | None:
        """Its pixels; None for an empty one. Raises ValueError: it is of another size, or no runs."""
        if tuple(self.size) != original_hw:
            raise ValueError(
                f"the mask is {self.size[1]} x {self.size[0]}, the image {original_hw[1]} x {original_hw[0]}"
            )
        runs = _runs(self.counts) if isinstance(self.counts, str) else self.counts
        if any(run < 0 for run in runs) or sum(runs) != math.prod(original_hw):
            raise ValueError("the mask's runs do not fill the image")
        flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        return cut_out(np.ascontiguousarray(flat.reshape(original_hw[::-1]).T))


def _runs(counts: str) -> list[int]:
    """COCO's string of run lengths: five bits a letter, each run after the second less the one two before it.

    pycocotools trusts such a string and writes past its memory for a wrong one; this comes from outside.
    """
    runs: list[int] = []
    value = shift = 0
    for letter in counts:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 40:
            raise ValueError("the mask's counts are none")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("the mask's counts are cut")
    return runs


class Pointing(Message):
    """Where somebody points: at least one point on the defect, or a box."""

    on: list[XY] = Field(
        [], max_length=MOST_POINTS, description="[x, y] pixels on the defect.", examples=[[[301.5, 220]]]
    )
    off: list[XY] = Field([], max_length=MOST_POINTS, description="[x, y] pixels beside it.")
    box: Xyxy | None = Field(None, description="[x0, y0, x1, y1] pixels around it.")

    @model_validator(mode="after")
    def _says_where(self) -> Self:
        if not self.on and self.box is None:
            raise ValueError("says nothing of where the defect is: give `on` or `box`")
        return self

    def clicks(self, original_hw: tuple[int, int]) -> Clicks:
        """On an image of that size. Raises UsageError: outside it."""
        height, width = original_hw
        if any(not (0 <= x <= width and 0 <= y <= height) for x, y in (*self.on, *self.off)):
            raise UsageError("a point lies outside the image", f"give pixels of {width} x {height}")
        box = self.box
        if box is not None:
            box = (max(0, box[0]), max(0, box[1]), min(width, box[2]), min(height, box[3]))
            if box[2] - box[0] < 1 or box[3] - box[1] < 1:
                raise UsageError("the box has no pixel of the image", f"give pixels of {width} x {height}")
        return Clicks(tuple(self.on), tuple(self.off), box)


class ClickMessage(Pointing):
    """The same on the image of a stored inspection."""

    inspection: Id = Field(description="Whose image.")


class MaskAnswer(BaseModel):
    """SAM's mask of what was pointed at."""

    box: tuple[int, int, int, int] | None = Field(description="Its own, pixels; null where SAM sees nothing.")
    area_px: int
    predicted_iou: float = Field(description="SAM's own estimate.")
    mask: dict[str, Any] | None = Field(description="COCO RLE of the image's size.")

    @classmethod
    def of(cls, mask: CropMask | None, predicted_iou: float, original_hw: tuple[int, int]) -> MaskAnswer:
        """The answer about a mask."""
        if mask is None:
            return cls(box=None, area_px=0, predicted_iou=predicted_iou, mask=None)
        rle = to_rle(mask, original_hw)
        return cls(box=mask.box_xyxy, area_px=mask.area_px, predicted_iou=predicted_iou, mask=rle)


class LabelledMask(Message):
    """A mask that a person stands for."""

    mask: Rle
    defect_type: Word


class Review(Message):
    """What a person says of an inspection."""

    decision: Literal["confirm", "overrule"]
    by: Word | None = None
    note: Annotated[str, Field(max_length=2000), AfterValidator(_plain_lines)] | None = None
    masks: list[LabelledMask] | None = Field(
        None, max_length=MOST_MASKS, description="The defects as they really are; [] for a part that has none."
    )


class Named(BaseModel):
    """A recipe as it judged."""

    name: str
    version: str


class Stored(BaseModel):
    """An answered inspection."""

    id: str
    recipe: Named
    part: str | None
    serial: str | None
    camera: str | None
    triggered_at: datetime | None
    captured_at: datetime
    done_at: datetime
    verdict: Literal["pass", "fail", "error"]
    score: float | None
    threshold: float | None
    defects: int
    review: dict[str, Any] | None
    inspection: dict[str, Any] | None = Field(None, description="As the command line's results.jsonl says it.")

    @classmethod
    def of(cls, row: InspectionRow, whole: bool = False) -> Stored:
        """What the store knows of it; its defects only where the whole is wanted."""
        return cls(
            id=row.id,
            recipe=Named(name=row.recipe, version=row.recipe_version),
            part=row.part,
            serial=row.serial,
            camera=row.camera,
            triggered_at=row.triggered_at,
            captured_at=row.captured_at,
            done_at=row.done_at,
            verdict=row.verdict,
            score=row.score,
            threshold=row.threshold,
            defects=len(row.result["defects"]),
            review=row.review if whole else _without_masks(row.review),
            inspection=row.result if whole else None,
        )


def _without_masks(review: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if review is None else {name: value for name, value in review.items() if name != "masks"}


class Page(BaseModel):
    """Inspections, newest first."""

    inspections: list[Stored]
    next: str | None = Field(description="`before` of the following page; null at the end.")


class RecipeAnswer(BaseModel):
    """A recipe that is ready."""

    name: str
    version: str
    threshold: float | None
    loaded_at: datetime


class Problem(BaseModel):
    """RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    request_id: str
