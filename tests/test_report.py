"""What an inspection run leaves: results for other programs, pictures, and a run that goes on where it stopped."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from pycocotools import mask as rle
from pycocotools.coco import COCO

from sam_inspect import masks
from sam_inspect.errors import OutputError
from sam_inspect.records import CropMask, Defect, Inspection
from sam_inspect.report import (
    PictureWriter,
    ResultsLog,
    fingerprint,
    from_json,
    output_names,
    to_json,
    write_coco,
    write_summary,
)
from sam_inspect.report.names import absolute
from sam_inspect.report.overlays import (
    HALO,
    HEAT_RGB,
    HEATMAP_COLOUR,
    SAM_COLOUR,
    THRESHOLD_AT,
    draw_heatmap,
    draw_overlay,
    heat_index,
    heat_layer,
    thumbnail,
)

HW = (60, 80)


def a_defect(box: tuple[int, int, int, int] = (10, 20, 30, 40), **changes: object) -> Defect:
    x0, y0, x1, y1 = box
    values = {"score": 1.5, "source": "sam", "area_px": (x1 - x0) * (y1 - y0), "length_px": 20.0, **changes}
    return Defect(mask=CropMask(box, np.ones((y1 - y0, x1 - x0), bool)), **values)  # type: ignore[arg-type]


def a_fail(image: str, *defects: Defect, **changes: object) -> Inspection:
    values = {
        "score": 1.5,
        "threshold": 1.0,
        "original_hw": HW,
        "timings_ms": {"read": 1.25, "localize": 30.0},
        **changes,
    }
    return Inspection(image, "fail", defects=defects or (a_defect(),), **values)  # type: ignore[arg-type]


def a_pass(image: str, **changes: object) -> Inspection:
    values = {"score": 0.5, "threshold": 1.0, "original_hw": HW, "timings_ms": {"read": 1.0}, **changes}
    return Inspection(image, "pass", **values)  # type: ignore[arg-type]


def an_error(image: str) -> Inspection:
    return Inspection(image, "error", error=f"{image}: is cut; copy it again")


def lines(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@pytest.fixture
def parts(tmp_path: Path) -> list[str]:
    """Three files that stand for pictures of parts."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (folder / name).write_bytes(name.encode())
    return [str(folder / name) for name in ("a.png", "b.png", "c.png")]


# ---- one line of results.jsonl --------------------------------------------------------------------------------------


def test_a_line_has_the_keys_that_scripts_rely_on() -> None:
    row = json.loads(json.dumps(to_json(a_fail("p/1.png", a_defect(area_mm2=np.float64(2.5), label="scratch")))))
    assert set(row) == {"image", "verdict", "score", "threshold", "defects", "error", "timings_ms", "size"}
    assert (row["image"], row["verdict"], row["score"], row["threshold"]) == ("p/1.png", "fail", 1.5, 1.0)
    assert row["size"] == [60, 80]
    defect = row["defects"][0]
    assert set(defect) == {"box", "area_px", "area_mm2", "length_px", "score", "mask", "source", "label"}
    assert (defect["box"], defect["area_px"], defect["area_mm2"]) == ([10, 20, 30, 40], 400, 2.5)
    assert defect["mask"]["size"] == [60, 80]
    assert "label" not in to_json(a_fail("p/1.png"))["defects"][0]


def test_an_error_line_says_what_to_do() -> None:
    row = to_json(an_error("x.png"))
    assert (row["verdict"], row["score"], row["size"], row["defects"]) == ("error", None, None, [])
    assert row["error"] == "x.png: is cut; copy it again"


@settings(max_examples=150, deadline=None)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)))
def test_a_mask_of_any_shape_comes_back_from_its_line(full: NDArray[np.bool_]) -> None:
    mask = masks.from_full(full)
    if mask is None:
        return
    defect = Defect(mask, 1.0, "heatmap", mask.area_px, masks.length_px(mask))
    line = json.dumps(to_json(a_fail("x.png", defect, original_hw=full.shape)))
    row = json.loads(line)
    assert row["defects"][0]["mask"]["counts"] == rle.encode(np.asfortranarray(full.view(np.uint8)))["counts"].decode()
    back = from_json(row)
    assert back.defects[0].box_xyxy == mask.box_xyxy
    assert np.array_equal(masks.union([back.defects[0].mask], full.shape), full)
    assert to_json(back) == row


def test_masks_read_back_do_not_hold_the_whole_frame() -> None:
    back = from_json(to_json(a_fail("big.png", original_hw=(3000, 4000))))
    pixels = back.defects[0].mask.pixels
    assert (pixels.base if pixels.base is not None else pixels).size == 400


# ---- names ----------------------------------------------------------------------------------------------------------


def test_names_tell_the_folder_and_the_file() -> None:
    images = ["/d/test/broken_large/000.png", "/d/test/good/000.png", "/d/teile/Gehäuse 7/Bild (1).jpg"]
    assert list(output_names(images).values()) == ["broken_large/000", "good/000", "Gehäuse_7/Bild_1_"]


def test_pictures_that_would_share_a_name_get_their_own() -> None:
    images = ["/d/train/good/1.png", "/d/test/good/1.png", "/d/test/good/1.jpg", "/d/test/GOOD/1.PNG"]
    names = list(output_names(images).values())
    assert names[0] == "good/1"
    assert len({name.casefold() for name in names}) == 4
    assert all(name.casefold().startswith("good/1-") for name in names[1:])


@pytest.mark.parametrize(
    "image", ["/", "..", "../../etc/passwd", "/a/.../.hidden", "/x/con.png", "/y/a\nb\x00c.png", "/" + "long" * 200]
)
def test_no_name_leaves_the_folder(image: str, tmp_path: Path) -> None:
    name = output_names([image])[image]
    path = tmp_path / "masks" / f"{name}.png"
    assert path.resolve().relative_to(tmp_path / "masks").parts == path.relative_to(tmp_path / "masks").parts
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")


paths = st.text(st.sampled_from("abAB.-_ /é零💥\\:*"), max_size=14).map(lambda text: "/" + text)


@settings(max_examples=200, deadline=None)
@given(st.lists(paths, unique=True, max_size=12), st.lists(paths, unique=True, max_size=6))
def test_more_images_later_rename_none(first: list[str], later: list[str]) -> None:
    names = output_names(first)
    by_path = {absolute(image): name for image, name in names.items()}
    again = output_names([*later, *first], by_path)
    assert {image: again[image] for image in first} == names
    files = {absolute(image): name.casefold() for image, name in again.items()}
    assert len(set(files.values())) == len(files)
    assert all(len(Path(name).parts) == 2 and ".." not in Path(name).parts for name in again.values())


# ---- the log and resuming -------------------------------------------------------------------------------------------


def test_a_second_run_inspects_nothing_anew(tmp_path: Path, parts: list[str]) -> None:
    out = tmp_path / "out"
    with ResultsLog(out) as log:
        assert not any(log.is_done(part, fingerprint(part, "v1")) for part in parts)
        for part in reversed(parts):
            log.append(a_fail(part), fingerprint(part, "v1"))
        log.finish(parts)
    assert [row["image"] for row in lines(out)] == parts
    with ResultsLog(out) as log:
        assert all(log.is_done(part, fingerprint(part, "v1")) for part in parts)
        back = log.finish(parts)
    assert [inspection.image for inspection in back] == parts
    assert back[0].defects[0].area_px == 400


def test_what_changed_is_inspected_anew(tmp_path: Path, parts: list[str]) -> None:
    out = tmp_path / "out"
    with ResultsLog(out) as log:
        for part in parts:
            log.append(a_pass(part), fingerprint(part, "v1"))
    Path(parts[0]).write_bytes(b"another picture")
    os.utime(parts[1], ns=(1, 1))
    log = ResultsLog(out)
    assert [log.is_done(part, fingerprint(part, "v1")) for part in parts] == [False, False, True]
    assert not log.is_done(parts[2], fingerprint(parts[2], "threshold 0.7"))
    log.append(a_fail(parts[0]), fingerprint(parts[0], "v1"))
    back = log.finish(parts)
    assert [inspection.verdict for inspection in back] == ["fail", "pass", "pass"]
    assert len(lines(out)) == 3


def test_an_image_that_could_not_be_read_is_tried_again(tmp_path: Path, parts: list[str]) -> None:
    with ResultsLog(tmp_path) as log:
        log.append(an_error(parts[0]), fingerprint(parts[0], "v1"))
    assert not ResultsLog(tmp_path).is_done(parts[0], fingerprint(parts[0], "v1"))
    assert fingerprint(tmp_path / "gone.png", "v1").startswith("missing")


def test_a_killed_run_loses_only_the_line_being_written(tmp_path: Path, parts: list[str]) -> None:
    log = ResultsLog(tmp_path)
    for part in parts[:2]:
        log.append(a_fail(part), fingerprint(part, "v1"))
    whole = (tmp_path / "results.jsonl").read_bytes()
    with (tmp_path / "results.jsonl").open("ab") as file:  # as kill -9 leaves it
        file.write(b'{"image": "' + parts[2].encode())
    again = ResultsLog(tmp_path)
    assert (tmp_path / "results.jsonl").read_bytes() == whole
    assert [again.is_done(part, fingerprint(part, "v1")) for part in parts] == [True, True, False]
    assert again.problems == []
    again.append(a_pass(parts[2]), fingerprint(parts[2], "v1"))
    assert [inspection.verdict for inspection in again.finish(parts)] == ["fail", "fail", "pass"]


def test_a_line_damaged_in_the_middle_is_named_and_done_again(tmp_path: Path, parts: list[str]) -> None:
    with ResultsLog(tmp_path) as log:
        for part in parts:
            log.append(a_pass(part), fingerprint(part, "v1"))
    text = (tmp_path / "results.jsonl").read_text().splitlines()
    text[1] = text[1][:30]
    text[2] = text[2].replace('"pass"', '"fail"')
    (tmp_path / "results.jsonl").write_text("\n".join(text) + "\n")
    log = ResultsLog(tmp_path)
    assert [log.is_done(part, fingerprint(part, "v1")) for part in parts] == [True, False, False]
    assert len(log.problems) == 1
    assert f"2 results cannot be read or were changed, such as that of {parts[1]}" in log.problems[0]
    assert [inspection.image for inspection in log.finish(parts)] == [parts[0]]


def test_two_images_that_are_spelled_alike_keep_their_own_results(
    tmp_path: Path, parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two shifts, each in its own folder, with one out folder."""
    for shift in ("early", "late"):
        (tmp_path / shift / "images").mkdir(parents=True)
        (tmp_path / shift / "images" / "a.png").write_text(shift)
    monkeypatch.chdir(tmp_path / "early")
    with ResultsLog(tmp_path / "out") as log:
        log.append(a_fail("images/a.png"), "early")
        log.finish(["images/a.png"])
    monkeypatch.chdir(tmp_path / "late")
    both = [str(tmp_path / "early" / "images" / "a.png"), "images/a.png"]
    for _ in range(2):
        with ResultsLog(tmp_path / "out") as log:
            assert log.is_done(both[0], "early")
            if not log.is_done(both[1], "late"):
                log.append(a_pass("images/a.png"), "late")
            assert [inspection.verdict for inspection in log.finish(both)] == ["fail", "pass"]
            assert log.problems == []


def test_a_run_on_fewer_images_does_not_throw_the_others_away(tmp_path: Path, parts: list[str]) -> None:
    with ResultsLog(tmp_path) as log:
        for part in parts:
            log.append(a_fail(part), fingerprint(part, "v1"))
        log.finish(parts)
    with ResultsLog(tmp_path) as log:
        log.finish(parts[1:2])
    assert [row["image"] for row in lines(tmp_path)] == parts[1:2]
    with ResultsLog(tmp_path) as log:
        assert all(log.is_done(part, fingerprint(part, "v1")) for part in parts)
        log.finish(parts)
    assert [row["image"] for row in lines(tmp_path)] == parts


def test_the_same_image_by_another_spelling_is_known(
    tmp_path: Path, parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ResultsLog(tmp_path) as log:
        name = log.names(parts)[parts[0]]
        log.append(a_pass(parts[0]), fingerprint(parts[0], "v1"))
    monkeypatch.chdir(Path(parts[0]).parent)
    for _ in range(2):
        log = ResultsLog(tmp_path)
        assert log.names(["a.png"]) == {"a.png": name}
        assert log.is_done("a.png", fingerprint("a.png", "v1"))
        assert [inspection.image for inspection in log.finish(["a.png"])] == ["a.png"]


def test_several_threads_write_whole_lines(tmp_path: Path) -> None:
    images = [f"p/{number}.png" for number in range(200)]
    log = ResultsLog(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda image: log.append(a_fail(image), "f"), images))
    assert sorted(row["image"] for row in lines(tmp_path)) == sorted(images)
    assert [inspection.image for inspection in log.finish(images)] == images


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file in the way")
    with pytest.raises(OutputError, match="out: cannot be written"):
        ResultsLog(tmp_path / "out")


@pytest.mark.skipif(os.name != "posix", reason="limits of file size are set by resource.setrlimit")
def test_a_full_disk_leaves_the_earlier_lines_whole(tmp_path: Path) -> None:
    script = """
        import resource, sys
        from pathlib import Path
        from sam_inspect.errors import OutputError
        from sam_inspect.records import Inspection
        from sam_inspect.report import ResultsLog
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # the kernel refuses more, as a full disk does
        log = ResultsLog(Path(sys.argv[1]))
        try:
            for number in range(1000):
                log.append(Inspection(f"{number}.png", "pass", 0.1, 1.0, original_hw=(9, 9)), "f")
        except OutputError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "cannot be written" in told and "free space" in told
    done = lines(tmp_path)
    assert [row["image"] for row in done] == [f"{number}.png" for number in range(len(done))]
    with ResultsLog(tmp_path) as log:
        assert log.problems == []
        assert log.is_done("0.png", "f")


# ---- tables for other programs --------------------------------------------------------------------------------------


def test_the_summary_has_a_row_an_image(tmp_path: Path) -> None:
    two = (a_defect(area_mm2=1.0), a_defect((0, 0, 5, 4), length_px=33.0, area_mm2=0.5))
    found = [a_fail("x, with comma.png", *two), a_pass("good.png"), an_error("\udcff.png")]
    rows = list(csv.DictReader(write_summary(tmp_path, found).open(encoding="utf-8")))
    assert [row["verdict"] for row in rows] == ["fail", "pass", "error"]
    first = rows[0]
    assert (first["image"], first["defects"], first["largest_area_px"]) == ("x, with comma.png", "2", "400")
    assert (first["total_area_px"], first["total_area_mm2"], first["max_length_px"]) == ("420", "1.5", "33.0")
    assert first["ms"] == "31.25"
    assert (rows[1]["defects"], rows[1]["total_area_px"], rows[1]["total_area_mm2"]) == ("0", "0", "")
    assert (rows[2]["score"], rows[2]["defects"], rows[2]["error"]) == ("", "", "\\udcff.png: is cut; copy it again")


def test_pycocotools_reads_the_coco_file(tmp_path: Path) -> None:
    mask = masks.from_full(np.tri(*HW, dtype=bool))
    assert mask is not None
    odd = Defect(mask, 1.2, "heatmap", mask.area_px, 70.0, label="crack")
    found = [a_pass("good.png"), an_error("cut.png"), a_fail("bad.png", a_defect(), odd)]
    coco = COCO(str(write_coco(tmp_path, found)))
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == ["good.png", "bad.png"]
    assert {category["name"] for category in coco.loadCats(coco.getCatIds())} == {"defect", "crack"}
    plain, crack = coco.loadAnns(coco.getAnnIds())
    assert (plain["bbox"], plain["area"], plain["score"]) == ([10, 20, 20, 20], 400, 1.5)
    assert np.array_equal(coco.annToMask(crack).astype(bool), np.tri(*HW, dtype=bool))
    assert coco.getAnnIds(catIds=coco.getCatIds(["crack"])) == [crack["id"]]
    assert coco.getAnnIds(imgIds=coco.getImgIds()[:1]) == []


# ---- pictures -------------------------------------------------------------------------------------------------------


def plain(value: int, hw: tuple[int, int] = HW) -> NDArray[np.uint8]:
    return np.full((*hw, 3), value, np.uint8)


def count(image: NDArray[np.uint8], colour: tuple[int, int, int], within: int = 40) -> int:
    return int((np.abs(image.astype(int) - colour).sum(axis=-1) <= within).sum())


@pytest.mark.parametrize("grey", [0, 90, 128, 255])
def test_an_outline_stands_out_on_any_ground(grey: int) -> None:
    image = plain(grey, (600, 800))
    drawn = draw_overlay(image, a_fail("x.png", a_defect((300, 200, 500, 400)), original_hw=(600, 800)))
    border = drawn[195:405, 295:505]
    assert count(border, SAM_COLOUR) >= 700
    assert count(border, HALO) >= 700 or grey == 0
    assert np.abs(drawn[300, 400].astype(int) - grey).max() <= 45, "the fill lets the part shine through"


def test_drawing_touches_only_the_defects_surroundings() -> None:
    image = np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)
    before = image.copy()
    drawn = draw_overlay(image, a_fail("x.png", a_defect((400, 400, 500, 450)), original_hw=(900, 900)))
    changed = np.argwhere((drawn != image).any(axis=-1))
    assert np.array_equal(image, before)
    assert changed.min(axis=0).tolist() >= [350, 390] and changed.max(axis=0).tolist() <= [460, 520]


def test_a_ring_is_drawn_as_a_ring() -> None:
    ring = np.zeros((300, 300), bool)
    ring[50:250, 50:250] = True
    ring[100:200, 100:200] = False
    mask = masks.from_full(ring)
    assert mask is not None
    image = plain(200, (300, 300))
    drawn = draw_overlay(
        image, a_fail("x.png", Defect(mask, 1, "heatmap", mask.area_px, 200.0), original_hw=(300, 300))
    )
    assert (drawn[120:180, 120:180] == 200).all()
    assert (drawn[70:80, 120:180] != 200).any(axis=-1).all()
    assert count(drawn, HEATMAP_COLOUR) > 300 and count(drawn, SAM_COLOUR) == 0


@pytest.mark.parametrize("hw", [(1, 1), (3, 5), (1, 4000), (5000, 3000)])
def test_any_size_can_be_drawn(hw: tuple[int, int]) -> None:
    image = plain(100, hw)
    box = (0, 0, max(1, hw[1] // 2), max(1, hw[0] // 2))
    found = a_fail("x.png", a_defect(box), original_hw=hw, anomaly_map=np.ones((4, 4), np.float32))
    for drawn in (draw_overlay(image, found), draw_heatmap(image, found)):
        assert drawn.dtype == np.uint8 and drawn.shape[2] == 3
        assert max(drawn.shape[:2]) == min(2000, max(hw))
    small = thumbnail(image)
    assert max(small.shape[:2]) == min(320, max(hw))
    layer = heat_layer(found)
    assert layer is not None and layer.shape == (*small.shape[:2], 4)


def test_many_labels_do_not_cover_each_other() -> None:
    defects = [a_defect((x, 300, x + 8, 308), score=1 + x / 1000) for x in range(100, 160, 12)]
    alone = [draw_overlay(plain(255, (600, 800)), a_fail("x", d, original_hw=(600, 800))) for d in defects]
    together = draw_overlay(plain(255, (600, 800)), a_fail("x", *defects, original_hw=(600, 800)))
    dark = [int((picture.mean(axis=-1) < 60).sum()) for picture in alone]
    assert int((together.mean(axis=-1) < 60).sum()) > 0.85 * sum(dark)


@given(st.floats(0.01, 1000), st.floats(0.05, 3))
def test_equal_colours_mean_equal_shares_of_the_threshold(threshold: float, share: float) -> None:
    index = heat_index(np.array([[threshold, threshold * share]], np.float32), threshold)
    assert index[0, 0] in (127, 128)
    assert abs(int(index[0, 1]) - min(255, round(255 * THRESHOLD_AT * share))) <= 1


def test_good_surroundings_stay_clear_and_the_hot_spot_glows() -> None:
    heat = np.full((8, 8), 0.3, np.float32)
    heat[4, 4] = 5.0
    image = plain(50, (80, 80))
    found = a_fail("x.png", original_hw=(80, 80), anomaly_map=heat)
    drawn = draw_heatmap(image, found)
    assert (drawn[:20] == 50).all()
    assert drawn[45, 45].astype(int).sum() > 300
    layer = heat_layer(found)
    assert layer is not None
    assert (layer[:20] == 0).all() and layer[45, 45, 3] > 150
    assert layer[45, 45, :3].tolist() == HEAT_RGB[255].tolist()


@pytest.mark.parametrize("threshold", [None, 0.0, -3.0])
def test_a_map_without_a_usable_threshold_has_its_own_scale(threshold: float | None) -> None:
    index = heat_index(np.array([[-4, -2, 0]], np.float32), threshold)
    assert index.tolist() == [[0, 128, 255]]
    assert heat_index(np.full((2, 2), 7, np.float32), threshold).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("place", [(700, 900), (701, 903), (703, 901)])
def test_a_peak_of_a_large_map_is_never_lost_where_it_shrinks(place: tuple[int, int]) -> None:
    peak = np.zeros((1000, 2500), np.float32)
    peak[place] = 3.0
    layer = heat_layer(a_fail("x.png", threshold=2.0, original_hw=(1000, 2500), anomaly_map=peak))
    assert layer is not None
    ys, xs = np.nonzero(layer[..., 3] > 150)
    assert abs(ys.mean() / layer.shape[0] - place[0] / 1000) < 0.02
    assert abs(xs.mean() / layer.shape[1] - place[1] / 2500) < 0.02


def test_without_a_map_the_heatmap_is_the_image() -> None:
    assert np.array_equal(draw_heatmap(plain(9), a_fail("x.png", threshold=None)), plain(9))


EVERY = {"results", "overlays", "masks", "maps", "report"}


def test_the_pictures_lie_where_the_manual_says(tmp_path: Path) -> None:
    heat = np.random.default_rng(1).random((6, 8)).astype(np.float32)
    bad = a_fail("t/bad/7.png", a_defect(), a_defect((0, 0, 5, 4), source="heatmap"), anomaly_map=heat)
    good = a_pass("t/good/7.png", anomaly_map=heat)
    names = output_names([bad.image, good.image])
    writer = PictureWriter(tmp_path, EVERY, names)
    assert not writer.is_complete(bad.image)
    for found in (bad, good):
        writer.write(plain(120), found)
        assert writer.is_complete(found.image)
    mask = cv2.imread(str(tmp_path / "masks/bad/7.png"), cv2.IMREAD_UNCHANGED)
    assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 255}
    assert np.array_equal(mask > 0, masks.union([d.mask for d in bad.defects], HW))
    black = cv2.imread(str(tmp_path / "masks/good/7.png"), cv2.IMREAD_UNCHANGED)
    assert black.shape == HW and not black.any()
    raw = cv2.imread(str(tmp_path / "maps/bad/7.tiff"), cv2.IMREAD_UNCHANGED)
    assert raw.dtype == np.float32 and np.array_equal(raw, masks.resize_map(heat, HW))
    overlay = cv2.imread(str(tmp_path / "overlays/bad/7.jpg"))
    assert overlay.shape == (*HW, 3)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("bad/*")} == {
        "overlays/bad/7.jpg",
        "masks/bad/7.png",
        "maps/bad/7.jpg",
        "maps/bad/7.tiff",
        "report/images/bad/7.jpg",
        "report/thumbs/bad/7.jpg",
        "report/heat/bad/7.png",
    }


def test_only_what_is_wanted_is_written(tmp_path: Path) -> None:
    found = a_fail("t/7.png")
    writer = PictureWriter(tmp_path, {"results", "masks"}, output_names([found.image]))
    writer.write(plain(0), found)
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]
    assert writer.is_complete(found.image)
    more = PictureWriter(tmp_path, {"masks", "report"}, writer.names)
    assert not more.is_complete(found.image)
    more.write(plain(0), found)  # boxes were given: there is no map
    assert not more.is_complete(found.image) and more.is_complete(found.image, with_map=False)


def test_an_image_that_broke_since_keeps_no_old_pictures(tmp_path: Path) -> None:
    found = a_fail("t/7.png", anomaly_map=np.ones((3, 4), np.float32))
    writer = PictureWriter(tmp_path, EVERY, output_names([found.image]))
    writer.write(plain(0), found)
    writer.write(None, an_error(found.image))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_threads_write_pictures_beside_each_other(tmp_path: Path) -> None:
    found = [a_fail(f"t/{number % 3}/{number}.png") for number in range(60)]
    writer = PictureWriter(tmp_path, {"overlays", "masks", "report"}, output_names([f.image for f in found]))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda f: writer.write(plain(33), f), found))
    assert all(writer.is_complete(f.image, with_map=False) for f in found)
    assert len(list((tmp_path / "masks").rglob("*.png"))) == 60
    assert not list(tmp_path.rglob(".part-*"))


def test_a_file_where_a_folder_should_be_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "masks").write_text("in the way")
    with pytest.raises(OutputError, match="masks"):
        PictureWriter(tmp_path, {"masks"}, {"x.png": "t/x"}).write(plain(0), a_pass("x.png"))
