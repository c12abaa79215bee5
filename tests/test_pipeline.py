"""The way of an image through the stages, with a localizer and a segmenter that say what they were asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam_inspect import pipeline
from sam_inspect.batch import inspect_folder
from sam_inspect.config import PromptConfig, RecipeConfig
from sam_inspect.errors import ImageError, UsageError
from sam_inspect.pipeline import LEAST_AHEAD, MOST_AHEAD, Inspector
from sam_inspect.progress import silent
from sam_inspect.records import Candidates, Localization, View

HW = (96, 128)
THRESHOLD = 3.0


class Brightness:
    """A localizer whose map is how bright the image is, on cells of 8 pixels."""

    def localize(self, image: np.ndarray) -> Localization:
        height, width = image.shape[:2]
        grey = image.mean(2).astype(np.float32) / 25.5
        found = cv2.resize(grey, (max(1, width // 8), max(1, height // 8)), interpolation=cv2.INTER_AREA)
        return Localization((height, width), float(found.max()), anomaly_map=found)


class BoxFiller:
    """A segmenter that fills its boxes; it counts what it was shown."""

    def __init__(self) -> None:
        self.views: list[View] = []

    @classmethod
    def from_config(cls, args: Mapping[str, Any], *, device: str) -> Self:
        return cls()

    def segment(self, image: np.ndarray, views: Sequence[View]) -> list[Candidates]:
        self.views += views
        return [self._fill(view, prompt) for view in views for prompt in view.prompts]

    def _fill(self, view: View, prompt: Any) -> Candidates:
        side = view.input_px // 4
        scale = view.input_hw[0] / view.crop_hw[0] / 4
        left, top = view.crop_xyxy[:2]
        x0, y0, x1, y1 = prompt.box_xyxy
        logits = np.full((1, side, side), -9.0, np.float32)
        logits[
            0,
            round((y0 - top) * scale) : round((y1 - top) * scale),
            round((x0 - left) * scale) : round((x1 - left) * scale),
        ] = 9.0
        return Candidates(view, prompt, logits, np.ones(1, np.float32))


@pytest.fixture
def sam() -> BoxFiller:
    return BoxFiller()


@pytest.fixture
def inspector(sam: BoxFiller) -> Inspector:
    sharp = RecipeConfig(prompt=PromptConfig(blur_cells=0))  # as that localizer's map is
    return Inspector(sharp, sam, localizer=Brightness(), threshold=THRESHOLD)


def part(*spots: tuple[int, int]) -> np.ndarray:
    """A dark part with bright squares of 16 pixels."""
    image = np.full((*HW, 3), 20, np.uint8)
    for x, y in spots:
        image[y : y + 16, x : x + 16] = 200
    return image


def test_a_good_part_costs_no_sam(inspector: Inspector, sam: BoxFiller) -> None:
    found = inspector.inspect(part())
    assert (found.verdict, found.defects) == ("pass", ())
    assert sam.views == []


def test_a_defect_is_outlined_where_it_is(inspector: Inspector, sam: BoxFiller) -> None:
    found = inspector.inspect(part((32, 40)))
    assert found.verdict == "fail"
    (defect,) = found.defects
    assert defect.source == "sam"
    x0, y0, x1, y1 = defect.mask.box_xyxy
    assert max(abs(x0 - 32), abs(y0 - 40), abs(x1 - 48), abs(y1 - 56)) <= 8
    assert len(sam.views) == 1


def test_an_image_is_encoded_once_for_all_the_regions_that_one_view_shows(inspector: Inspector, sam: BoxFiller) -> None:
    assert len(inspector.inspect(part((8, 8), (72, 8), (40, 64))).defects) == 3
    assert [len(view.prompts) for view in sam.views] == [3]


def test_a_path_its_bytes_and_its_pixels_are_one_image(inspector: Inspector, tmp_path: Path) -> None:
    file = tmp_path / "part.png"
    cv2.imwrite(str(file), part((32, 40)))
    answers = [inspector.inspect(source) for source in (file, str(file), file.read_bytes(), part((32, 40)))]
    assert len({(answer.score, answer.defects[0].mask.box_xyxy) for answer in answers}) == 1
    assert [answer.image for answer in answers] == [str(file), str(file), "image", "image"]


def test_every_stage_says_how_long_it_took(inspector: Inspector) -> None:
    timings = inspector.inspect(part((32, 40))).timings_ms
    assert list(timings) == ["read", "localize", "prompt", "segment", "choose", "judge"]
    assert min(timings.values()) >= 0


@given(st.lists(st.tuples(st.integers(0, 112), st.integers(0, 80)), max_size=4), st.floats(0.1, 9.0))
def test_mask_and_verdict_agree(spots: list[tuple[int, int]], threshold: float) -> None:
    inspector = Inspector(RecipeConfig(), BoxFiller(), localizer=Brightness(), threshold=threshold)
    found = inspector.inspect(part(*spots))
    assert (found.verdict == "fail") == bool(found.defects) == (found.score > threshold)


def test_a_broken_picture_is_an_error_and_the_others_are_inspected(inspector: Inspector, tmp_path: Path) -> None:
    for name in ("a", "c"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), part((32, 40)))
    (tmp_path / "b.png").write_text("no picture")
    found = list(inspector.inspect_many(sorted(tmp_path.iterdir())))
    assert [one.verdict for one in found] == ["fail", "error", "fail"]
    assert found[1].error is not None
    assert str(tmp_path / "b.png") in found[1].error
    with pytest.raises(ImageError, match=r"b\.png"):
        inspector.inspect(tmp_path / "b.png")


class Together(Brightness):
    """The same for up to three images at once; it counts how many came."""

    def __init__(self) -> None:
        self.came: list[int] = []

    def at_once(self, original_hw: tuple[int, int]) -> int:
        return 3 if original_hw == HW else 1

    def localize(self, image: np.ndarray) -> Localization:
        self.came.append(1)
        return super().localize(image)

    def localize_many(self, images: Sequence[np.ndarray]) -> list[Localization]:
        self.came.append(len(images))
        return [super(Together, self).localize(image) for image in images]


def test_images_of_one_size_are_localized_together_and_answered_in_order(tmp_path: Path) -> None:
    pixels = [part((x, 40)) for x in (10, 20, 30, 40, 50)] + [
        np.tile(part((32, 40)), (1, 2, 1)),
        part((60, 40)),
        part((70, 40)),
    ]
    for number, image in enumerate(pixels):
        cv2.imwrite(str(tmp_path / f"{number}.png"), image)
    (tmp_path / "4b.png").write_text("no picture")
    localizer = Together()
    inspector = Inspector(RecipeConfig(), BoxFiller(), localizer=localizer, threshold=THRESHOLD)
    files = sorted(tmp_path.iterdir())
    found = list(inspector.inspect_many(files))
    assert localizer.came == [3, 2, 1, 2]
    assert [one.image for one in found] == [str(file) for file in files]
    assert [one.verdict for one in found] == ["fail"] * 5 + ["error"] + ["fail"] * 3
    for one, file in zip(found, files, strict=True):
        if one.verdict == "fail":
            alone = inspector.inspect(file)
            assert (alone.score, alone.defects[0].mask.box_xyxy) == (one.score, one.defects[0].mask.box_xyxy)


@pytest.mark.parametrize(("held", "most"), [(pipeline.BYTES_AHEAD, MOST_AHEAD), (1, LEAST_AHEAD)])
def test_no_more_than_a_few_files_are_read_ahead(
    inspector: Inspector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int, most: int
) -> None:
    """A batch's worth of small ones; of those that are large beside what may be held, four."""
    monkeypatch.setattr(pipeline, "BYTES_AHEAD", held)
    file = tmp_path / "part.png"
    cv2.imwrite(str(file), part())
    asked = 0

    def shift() -> Iterator[Path]:
        nonlocal asked
        for _ in range(100):
            asked += 1
            yield file

    inspections = inspector.inspect_many(shift())
    for done in range(1, 4):
        next(inspections)
        assert asked <= done + most
    inspections.close()
    assert asked <= 3 + most


def test_a_folder_of_results_is_not_inspected(inspector: Inspector, tmp_path: Path) -> None:
    file = tmp_path / "part.png"
    cv2.imwrite(str(file), part())
    with pytest.raises(UsageError, match="every image lies in the folder for results; give another --out"):
        inspect_folder(inspector, [file], tmp_path, progress=silent)


def test_pixels_of_another_kind_are_refused(inspector: Inspector) -> None:
    with pytest.raises(ImageError):
        inspector.inspect(np.zeros((4, 4, 7), np.uint8))
