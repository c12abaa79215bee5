"""Masks on their way between a crop, its image, and COCO's formats: each against plain arithmetic on full frames."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from pycocotools import mask as coco
from scipy import ndimage
from segment_anything.modeling import Sam

from sam_inspect import masks
from sam_inspect.records import Box, CropMask, View

HW = (17, 23)
Mask = NDArray[np.bool_]


@st.composite
def boxes(draw: st.DrawFn, hw: tuple[int, int] = HW) -> Box:
    """Any box inside the image, its borders among them."""
    x0, y0 = draw(st.integers(0, hw[1] - 1)), draw(st.integers(0, hw[0] - 1))
    return x0, y0, draw(st.integers(x0 + 1, hw[1])), draw(st.integers(y0 + 1, hw[0]))


@st.composite
def crops(draw: st.DrawFn) -> CropMask:
    """Any mask in any box."""
    x0, y0, x1, y1 = draw(boxes())
    return CropMask((x0, y0, x1, y1), draw(arrays(bool, (y1 - y0, x1 - x0))))


def frames() -> st.SearchStrategy[Mask]:
    return arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12))


def full(mask: CropMask) -> Mask:
    """The mask on its whole image, pixel by pixel."""
    frame = np.zeros(HW, bool)
    for y, x in zip(*np.nonzero(mask.pixels), strict=True):
        frame[mask.box_xyxy[1] + y, mask.box_xyxy[0] + x] = True
    return frame


@given(crops())
def test_rle_is_what_pycocotools_makes_of_the_full_frame(mask: CropMask) -> None:
    expected = coco.encode(np.asfortranarray(full(mask).view(np.uint8)))
    assert masks.to_rle(mask, HW) == {"size": list(HW), "counts": expected["counts"].decode()}


@given(crops())
def test_a_mask_survives_rle(mask: CropMask) -> None:
    back = masks.from_rle(masks.to_rle(mask, HW))
    if not mask.area_px:
        assert back is None
        return
    assert back is not None
    assert np.array_equal(full(back), full(mask))
    assert back.area_px == mask.area_px


@given(frames())
def test_uncompressed_rle_of_other_tools_is_read(frame: Mask) -> None:
    flat = frame.ravel(order="F")
    runs = [0]
    value = False
    for pixel in flat.tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    back = masks.from_rle({"size": list(frame.shape), "counts": runs})
    assert (back is None) == (not frame.any())
    if back is not None:
        assert np.array_equal(masks.union([back], (frame.shape[0], frame.shape[1])), frame)


def test_a_small_defect_of_a_hundred_megapixels_is_not_expanded_to_a_full_frame() -> None:
    mask = CropMask((11_990, 8_000, 12_000, 8_020), np.ones((20, 10), bool))
    rle = masks.to_rle(mask, (9_000, 12_000))
    assert coco.area({"size": rle["size"], "counts": rle["counts"].encode()}) == 200
    assert coco.toBbox({"size": rle["size"], "counts": rle["counts"].encode()}).tolist() == [11_990, 8_000, 10, 20]


@given(frames())
def test_the_tight_mask_of_a_frame_holds_its_pixels_and_no_empty_border(frame: Mask) -> None:
    mask = masks.from_full(frame)
    assert (mask is None) == (not frame.any())
    if mask is None:
        return
    x0, y0, x1, y1 = mask.box_xyxy
    rows, columns = np.nonzero(frame.any(1))[0], np.nonzero(frame.any(0))[0]
    assert (x0, y0, x1, y1) == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert np.array_equal(mask.pixels, frame[y0:y1, x0:x1])


@given(crops())
def test_tightening_changes_the_box_and_not_the_pixels(mask: CropMask) -> None:
    tight = masks.tight(mask)
    assert (tight is None) == (mask.area_px == 0)
    if tight is not None:
        assert np.array_equal(full(tight), full(mask))
        assert all(tight.pixels.any(axis)[[0, -1]].all() for axis in (0, 1))
        assert all(type(side) is int for side in tight.box_xyxy)


@given(st.lists(crops(), max_size=4))
def test_union_is_every_pixel_that_any_mask_has(several: list[CropMask]) -> None:
    expected = np.zeros(HW, bool)
    for mask in several:
        expected |= full(mask)
    assert np.array_equal(masks.union(several, HW), expected)


@given(crops(), crops())
def test_intersection_counts_the_pixels_that_both_have(a: CropMask, b: CropMask) -> None:
    assert masks.intersection_px(a, b) == np.count_nonzero(full(a) & full(b)) == masks.intersection_px(b, a)


@given(crops(), boxes())
def test_a_window_shows_what_lies_in_the_box(mask: CropMask, box: Box) -> None:
    x0, y0, x1, y1 = box
    assert np.array_equal(masks.window(mask, box), full(mask)[y0:y1, x0:x1])


def test_a_filled_box_has_every_pixel() -> None:
    assert masks.filled_box((2, 3, 7, 5)).area_px == 10


@given(frames(), st.sampled_from([4, 8]))
def test_components_are_those_of_scipy(frame: Mask, connectivity: int) -> None:
    structure = ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2)
    labels, count = ndimage.label(frame, structure)
    found = masks.components(frame, connectivity)
    assert len(found) == count
    for mask in found:
        whole = masks.union([mask], (frame.shape[0], frame.shape[1]))
        label = set(labels[whole].tolist())
        assert len(label) == 1
        assert np.array_equal(whole, labels == label.pop())
        assert all(mask.pixels.any(axis)[[0, -1]].all() for axis in (0, 1))


coordinates = st.floats(-40, 40)


@given(st.tuples(coordinates, coordinates, coordinates, coordinates))
def test_a_clipped_box_holds_every_pixel_that_the_box_touches(box: tuple[float, float, float, float]) -> None:
    x, y = np.meshgrid(np.arange(HW[1]), np.arange(HW[0]))
    touched = (x + 1 > box[0]) & (x < box[2]) & (y + 1 > box[1]) & (y < box[3])
    clipped = masks.clip_box(box, HW)
    if box[0] >= box[2] or box[1] >= box[3]:
        return
    if clipped is None:
        assert not touched.any()
    else:
        assert np.array_equal(masks.union([masks.filled_box(clipped)], HW), touched)


def test_a_box_beside_the_image_or_turned_around_is_none() -> None:
    assert masks.clip_box((30, 2, 40, 9), HW) is None
    assert masks.clip_box((9, 2, 3, 9), HW) is None


@pytest.mark.parametrize("degrees", range(0, 180, 15))
def test_the_length_of_a_scratch_is_its_length_at_any_angle(degrees: int) -> None:
    frame = np.zeros((400, 400), np.uint8)
    reach = 120 * np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
    start, end = (np.rint(200 + sign * reach).astype(int).tolist() for sign in (-1, 1))
    cv2.line(frame, start, end, 1, 1)
    mask = masks.from_full(frame.astype(bool))
    assert mask is not None
    assert masks.length_px(mask) == pytest.approx(np.hypot(*np.subtract(end, start)) + 1, abs=1)


def test_the_length_of_an_upright_bar_counts_its_pixels_whole() -> None:
    assert masks.length_px(CropMask((5, 5, 8, 45), np.ones((40, 3), bool))) == pytest.approx(40)
    assert masks.length_px(CropMask((5, 5, 6, 6), np.ones((1, 1), bool))) == pytest.approx(1)
    assert masks.length_px(CropMask((5, 5, 6, 6), np.zeros((1, 1), bool))) == 0


@given(crops())
def test_outlines_filled_again_are_the_mask_without_its_holes(mask: CropMask) -> None:
    filled = np.zeros(HW, np.uint8)
    for outline in masks.polygons(mask):
        assert outline.dtype == np.int32
        assert outline.shape[1] == 2
        cv2.fillPoly(filled, [outline], 1)
    # What touches at corners is one thing and has one outline; background then only reaches in across edges.
    assert np.array_equal(filled.astype(bool), ndimage.binary_fill_holes(full(mask)))


@given(st.integers(2, 6), st.integers(2, 6), st.sampled_from([3, 5, 7]), st.integers(0, 2**32 - 1))
def test_a_resized_map_has_each_cells_value_at_the_cells_centre(rows: int, columns: int, times: int, seed: int) -> None:
    anomaly_map = np.random.default_rng(seed).random((rows, columns), np.float32)
    resized = masks.resize_map(anomaly_map, (rows * times, columns * times))
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized[times // 2 :: times, times // 2 :: times], anomaly_map, atol=1e-6)


@given(st.integers(3, 9), st.integers(3, 9), st.integers(20, 60), st.integers(20, 60))
def test_a_slope_stays_where_it_is_for_any_size(rows: int, columns: int, height: int, width: int) -> None:
    y, x = (np.arange(rows) + 0.5) * height / rows, (np.arange(columns) + 0.5) * width / columns
    slope = np.add.outer(y, 2 * x).astype(np.float32)
    resized = masks.resize_map(slope, (height, width))
    expected = np.add.outer(np.arange(height) + 0.5, 2 * (np.arange(width) + 0.5))
    inside = np.s_[int(y[0]) + 1 : int(y[-1]) - 1, int(x[0]) + 1 : int(x[-1]) - 1]
    np.testing.assert_allclose(resized[inside], expected[inside], atol=0.1)


sides = st.integers(1, 70)


@given(st.data(), st.integers(1, 12), st.integers(1, 12), sides, sides, st.integers(0, 2**32 - 1))
def test_a_window_of_a_map_is_cut_from_the_whole(
    data: st.DataObject, rows: int, columns: int, height: int, width: int, seed: int
) -> None:
    anomaly_map = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    x0, y0, x1, y1 = box = data.draw(boxes((height, width)))
    window = masks.resize_window(anomaly_map, box, (height, width))
    assert window.dtype == np.float32
    whole = masks.resize_map(anomaly_map, (height, width))
    np.testing.assert_allclose(window, whole[y0:y1, x0:x1], atol=2e-5)


@given(st.data(), st.integers(1, 90), st.integers(1, 90), st.sampled_from([64, 128]), st.integers(0, 2**32 - 1))
def test_logits_come_back_to_the_image_as_in_segment_anything(
    data: st.DataObject, height: int, width: int, input_px: int, seed: int
) -> None:
    x0, y0 = data.draw(st.integers(0, 500)), data.draw(st.integers(0, 500))
    view = View((x0, y0, x0 + width, y0 + height), input_px, ())
    logits = np.random.default_rng(seed).normal(size=(3, input_px // 4, input_px // 4)).astype(np.float32)
    sam = SimpleNamespace(image_encoder=SimpleNamespace(img_size=input_px))
    theirs = Sam.postprocess_masks(sam, torch.from_numpy(logits)[None], view.input_hw, view.crop_hw)[0].numpy()
    for index in range(3):
        np.testing.assert_allclose(masks.on_crop(view, logits[index]), theirs[index], atol=1e-4)


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.3))
def test_specks_go_and_pinholes_close_as_by_scipy(seed: int, share: float) -> None:
    blurred = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(40, 50)), (0, 0), 1.5)
    mask = CropMask((5, 7, 55, 47), blurred > 0)
    least = share * mask.area_px
    labels, count = ndimage.label(mask.pixels, np.ones((3, 3)))
    kept = np.isin(labels, [i for i in range(1, count + 1) if (labels == i).sum() >= least])
    holes, count = ndimage.label(np.pad(~kept, 1, constant_values=True))
    small = [i for i in range(1, count + 1) if i != holes[0, 0] and (holes == i).sum() < least]
    expected = kept | np.isin(holes, small)[1:-1, 1:-1]
    found = masks.without_specks(mask, share)
    assert found.box_xyxy == mask.box_xyxy
    np.testing.assert_array_equal(found.pixels, expected)
