"""The way of an image through the stages, with a localizer and a segmenter that say what they were asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
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
from sam_inspect.errors import BoxesError, ImageError, UsageError
from sam_inspect.images import find_images
from sam_inspect.localize.boxes import read_boxes
from sam_inspect.pipeline import LEAST_AHEAD, MOST_AHEAD, Inspector
from sam_inspect.progress import silent
from sam_inspect.recipe import Recipe
from sam_inspect.records import Candidates, Inspection, Localization, View

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


def test_a_batch_that_is_refused_is_taken_one_by_one(tmp_path: Path) -> None:
    class Picky(Together):
        def localize(self, image: np.ndarray) -> Localization:
            return self.localize_many([image])[0]

        def localize_many(self, images: Sequence[np.ndarray]) -> list[Localization]:
            if any(image.max() > 210 for image in images):
                raise ImageError("too bright", "mend the lamp")
            return [Brightness().localize(image) for image in images]

    bright = np.full((*HW, 3), 250, np.uint8)
    for number, image in enumerate([part(), bright, part((32, 40)), bright, bright]):
        cv2.imwrite(str(tmp_path / f"{number}.png"), image)
    inspector = Inspector(RecipeConfig(), BoxFiller(), localizer=Picky(), threshold=THRESHOLD)
    found = list(inspector.inspect_many(sorted(tmp_path.iterdir())))
    assert [Path(one.image).stem for one in found] == ["0", "1", "2", "3", "4"]
    assert [one.verdict for one in found] == ["pass", "error", "fail", "error", "error"]
    assert "mend the lamp" in str(found[1].error)


def of_boxes(tmp_path: Path, recipe: Recipe | None = None) -> tuple[Inspector, list[Path]]:
    """An inspector of boxes from a file, and its image."""
    image, file = tmp_path / "a.png", tmp_path / "boxes.csv"
    cv2.imwrite(str(image), part((32, 40)))
    file.write_text("image,x0,y0,x1,y1\na.png,30,38,50,58\n")
    return Inspector(RecipeConfig(), BoxFiller(), recipe=recipe, boxes=read_boxes(file, [image])), [image]


@pytest.mark.parametrize("with_recipe", [False, True])
def test_given_boxes_are_outlined_once_whatever_else_is_named(tmp_path: Path, with_recipe: bool) -> None:
    """A recipe beside the boxes has a map, but these images have none."""
    recipe = Recipe(tmp_path / "recipe", RecipeConfig(), {}, {}, np.ones(3, np.float32), np.ones(1, np.float32))
    inspector, images = of_boxes(tmp_path, recipe if with_recipe else None)
    runs = [inspect_folder(inspector, images, tmp_path / "out", progress=silent) for _ in range(2)]
    assert [(run.inspected, run.resumed) for run in runs] == [(1, 0), (0, 1)]


def test_other_weights_of_sam_are_another_inspection(tmp_path: Path) -> None:
    inspector, images = of_boxes(tmp_path)
    assert isinstance(inspector.segmenter, BoxFiller)
    for sha256, inspected in (("old", 1), ("old", 0), ("new", 1)):
        inspector.segmenter.sha256 = sha256
        assert inspect_folder(inspector, images, tmp_path / "out", progress=silent).inspected == inspected


def test_an_image_that_is_taken_away_meanwhile_is_an_error_and_the_run_goes_on(tmp_path: Path) -> None:
    for name in "abc":
        cv2.imwrite(str(tmp_path / f"{name}.png"), part((32, 40)))

    class Moved(Inspector):
        def inspect_many(self, paths: Iterable[str | Path]) -> Iterator[Inspection]:
            for inspection in super().inspect_many(paths):
                if inspection.image.endswith("b.png"):
                    Path(inspection.image).unlink()
                yield inspection

    moved = Moved(RecipeConfig(), BoxFiller(), localizer=Brightness(), threshold=THRESHOLD)
    run = inspect_folder(moved, sorted(tmp_path.glob("*.png")), tmp_path / "out", progress=silent)
    assert (run.failed, run.errors) == (2, 1)
    assert "b.png" in (tmp_path / "out" / "results.jsonl").read_text()
    assert run.page is not None


def test_an_image_that_is_replaced_meanwhile_by_one_of_another_size_is_an_error(tmp_path: Path) -> None:
    """As a camera's latest.png."""
    file = tmp_path / "latest.png"
    cv2.imwrite(str(file), part((32, 40)))

    class Replaced(Inspector):
        def inspect_many(self, paths: Iterable[str | Path]) -> Iterator[Inspection]:
            for inspection in super().inspect_many(paths):
                cv2.imwrite(inspection.image, part((32, 40))[:50, :60])
                yield inspection

    replaced = Replaced(RecipeConfig(), BoxFiller(), localizer=Brightness(), threshold=THRESHOLD)
    run = inspect_folder(replaced, [file], tmp_path / "out", progress=silent)
    assert (run.failed, run.errors) == (0, 1)
    assert "was replaced while it was inspected" in (tmp_path / "out" / "results.jsonl").read_text()


@pytest.mark.parametrize("box", [(10, 10, 5, 20), (500, 500, 600, 600), (1, 1, float("nan"), 9), (1, 2, 3)])
def test_a_box_that_cannot_be_is_refused(inspector: Inspector, box: Any) -> None:
    with pytest.raises(BoxesError, match="line 3: box"):
        inspector.inspect(part(), "line 3", boxes=[box])


class Half(BoxFiller):
    """Sees nothing right of the middle."""

    def _fill(self, view: View, prompt: Any) -> Candidates:
        found = super()._fill(view, prompt)
        return found if prompt.box_xyxy[0] < HW[1] / 2 else replace(found, low_res_logits=-abs(found.low_res_logits))


def test_a_box_in_which_sam_sees_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    inspector = Inspector(RecipeConfig(), Half(), localizer=Brightness(), threshold=THRESHOLD)
    found = inspector.inspect(part((20, 40)), "line 3", boxes=[(18, 38, 38, 58), (90, 38, 110, 58)])
    assert len(found.defects) == 1
    assert "line 3: SAM sees nothing in 1 of 2 boxes" in caplog.text


def test_an_earlier_runs_pictures_are_known_however_its_folder_is_spelt(
    inspector: Inspector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    cv2.imwrite("a.png", part((32, 40)))
    for _ in range(2):
        images = find_images(["."])
        run = inspect_folder(inspector, images, Path("sub/../res"), progress=silent, save=frozenset({"overlays"}))
        assert run.inspected + run.resumed == 1


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


def test_what_a_run_drew_is_not_inspected_and_a_part_beside_it_is(inspector: Inspector, tmp_path: Path) -> None:
    file = tmp_path / "part.png"
    cv2.imwrite(str(file), part())
    assert inspect_folder(inspector, [file], tmp_path, progress=silent).passed == 1
    linked = tmp_path.with_name(f"{tmp_path.name} linked")
    linked.symlink_to(tmp_path)
    drawn = [path for path in find_images([linked]) if path.name == "part.png" and path.parent != linked]
    assert drawn
    assert inspect_folder(inspector, [file, *drawn], tmp_path, progress=silent).resumed == 1
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    assert inspect_folder(inspector, [file, loop], tmp_path, progress=silent).errors == 1
    with pytest.raises(UsageError, match="every image is one that was drawn there"):
        inspect_folder(inspector, drawn, tmp_path, progress=silent)


def test_what_an_earlier_run_wrote_is_kept_true_whatever_the_next_one_is_to_save(
    inspector: Inspector, tmp_path: Path
) -> None:
    """Else the page would show the broken part that lay there before beside the verdict of a good one."""
    file, out = tmp_path / "part.png", tmp_path / "out"
    cv2.imwrite(str(file), part((32, 40)))
    inspect_folder(inspector, [file], out, progress=silent)
    (mask,) = (out / "masks").rglob("*.png")
    assert cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE).any()
    before = (out / "index.html").read_text()
    cv2.imwrite(str(file), part())
    inspect_folder(inspector, [file], out, progress=silent, save=frozenset({"overlays"}))
    assert not cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE).any()
    assert ",pass," in (out / "summary.csv").read_text()
    assert (out / "index.html").read_text() != before
    other = Inspector(inspector.config, BoxFiller(), localizer=Brightness(), threshold=0.1)
    inspect_folder(other, [file], out, progress=silent, save=frozenset())
    assert cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE).any()


def test_pixels_of_another_kind_are_refused(inspector: Inspector) -> None:
    with pytest.raises(ImageError):
        inspector.inspect(np.zeros((4, 4, 7), np.uint8))
