"""What is drawn in a mirror image lies, turned back, where it would have been drawn in the image."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sam_inspect.mirror import mean_of_both, mirrored_prompt, mirrored_view
from sam_inspect.records import Candidates, Prompt, View
from sam_inspect.segment.views import to_input

sides = st.integers(16, 400)
shares = st.floats(0, 1)


@st.composite
def questions(draw: st.DrawFn) -> tuple[int, View, Prompt]:
    """The height of an image, a view of it, and a box in it with a point in the box."""
    height, crop_w, crop_h = draw(sides), draw(sides), draw(sides)
    crop_h = min(crop_h, height)
    top = draw(st.integers(0, height - crop_h))
    x0, y0 = 0.8 * crop_w * draw(shares), top + 0.8 * crop_h * draw(shares)
    x1, y1 = x0 + (crop_w - x0) * (0.1 + 0.9 * draw(shares)), y0 + (top + crop_h - y0) * (0.1 + 0.9 * draw(shares))
    middle = np.array([[(x0 + x1) / 2, (y0 + y1) / 2]], np.float32)
    view = View((0, top, crop_w, top + crop_h), 256, ())
    return height, view, Prompt(box_xyxy=(x0, y0, x1, y1), points_xy=middle, point_labels=np.ones(1, np.int64))


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


@given(questions())
def test_twice_mirrored_is_as_before(question: tuple[int, View, Prompt]) -> None:
    height, view, prompt = question
    assert mirrored_view(mirrored_view(view, height), height).crop_xyxy == view.crop_xyxy
    again = mirrored_prompt(mirrored_prompt(prompt, height), height)
    np.testing.assert_allclose(np.array(again.box_xyxy), np.array(prompt.box_xyxy), atol=1e-3)
    np.testing.assert_allclose(again.points_xy, prompt.points_xy, atol=1e-3)


@given(questions())
def test_both_draw_a_box_at_one_place(question: tuple[int, View, Prompt]) -> None:
    height, view, prompt = question
    direct = drawn(view, prompt)
    both = mean_of_both(direct, drawn(mirrored_view(view, height), mirrored_prompt(prompt, height)))
    differs = both.low_res_logits[0] != direct.low_res_logits[0]
    assert not (differs & ~edges(both.low_res_logits[0] > -8)).any()
    assert (both.view, both.prompt) == (view, prompt)
    assert mirrored_prompt(prompt, height).points_xy[0, 1] == np.float32(height) - prompt.points_xy[0, 1]
