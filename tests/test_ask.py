"""What SAM is asked, and how often: in a given box once, about what a map shows until the box is that of an outline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import pytest
from numpy.typing import NDArray

from sam_inspect.ask import ask
from sam_inspect.choose import choose
from sam_inspect.config import ChooseConfig
from sam_inspect.masks import filled_box, from_full
from sam_inspect.records import Box, Candidates, Localization, Prompt, Region, View

HW = (128, 128)
HOLE: Box = (40, 48, 60, 64)
LINE: Box = (40, 50, 60, 60)
GUESS: Box = (30, 40, 76, 76)
IMAGE = np.zeros((*HW, 3), np.uint8)
VIEW = View((0, 0, 128, 128), 512, (Prompt(box_xyxy=(30.0, 40.0, 76.0, 76.0), region=0),))


class Once:
    """Sees the hole, whatever it is asked; its views cannot be asked again."""

    def __init__(self) -> None:
        self.encoded: list[View] = []
        self.asked: list[Prompt] = []

    @classmethod
    def from_config(cls, args: Mapping[str, Any], *, device: str) -> Self:
        return cls()

    def segment(self, image: NDArray[np.uint8], views: Sequence[View]) -> list[Candidates]:
        return [self._answer(view, prompt) for view in views for prompt in view.prompts]

    def _answer(self, view: View, prompt: Prompt) -> Candidates:
        self.asked.append(prompt)
        logits = np.full((1, *HW), -8.0, np.float32)
        logits[0, HOLE[1] : HOLE[3], HOLE[0] : HOLE[2]] = 8.0
        return Candidates(view, prompt, logits, np.ones(1, np.float32))


class Seen:
    """An encoded view."""

    def __init__(self, view: View) -> None:
        self.view = view


class Often(Once):
    """The same, of a view that is encoded once."""

    def encode(self, image: NDArray[np.uint8], views: Sequence[View]) -> Iterator[Seen]:
        self.encoded += views
        yield from map(Seen, views)

    def decode(self, embedding: Seen, prompts: Sequence[Prompt]) -> list[Candidates]:
        return [self._answer(embedding.view, prompt) for prompt in prompts]


class Four(Often):
    """Answers with four masks as SAM does: the hole but for the second, which is a line in it."""

    def _answer(self, view: View, prompt: Prompt) -> Candidates:
        (hole,) = super()._answer(view, prompt).low_res_logits
        logits = np.repeat(hole[None], 4, 0)
        logits[1, : LINE[1]] = logits[1, LINE[3] :] = -8.0
        return Candidates(view, prompt, logits, np.ones(4, np.float32))


class Doubting(Four):
    """The same, and no pixel of it for certain."""

    def _answer(self, view: View, prompt: Prompt) -> Candidates:
        answer = super()._answer(view, prompt)
        return replace(answer, low_res_logits=answer.low_res_logits.clip(max=0.8))


class Leaning(Often):
    """Sees what is bright in a view, and a little below it."""

    def encode(self, image: NDArray[np.uint8], views: Sequence[View]) -> Iterator[Seen]:
        self.image = image
        for view in views:
            x0, y0, x1, y1 = view.crop_xyxy
            bright = image[y0:y1, x0:x1, 0] > 0
            self.encoded.append(view)
            yield Seeing(view, bright | np.roll(bright, 4, 0))

    def decode(self, embedding: Seen, prompts: Sequence[Prompt]) -> list[Candidates]:
        assert isinstance(embedding, Seeing)
        logits = np.where(embedding.seen, 8, -8)[None].astype(np.float32)
        self.asked += prompts
        return [Candidates(embedding.view, prompt, logits, np.ones(1, np.float32)) for prompt in prompts]


class Seeing(Seen):
    """An encoded view, and what is seen in it."""

    def __init__(self, view: View, seen: NDArray[np.bool_]) -> None:
        super().__init__(view)
        self.seen = seen


def shown() -> Localization:
    """A map that shows the hole wider than it is."""
    found = np.zeros(HW, np.float32)
    found[GUESS[1] : GUESS[3], GUESS[0] : GUESS[2]] = 5.0
    return Localization(HW, 5.0, (Region(GUESS, (50.5, 56.5), 5.0, filled_box(GUESS)),), found)


def test_the_second_question_has_the_box_of_what_the_first_ones_outlined() -> None:
    sam = Often()
    answers = ask(sam, IMAGE, [VIEW], shown(), ChooseConfig())
    box, peak, again = sam.asked
    assert box == VIEW.prompts[0]
    assert peak.box_xyxy == box.box_xyxy
    assert (peak.points_xy.tolist(), peak.point_labels.tolist()) == ([[50.5, 56.5]], [1])
    assert again.box_xyxy == (39.5, 47.6, 60.5, 64.4)
    assert not len(again.points_xy)
    assert sam.encoded == [VIEW]
    assert [answer.prompt for answer in answers] == [again]
    assert choose(answers, shown(), ChooseConfig())[0].mask.box_xyxy == HOLE


def test_of_a_line_the_finest_mask_counts_and_of_anything_else_all_of_them() -> None:
    for thin, expected in ((True, LINE), (False, HOLE)):
        found = shown()
        found = replace(found, regions=(replace(found.regions[0], thin=thin),))
        (outline,) = choose(ask(Four(), IMAGE, [VIEW], found, ChooseConfig()), found, ChooseConfig())
        assert outline.mask.box_xyxy == expected


@pytest.mark.parametrize(
    ("sam", "blur_px", "masks"), [(Doubting, 40.0, 1), (Doubting, 20.0, 4), (Four, 40.0, 4), (Four, 20.0, 4)]
)
def test_of_a_spot_that_sam_doubts_the_finest_mask_counts(sam: type[Four], blur_px: float, masks: int) -> None:
    """The map shows it 46 pixels wide: hardly wider than a point of 40, and twice as wide as one of 20."""
    found = shown()
    found = replace(found, regions=(replace(found.regions[0], blur_px=blur_px),))
    asked = sam()
    (answer,) = ask(asked, IMAGE, [VIEW], found, ChooseConfig())
    assert len(answer.predicted_iou) == masks
    again = filled_box(LINE if masks == 1 else HOLE).box_xyxy
    assert asked.asked[-1].box_xyxy == pytest.approx(again, abs=2), "the second box is that of what counted"


def test_a_segmenter_that_draws_one_mask_draws_lines_too() -> None:
    found = replace(shown(), regions=(replace(shown().regions[0], thin=True),))
    assert len(ask(Often(), IMAGE, [VIEW], found, ChooseConfig())[0].predicted_iou) == 1


def test_an_outline_that_leans_to_one_side_is_put_straight_by_the_mirror_images() -> None:
    image = IMAGE.copy()
    image[HOLE[1] : HOLE[3], HOLE[0] : HOLE[2]] = 255
    leaning, straight = Leaning(), Leaning()
    (leans,) = ask(leaning, image, [VIEW], shown(), ChooseConfig())
    (stands,) = ask(straight, image, [VIEW], shown(), ChooseConfig(mirrored=True))
    for answer, bottom in ((leans, HOLE[3] + 4), (stands, HOLE[3])):
        mask = from_full(answer.low_res_logits[0] > 0)
        assert mask is not None
        assert mask.box_xyxy == (*HOLE[:3], bottom)
    assert [view.crop_xyxy for view in straight.encoded] == [VIEW.crop_xyxy] * 4
    assert len(straight.asked) == 4 * len(leaning.asked)


def test_a_given_box_is_asked_about_in_the_mirror_images_too() -> None:
    sam = Often()
    given = Localization(HW, 1.0, (Region(GUESS, (53.0, 58.0), 1.0),))
    ask(sam, IMAGE, [VIEW], given, ChooseConfig(mirrored=True))
    assert [prompt.box_xyxy for prompt in sam.asked] == [
        (30, 40, 76, 76),
        (30, 52, 76, 88),
        (52, 40, 98, 76),
        (52, 52, 98, 88),
    ]


def test_a_given_box_is_no_guess() -> None:
    sam = Often()
    given = Localization(HW, 1.0, (Region(GUESS, (53.0, 58.0), 1.0),))
    ask(sam, IMAGE, [VIEW], given, ChooseConfig())
    assert sam.asked == [VIEW.prompts[0]]


def test_a_segmenter_that_cannot_be_asked_again_is_asked_once() -> None:
    sam = Once()
    assert len(ask(sam, IMAGE, [VIEW], shown(), ChooseConfig())) == 1
    assert sam.asked == [VIEW.prompts[0]]


def test_nothing_is_asked_about_a_good_part() -> None:
    for sam in (Once(), Often()):
        assert ask(sam, IMAGE, [], shown(), ChooseConfig()) == []
        assert not sam.encoded
        assert not sam.asked
