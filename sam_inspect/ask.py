"""SAM is asked twice about what a map shows: first for what is there, then for what has the box of that.

The map says where a defect is, but shows it blurred, so that the box it gives is a guess. What SAM outlines in it has a
better one, and in its own box SAM draws better. A given box is no guess: there it is asked once. Of a line the map does
not tell the width, nor of a spot the size: there, of a spot if SAM is in doubt, its mask of the smallest part counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sam_inspect.choose import is_doubted, outline
from sam_inspect.config import ChooseConfig
from sam_inspect.mirror import AS_IT_IS, MIRRORS, Mirror, mean_of
from sam_inspect.records import Box, Candidates, Localization, Prompt, View
from sam_inspect.segment import Encoded, Interactive, Segmenter

GROWN = 1.05
POINT = 1.42  # widths of a point on the map: hardly wider than one
FINEST = 1  # SAM answers with its single mask, then with the three of part, larger part and whole.
ON_DEFECT = np.ones(1, np.int64)


def ask(
    segmenter: Segmenter,
    image: NDArray[np.uint8],
    views: Sequence[View],
    localization: Localization,
    config: ChooseConfig,
) -> list[Candidates]:
    """One `Candidates` for each prompt of the views, in order.

    A segmenter whose views cannot be asked again, as a plugin's may be, is asked once.

    Args:
        segmenter: encodes each view once; its mirror images too, where the config says so.
        image: (H, W, 3) uint8 RGB.
        views: each with a box prompt for every region that it shows, as `prompt.plan_views` gives them.
        localization: the regions, and the map that they were found in (None where boxes were given).
        config: how what is outlined first is chosen.
    """
    if not isinstance(segmenter, Interactive):
        return segmenter.segment(image, views) if views else []
    encoded = [
        segmenter.encode(mirror.image(image), [mirror.view(view, localization.original_hw) for view in views])
        for mirror in seen_in(config)
    ]
    seen = zip(*encoded, strict=True)
    return [answer for sides in seen for answer in ask_view(segmenter, sides, localization, config)]


def seen_in(config: ChooseConfig) -> tuple[Mirror, ...]:
    """In which mirror images each view is seen, as it is first."""
    return MIRRORS if config.mirrored else (AS_IT_IS,)


def ask_view(
    segmenter: Interactive, sides: Sequence[Encoded], localization: Localization, config: ChooseConfig
) -> list[Candidates]:
    """The same for one view that is encoded already, in the mirror images that `seen_in` names and in their order.

    A given box is asked about once.
    """
    boxes = sides[0].view.prompts
    if localization.anomaly_map is None:
        return _answers(segmenter, sides, boxes, localization)
    pointed = [_with_peak(prompt, localization) for prompt in boxes]
    answers = _answers(segmenter, sides, [*boxes, *pointed], localization)
    pairs = list(zip(answers[: len(boxes)], answers[len(boxes) :], strict=True))
    first = [_together(*pair) for pair in pairs]
    fine = [_has_no_size(answer, localization, config) for answer in first]
    first = [
        _together(*map(_finest, pair)) if has else both for pair, both, has in zip(pairs, first, fine, strict=True)
    ]
    second = _answers(segmenter, sides, [_again(answer, localization, config) for answer in first], localization)
    return [_finest(answer) if has else answer for answer, has in zip(second, fine, strict=True)]


def _has_no_size(answer: Candidates, localization: Localization, config: ChooseConfig) -> bool:
    """Whether neither the map, which shows a point, nor SAM, whose masks outvote each other, tells how large it is."""
    region = localization.asked(answer.prompt)
    if region.mask is None or region.thin:
        return False
    x0, y0, x1, y1 = region.mask.box_xyxy
    return max(x1 - x0, y1 - y0) < POINT * region.blur_px and is_doubted(answer, localization, config)


def _answers(
    segmenter: Interactive, sides: Sequence[Encoded], prompts: Sequence[Prompt], localization: Localization
) -> list[Candidates]:
    """To each prompt, the mean of what the view and its mirror images answer."""
    hw = localization.original_hw
    answers = [
        segmenter.decode(side, [mirror.prompt(prompt, hw) for prompt in prompts])
        for mirror, side in zip(MIRRORS, sides, strict=False)
    ]
    together = [mean_of(each) for each in zip(*answers, strict=True)]
    return [_finest(answer) if localization.asked(answer.prompt).thin else answer for answer in together]


def _finest(answer: Candidates) -> Candidates:
    """Of SAM's masks that of the smallest part: the map, as wide about a line as about a point, cannot tell."""
    finest = slice(FINEST, FINEST + 1) if len(answer.predicted_iou) > FINEST else slice(None)
    logits, predicted_iou = answer.low_res_logits[finest], answer.predicted_iou[finest]
    return replace(answer, low_res_logits=logits, predicted_iou=predicted_iou)


def _with_peak(prompt: Prompt, localization: Localization) -> Prompt:
    """The prompt with the peak of its region as a point."""
    peak = np.array([localization.asked(prompt).peak_xy], np.float32)
    return replace(prompt, points_xy=peak, point_labels=ON_DEFECT)


def _together(one: Candidates, other: Candidates) -> Candidates:
    """The masks of both, as the answer to the first."""
    logits = np.concatenate([one.low_res_logits, other.low_res_logits])
    return replace(one, low_res_logits=logits, predicted_iou=np.concatenate([one.predicted_iou, other.predicted_iou]))


def _again(answer: Candidates, localization: Localization, config: ChooseConfig) -> Prompt:
    """The prompt with the box of what its answer outlines."""
    found = outline(answer, localization, config)
    return answer.prompt if found is None else replace(answer.prompt, box_xyxy=_grown(found.mask.box_xyxy, answer.view))


def _grown(box: Box, view: View) -> tuple[float, float, float, float]:
    """A little larger, since an outline ends where it is only half sure; inside the view."""
    (x0, y0, x1, y1), (left, top, right, bottom) = box, view.crop_xyxy
    dx, dy = (GROWN - 1) / 2 * (x1 - x0), (GROWN - 1) / 2 * (y1 - y0)
    return max(x0 - dx, left), max(y0 - dy, top), min(x1 + dx, right), min(y1 + dy, bottom)
