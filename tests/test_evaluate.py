"""A recipe on a small test set whose right answers are known: the inspector's maps and masks are planted."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from sam_inspect import masks
from sam_inspect.datasets import read_gt_mask
from sam_inspect.datasets import test_samples as samples_of
from sam_inspect.errors import DatasetError, ImageError, RecipeError, UsageError
from sam_inspect.evaluate import COLUMNS, as_tables, evaluate
from sam_inspect.evaluate.columns import grabcut, otsu
from sam_inspect.images import read_image
from sam_inspect.progress import silent
from sam_inspect.records import CropMask, Defect, Inspection

HW = (48, 64)
MASK_FIGURES = {"mean_iou", "mean_dice", "boundary_iou", "iou_over_75", "iou_over_90", "region_f1", "seconds"}
IMAGE_FIGURES = {"auroc", "ap", "f1_max", "false_reject_rate", "miss_rate"}
PIXEL_FIGURES = {"auroc", "ap", "f1_max", "iou_max", "au_pro_30", "au_pro_05"}


class Planted:
    """An inspector that knows the ground truth: its map is the truth (1 high), blurred and noisy; its SAM sees it."""

    threshold = 0.5

    def __init__(self, data: Path, blur: float = 0.0, noise: float = 0.0) -> None:
        self.samples = {sample.image: sample for sample in samples_of(data)}
        self.blur = blur
        self.noise = noise
        self.rng = np.random.default_rng(0)
        self.inspected: list[Path] = []
        self.recipe = SimpleNamespace(folder=data / "recipe", calibration_scores=np.zeros(5, np.float32))

    def inspect_many(self, images: Sequence[Path]) -> Iterator[Inspection]:
        for path in images:
            self.inspected.append(path)
            try:
                yield self._inspection(path)
            except ImageError as error:
                yield Inspection(str(path), "error", error=str(error))

    def _inspection(self, path: Path) -> Inspection:
        image = read_image(path)
        hw = (image.shape[0], image.shape[1])
        anomaly_map = self.map_of(read_gt_mask(self.samples[path], hw))
        found = masks.components(masks.resize_map(anomaly_map, hw) > self.threshold)
        defects = tuple(defect(mask) for mask in found)
        verdict = "fail" if defects else "pass"
        timings = {"read": 1000.0, "localize": 100.0, "segment": 50.0}
        return Inspection(
            str(path), verdict, float(anomaly_map.max()), self.threshold, defects, hw, None, timings, anomaly_map
        )

    def map_of(self, truth: NDArray[np.bool_]) -> NDArray[np.float32]:
        """On a grid of half the image's size."""
        size = (truth.shape[1] // 2, truth.shape[0] // 2)
        grid = cv2.resize(truth.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        blurred = cv2.GaussianBlur(grid, (0, 0), self.blur) if self.blur else grid
        return np.asarray(blurred + self.noise * self.rng.random(grid.shape), np.float32)

    def outline(self, image: NDArray[np.uint8], boxes: Sequence[tuple[float, float, float, float]]) -> list[Defect]:
        """What is bright in each box."""
        found = [CropMask((x0, y0, x1, y1), image[y0:y1, x0:x1, 0] > 150) for x0, y0, x1, y1 in boxes]
        return [defect(mask) for mask in found if mask.area_px]


def defect(mask: CropMask) -> Defect:
    return Defect(mask, 1.0, "sam", mask.area_px, masks.length_px(mask))


def draw(data: Path, kind: str, name: str, shapes: Sequence[tuple[int, int, int, int]]) -> None:
    """A grey part of its own size with bright ellipses (x, y, half-axes), and its ground truth."""
    height, width = HW[0] + 2 * len(name), HW[1] + 4 * len(shapes)
    truth = np.zeros((height, width), np.uint8)
    for x, y, a, b in shapes:
        cv2.ellipse(truth, (x, y), (a, b), 0, 0, 360, 255, -1)
    image = np.where(truth > 0, 220, 80).astype(np.uint8)
    folders = [(data / "test" / kind, "", image)]
    folders += [(data / "ground_truth" / kind, "_mask", truth)] if kind != "good" else []
    for folder, suffix, pixels in folders:
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{name}{suffix}.png")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("drawn") / "product"
    for number in range(4):
        draw(data, "good", str(number), [])
        draw(data, "spot", str(number), [(20 + number, 20, 8, 6)])
    draw(data, "pair", "10", [(15, 15, 7, 7), (50, 30, 9, 5)])
    draw(data, "pair", "101", [(30, 30, 14, 10), (55, 10, 5, 7)])
    return data


@pytest.fixture
def product(drawn: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    return Path(shutil.copytree(drawn, tmp_path / "product"))


def parts_of(figures: dict[str, Any]) -> list[dict[str, Any]]:
    return [figures, *figures["per_defect"].values()]


def test_the_figures_are_the_contract(drawn: Path) -> None:
    inspector = Planted(drawn, blur=1.5, noise=0.3)
    figures = evaluate(inspector, drawn, progress=silent, out=None, groups=None)
    assert set(figures["per_defect"]) == {"spot", "pair"}
    for part in parts_of(figures):
        assert set(part["image"]) == IMAGE_FIGURES
        assert set(part["pixel"]) == PIXEL_FIGURES
        assert tuple(part["masks"]) == COLUMNS
        assert all(set(row) == MASK_FIGURES for row in part["masks"].values())
    assert figures["count"] == {"images": 10, "good": 4, "defective": 6, "defects": 8, "errors": 0}
    assert figures["per_defect"]["pair"]["count"] == {"images": 6, "good": 4, "defective": 2, "defects": 4}
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert sorted(inspector.inspected) == sorted(inspector.samples), "each image once"


def test_an_inspector_that_knows_the_truth_has_nothing_left_to_wish_for(drawn: Path) -> None:
    figures = evaluate(Planted(drawn), drawn)
    for part in parts_of(figures):
        assert part["image"] == {"auroc": 1, "ap": 1, "f1_max": 1, "false_reject_rate": 0, "miss_rate": 0}
        assert part["pixel"]["auroc"] > 0.99
        assert part["masks"]["refined"]["mean_iou"] > 0.9
        for column in ("gt_boxes", "gt_boxes_otsu"):
            exact = {name: value for name, value in part["masks"][column].items() if name != "seconds"}
            assert exact == dict.fromkeys(MASK_FIGURES - {"seconds"}, 1)
        assert 0.7 < part["masks"]["gt_boxes_filled"]["mean_iou"] < 0.85, "an ellipse is pi / 4 of its box"
        assert part["masks"]["gt_boxes_grabcut"]["mean_iou"] > 0.9


def test_the_figures_are_those_of_plain_arithmetic_on_full_frames(drawn: Path) -> None:
    figures = evaluate(Planted(drawn, blur=2, noise=0.4), drawn)
    again = Planted(drawn, blur=2, noise=0.4)
    values, truths, ious, scores, failed, defective = [], [], [], [], [], []
    for path, inspection in zip(again.samples, again.inspect_many(list(again.samples)), strict=True):
        truth = read_gt_mask(again.samples[path], inspection.original_hw)
        full = masks.resize_map(inspection.anomaly_map, inspection.original_hw)
        values.append(full.ravel())
        truths.append(truth.ravel())
        scores.append(inspection.score)
        failed.append(inspection.verdict == "fail")
        defective.append(truth.any())
        if truth.any():
            ious.append(np.sum(truth & (full > 0.5)) / np.sum(truth | (full > 0.5)))
    value, truth, failed, defective = (
        np.concatenate(values),
        np.concatenate(truths),
        *map(np.array, (failed, defective)),
    )
    assert figures["pixel"]["auroc"] == pytest.approx(roc_auc_score(truth, value))
    assert figures["pixel"]["ap"] == pytest.approx(average_precision_score(truth, value))
    assert figures["image"]["auroc"] == pytest.approx(roc_auc_score(defective, scores))
    assert figures["image"]["false_reject_rate"] == np.mean(failed[~defective])
    assert figures["image"]["miss_rate"] == np.mean(~failed[defective])
    assert figures["masks"]["heatmap"]["mean_iou"] == pytest.approx(np.mean(ious))
    assert figures["masks"]["refined"]["mean_iou"] == pytest.approx(np.mean(ious))


def test_a_type_has_the_figures_it_would_have_alone_with_the_good_parts(product: Path) -> None:
    inspector = Planted(product, blur=1.5)
    together = evaluate(inspector, product)
    shutil.rmtree(product / "test" / "spot")
    alone = evaluate(Planted(product, blur=1.5), product)
    of_type = together["per_defect"]["pair"]
    assert of_type["image"] == alone["image"]
    assert of_type["pixel"] == pytest.approx(alone["pixel"])
    for column in set(COLUMNS) - {"heatmap_oracle"}:  # its threshold is the best for the whole test set
        a, b = of_type["masks"][column], alone["masks"][column]
        assert {**a, "seconds": 0} == pytest.approx({**b, "seconds": 0})


def test_the_oracle_knows_the_best_threshold(drawn: Path) -> None:
    inspector = Planted(drawn, blur=3, noise=0.2)
    inspector.threshold = 0.9
    figures = evaluate(inspector, drawn)
    again = Planted(drawn, blur=3, noise=0.2)
    full = []
    for path, inspection in zip(again.samples, again.inspect_many(list(again.samples)), strict=True):
        truth = read_gt_mask(again.samples[path], inspection.original_hw)
        full.append((masks.resize_map(inspection.anomaly_map, inspection.original_hw), truth))
    curve = [
        np.mean([np.sum(t & (m > limit)) / np.sum(t | (m > limit)) for m, t in full if t.any()])
        for limit in np.linspace(0.1, 1, 2000)
    ]
    found = figures["masks"]["heatmap_oracle"]["mean_iou"]
    assert found == pytest.approx(max(curve), abs=0.003)
    assert found > figures["masks"]["heatmap"]["mean_iou"] + 0.1
    assert figures["thresholds"]["recipe"] == 0.9
    assert 0.1 < figures["thresholds"]["heatmap_oracle"] < 0.9


def test_false_defects_on_good_parts_count_as_regions_but_not_in_the_mean_iou(drawn: Path) -> None:
    inspector, clean = Planted(drawn), Planted(drawn)
    plant = inspector.map_of

    def with_a_false_defect(truth: NDArray[np.bool_]) -> NDArray[np.float32]:
        grid = plant(truth)
        if not truth.any():
            grid[2:6, 2:6] = 1
        return grid

    inspector.map_of = with_a_false_defect  # type: ignore[method-assign]
    figures, without = evaluate(inspector, drawn), evaluate(clean, drawn)
    assert figures["image"]["false_reject_rate"] == 1
    for column in ("heatmap", "refined"):
        assert without["masks"][column]["region_f1"] == 1
        assert figures["masks"][column]["region_f1"] == pytest.approx(2 * 8 / (8 + 8 + 4))
        assert figures["masks"][column]["mean_iou"] == without["masks"][column]["mean_iou"]


def test_seconds_are_those_of_the_stages_without_reading(drawn: Path) -> None:
    figures = evaluate(Planted(drawn), drawn)
    assert figures["masks"]["refined"]["seconds"] == pytest.approx(0.15)
    assert figures["masks"]["heatmap"]["seconds"] > 0.1
    seconds = figures["seconds"]
    assert (seconds["read"], seconds["localize"], seconds["segment"]) == pytest.approx((1, 0.1, 0.05))
    assert seconds["image"] == pytest.approx(1.15)
    assert seconds["total"] > 0


def test_an_image_that_cannot_be_read_is_left_out_and_counted(
    product: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (product / "test/spot/1.png").write_bytes((product / "test/spot/1.png").read_bytes()[:60])
    with caplog.at_level(logging.WARNING):
        figures = evaluate(Planted(product), product, out=tmp_path / "out")
    assert figures["count"] == {"images": 9, "good": 4, "defective": 5, "defects": 7, "errors": 1}
    assert "spot/1.png" in caplog.text
    assert sum(json.loads(line)["verdict"] == "error" for line in (tmp_path / "out/results.jsonl").open()) == 1


def test_no_image_that_can_be_read(product: Path) -> None:
    for path in product.glob("test/*/*"):
        path.write_text("not a picture")
    with pytest.raises(DatasetError, match="none of its 10 images"):
        evaluate(Planted(product), product)


def test_without_good_images_what_needs_them_is_unknown(product: Path) -> None:
    shutil.rmtree(product / "test/good")
    figures = evaluate(Planted(product), product)
    assert figures["image"]["auroc"] is figures["image"]["false_reject_rate"] is None
    assert figures["pixel"]["auroc"] > 0.99
    assert ["all", "6", "-", "1.000", "1.000", "-", "0.000"] in as_tables(figures)[0][2]


def test_an_empty_ground_truth_is_said_and_left_out(product: Path, caplog: pytest.LogCaptureFixture) -> None:
    empty = product / "ground_truth/spot/2_mask.png"
    Image.fromarray(np.zeros_like(np.asarray(Image.open(empty)))).save(empty)
    with caplog.at_level(logging.WARNING):
        figures = evaluate(Planted(product), product)
    assert "2_mask.png: marks no pixel" in caplog.text
    assert (figures["count"]["defective"], figures["count"]["defects"]) == (6, 7)
    assert figures["image"]["miss_rate"] == pytest.approx(1 / 6)
    assert figures["masks"]["gt_boxes"]["mean_iou"] == 1


def test_ground_truth_of_another_size_is_refused_before_any_inspection(product: Path) -> None:
    Image.new("L", (31, 17)).save(product / "ground_truth/spot/2_mask.png")
    inspector = Planted(product)
    with pytest.raises(DatasetError, match=r"2_mask\.png: is 31 x 17"):
        evaluate(inspector, product)
    assert not inspector.inspected


def test_a_recipe_without_a_map_is_refused(drawn: Path) -> None:
    inspector = Planted(drawn)
    inspector._inspection = lambda path: Inspection(str(path), "pass", original_hw=HW)  # type: ignore[method-assign]
    with pytest.raises(RecipeError, match="no anomaly map"):
        evaluate(inspector, drawn)


def test_an_inspector_of_given_boxes_is_refused(drawn: Path) -> None:
    inspector = Planted(drawn)
    inspector.threshold = None  # type: ignore[assignment]
    with pytest.raises(UsageError, match="without a threshold"):
        evaluate(inspector, drawn)


def test_out_holds_results_pictures_figures_and_a_report_with_them(drawn: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    inspector = Planted(drawn, blur=1)
    figures = evaluate(inspector, drawn, out=out)
    assert len(inspector.inspected) == 10
    assert json.loads((out / "figures.json").read_text()) == figures
    assert len((out / "results.jsonl").read_text().splitlines()) == 10
    for folder, suffix in (("overlays", "jpg"), ("masks", "png")):
        assert len(list((out / folder).rglob(f"*.{suffix}"))) == 10
    page = (out / "index.html").read_text()
    assert "Masks" in page
    for column in COLUMNS:
        assert column.replace("_", " ") in page
    evaluate(Planted(drawn, blur=1), drawn, out=out)
    assert len((out / "results.jsonl").read_text().splitlines()) == 10


def test_intervals_go_by_the_groups_beside_the_data_or_those_that_are_named(product: Path, tmp_path: Path) -> None:
    assert "intervals" not in evaluate(Planted(product), product)
    names = [path.relative_to(product).as_posix() for path in product.glob("test/*/*")]
    rows = "".join(f"{name},{Path(name).parent.name}\n" for name in names)
    (product / "groups.csv").write_text("image,group\n" + rows)
    inspector = Planted(product, blur=3, noise=0.5)
    figures = evaluate(inspector, product)
    assert figures["intervals"]["groups"] == 3
    low, high = figures["intervals"]["masks"]["heatmap"]["mean_iou"]
    assert low <= figures["masks"]["heatmap"]["mean_iou"] <= high
    low, high = figures["intervals"]["image"]["auroc"]
    assert 0 <= low <= figures["image"]["auroc"] <= high <= 1
    (tmp_path / "mine.csv").write_text(f"image,group\n{names[0]},a\n")
    assert evaluate(Planted(product), product, groups=tmp_path / "mine.csv")["intervals"]["groups"] == 10
    assert "95 % intervals, 3 groups" in [title for title, _, _ in as_tables(figures)]


def test_groups_of_other_images_are_refused(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("image,group\ntest/elsewhere/0.png,a\n")
    with pytest.raises(DatasetError, match=r"names none of the test images; name them as test/good/0\.png"):
        evaluate(Planted(drawn), drawn, groups=tmp_path / "groups.csv")


def test_the_tables_show_every_figure(drawn: Path) -> None:
    figures = evaluate(Planted(drawn, blur=1), drawn)
    tables = {title: (columns, rows) for title, columns, rows in as_tables(figures)}
    assert "6 defective images with 8 defects, 4 good ones" in tables
    columns, rows = tables["Masks"]
    assert set(columns[1:]) == MASK_FIGURES
    assert [row[0] for row in rows] == list(COLUMNS)
    assert rows[0][1] == f"{figures['masks']['heatmap']['mean_iou']:.3f}"
    assert [row[0] for row in tables["Pixels"][1]] == ["all", "pair", "spot"]
    assert all(len(row) == len(columns) for columns, rows in tables.values() for row in rows)


def part_with(brightness: int, surface: int = 120) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A noisy part with a disc of another brightness, and where that is."""
    noise = np.random.default_rng(0).normal(0, 6, (90, 120, 3))
    inside = np.hypot(*np.mgrid[-45:45, -60:60]) < 18
    levels = np.where(inside[..., None], brightness, surface) + noise
    return np.clip(levels, 0, 255).astype(np.uint8), inside


@pytest.mark.parametrize("brightness", [30, 220])
@pytest.mark.parametrize("method", [otsu, grabcut])
def test_classical_methods_find_a_clear_spot_in_its_box(method: Any, brightness: int) -> None:
    image, inside = part_with(brightness)
    box = masks.from_full(inside)
    assert box is not None
    found = method(image, box.box_xyxy)
    assert found is not None
    full = masks.union([found], inside.shape)
    assert np.sum(full & inside) / np.sum(full | inside) > 0.95


def test_a_box_of_one_grey_value_has_nothing_for_otsu() -> None:
    assert otsu(np.full((20, 20, 3), 77, np.uint8), (3, 3, 9, 9)) is None


def test_a_box_over_the_whole_image_leaves_grabcut_no_background() -> None:
    found = grabcut(part_with(200)[0], (0, 0, 120, 90))
    assert found is not None
    assert found.area_px == 120 * 90


def test_a_large_box_is_scaled_for_grabcut_and_back() -> None:
    image, inside = part_with(220)
    large = cv2.resize(image, (960, 720))
    found = grabcut(large, (330, 210, 630, 510))
    assert found is not None
    full, truth = masks.union([found], (720, 960)), cv2.resize(inside.view(np.uint8), (960, 720)) > 0
    assert np.sum(full & truth) / np.sum(full | truth) > 0.9


@given(st.integers(0, 119), st.integers(0, 89), st.integers(1, 120), st.integers(1, 90))
def test_any_box_in_the_image_gets_an_answer_inside_it(x: int, y: int, width: int, height: int) -> None:
    image, _ = part_with(200)
    box = (x, y, min(120, x + width), min(90, y + height))
    for method in (otsu, grabcut):
        found = method(image, box)
        if found is not None:
            assert found.area_px
            assert np.all(np.array(found.box_xyxy[:2]) >= box[:2])
            assert np.all(np.array(found.box_xyxy[2:]) <= box[2:])


def test_the_figures_are_anomalibs_on_the_same_maps(tmp_path: Path) -> None:
    from anomalib.metrics.aupr import _AUPR
    from anomalib.metrics.aupro import _AUPRO
    from anomalib.metrics.auroc import _AUROC
    from anomalib.metrics.f1_score import _F1Max

    for number in range(8):
        kind, spots = ("spot", [(20 + number, 20, 8, 6)]) if number % 2 else ("good", [(0, 0, 0, 0)])
        draw(tmp_path, kind, str(number), spots)
    figures = evaluate(Planted(tmp_path, blur=4, noise=0.6), tmp_path)
    again = Planted(tmp_path, blur=4, noise=0.6)
    found = list(again.inspect_many(list(again.samples)))
    truths = torch.from_numpy(np.stack([read_gt_mask(again.samples[Path(i.image)], i.original_hw) for i in found]))
    maps = torch.from_numpy(np.stack([masks.resize_map(i.anomaly_map, i.original_hw) for i in found]))
    scores = torch.tensor([i.score for i in found])
    # Beyond 0..1 torchmetrics squeezes scores, each batch by itself, and anomalib's AUROC changes.
    highest = max(maps.max(), scores.max())

    def theirs(metric: Any, values: torch.Tensor, target: torch.Tensor) -> Any:
        metric.update(values / highest, target.int())
        return pytest.approx(float(metric.compute()), abs=1e-5)

    pixel, image = figures["pixel"], figures["image"]
    assert 0.6 < pixel["auroc"] < 0.99
    for metric, name in ((_AUROC, "auroc"), (_AUPR, "ap"), (_F1Max, "f1_max")):
        assert pixel[name] == theirs(metric(), maps, truths), name
        assert image[name] == theirs(metric(), scores, truths.flatten(1).any(1)), name
    assert pixel["au_pro_30"] == theirs(_AUPRO(), maps, truths)
    assert pixel["au_pro_05"] == theirs(_AUPRO(fpr_limit=0.05), maps, truths)
