"""What is drawn in a mirror image lies, turned back, where it would have been drawn in the image."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sam_inspect.mirror import AS_IT_IS, MIRRORS, Mirror, mean_of
from sam_inspect.records import Candidates, Prompt, View
from sam_inspect.segment.views import to_input

sides = st.integers(16, 400)
shares = st.floats(0, 1)


@st.composite
def questions(draw: st.DrawFn) -> tuple[tuple[int, int], View, Prompt]:
    """The size of an image, a view of it, and a box in it with a point in the box."""
    hw = draw(sides), draw(sides)
    (top, bottom), (left, right) = (span(draw, side) for side in hw)
    x0, y0 = left + 0.8 * (right - left) * draw(shares), top + 0.8 * (bottom - top) * draw(shares)
    x1, y1 = x0 + (right - x0) * (0.1 + 0.9 * draw(shares)), y0 + (bottom - y0) * (0.1 + 0.9 * draw(shares))
    middle = np.array([[(x0 + x1) / 2, (y0 + y1) / 2]], np.float32)
    view = View((left, top, right, bottom), 256, ())
    return hw, view, Prompt(box_xyxy=(x0, y0, x1, y1), points_xy=middle, point_labels=np.ones(1, np.int64))


def span(draw: st.DrawFn, side: int) -> tuple[int, int]:
    """At least 16 pixels of a side."""
    first = draw(st.integers(0, side - 16))
    return first, draw(st.integers(first + 16, side))


def drawn(view: View, prompt: Prompt) -> Candidates:
    """The prompt's box, filled: 8 inside, -8 outside, the logits of a cell by its middle."""
    x0, y0, x1, y1 = to_input(np.array(prompt.box_xyxy, np.float32).reshape(2, 2), view).ravel() / 4
    rows, columns = np.mgrid[0:64, 0:64] + 0.5
    inside = (columns > x0) & (columns < x1) & (rows > y0) & (rows < y1)
    return Candidates(view, prompt, np.where(inside, 8, -8)[None].astype(np.float32), np.ones(1, np.float32))


def edges(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What is within one cell of where it changes, or at a border of what is drawn."""
    padded = np.pad(mask, 1)
    near = np.stack([padded[1 + dy : 65 + dy, 1 + dx : 65 + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
    return np.asarray(near.any(0) & ~near.all(0))


@given(questions(), st.sampled_from(MIRRORS))
def test_twice_mirrored_is_as_before(question: tuple[tuple[int, int], View, Prompt], mirror: Mirror) -> None:
    hw, view, prompt = question
    assert mirror.view(mirror.view(view, hw), hw).crop_xyxy == view.crop_xyxy
    again = mirror.prompt(mirror.prompt(prompt, hw), hw)
    np.testing.assert_allclose(np.array(again.box_xyxy), np.array(prompt.box_xyxy), atol=1e-3)
    np.testing.assert_allclose(again.points_xy, prompt.points_xy, atol=1e-3)


@given(questions(), st.sampled_from(MIRRORS))
def test_what_is_shown_there_are_the_same_pixels(
    question: tuple[tuple[int, int], View, Prompt], mirror: Mirror
) -> None:
    hw, view, _ = question
    image = np.random.default_rng(0).integers(0, 256, (*hw, 3), np.uint8)
    (x0, y0, x1, y1), (left, top, right, bottom) = view.crop_xyxy, mirror.view(view, hw).crop_xyxy
    there = mirror.image(image)[top:bottom, left:right]
    assert np.array_equal(mirror.image(there), image[y0:y1, x0:x1])


@given(questions())
def test_all_draw_a_box_at_one_place(question: tuple[tuple[int, int], View, Prompt]) -> None:
    hw, view, prompt = question
    answers = [drawn(mirror.view(view, hw), mirror.prompt(prompt, hw)) for mirror in MIRRORS]
    together = mean_of(answers)
    differs = together.low_res_logits[0] != answers[0].low_res_logits[0]
    assert not (differs & ~edges(together.low_res_logits[0] > -8)).any()
    assert (together.view, together.prompt) == (view, prompt)
    for mirror, answer in zip(MIRRORS, answers, strict=True):
        (x, y), (height, width) = prompt.points_xy[0], np.float32(hw)
        expected = (x if mirror.across > 0 else width - x, y if mirror.down > 0 else height - y)
        assert tuple(answer.prompt.points_xy[0]) == expected


@given(st.integers(100, 400), st.integers(100, 400))
def test_a_disc_stays_where_it_is_in_views_that_end_within_a_cell(height: int, width: int) -> None:
    view = View((0, 0, width, height), 256, ())
    box = (0.3 * width, 0.2 * height, 0.6 * width, 0.5 * height)

    def disc(view: View, prompt: Prompt) -> Candidates:
        (x0, y0), (x1, y1) = to_input(np.array(prompt.box_xyxy, np.float32).reshape(2, 2), view) / 4
        y, x = np.mgrid[0:64, 0:64] + 0.5
        inside = 8 - np.hypot(x - (x0 + x1) / 2, y - (y0 + y1) / 2)
        return Candidates(view, prompt, inside[None].astype(np.float32), np.ones(1, np.float32))

    prompt, hw = Prompt(box_xyxy=box), (height, width)
    answers = [disc(mirror.view(view, hw), mirror.prompt(prompt, hw)) for mirror in MIRRORS]
    near = answers[0].low_res_logits > 0
    np.testing.assert_allclose(mean_of(answers).low_res_logits[near], answers[0].low_res_logits[near], atol=0.3)


def test_an_answer_alone_stays_as_it_is() -> None:
    view, prompt = View((0, 0, 64, 64), 256, ()), Prompt(box_xyxy=(8.0, 8.0, 40.0, 30.0))
    answer = drawn(view, prompt)
    assert mean_of([answer]) is answer
    assert AS_IT_IS.view(view, (64, 64)) is view
    assert AS_IT_IS.prompt(prompt, (64, 64)) is prompt
