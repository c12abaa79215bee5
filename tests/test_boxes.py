"""Boxes that other programs drew: every common file is read, each box goes to its own image, each fault is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sam_inspect.errors import BoxesError
from sam_inspect.localize import box_files
from sam_inspect.localize.boxes import GivenBox, GivenBoxes, read_boxes

PAIR = ("test/good/000.png", "test/broken_large/000.png")


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., list[Path]]:
    """Makes pictures of 100 x 80 pixels under the names given."""

    def make(*names: str) -> list[Path]:
        paths = [tmp_path / "data" / name for name in names]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (100, 80), (90, 90, 90)).save(path)
        return paths

    return make


def boxes_of(file: Path, images: list[Path]) -> list[list[tuple[float, ...]]]:
    """Only the corners, in the order of the images."""
    found = read_boxes(file, images)
    assert list(found) == [str(image) for image in images]
    return [[given.box_xyxy for given in boxes] for boxes in found.values()]


def write(tmp_path: Path, name: str, content: object) -> Path:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def coco(*names: str, boxes: list[list[float]], category: str = "crack") -> dict[str, object]:
    """A COCO file whose boxes are all on the first image."""
    return {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "categories": [{"id": 7, "name": category}],
        "annotations": [
            {"id": number, "image_id": 0, "category_id": 7, "bbox": box} for number, box in enumerate(boxes)
        ],
    }


# Each kind of file


def test_coco_gives_corners_labels_and_order(pictures, tmp_path: Path) -> None:
    images = pictures("a.png", "b.png")
    file = write(tmp_path, "coco.json", coco("a.png", "b.png", boxes=[[10, 20, 30, 40], [1, 2, 3, 4]]))
    assert read_boxes(file, images) == {
        str(images[0]): (GivenBox((10, 20, 40, 60), "crack"), GivenBox((1, 2, 4, 6), "crack")),
        str(images[1]): (),
    }


def test_coco_without_categories_has_no_labels(pictures, tmp_path: Path) -> None:
    content = coco("a.png", boxes=[[10, 20, 30, 40]])
    del content["categories"]
    (boxes,) = read_boxes(write(tmp_path, "coco.json", content), pictures("a.png")).values()
    assert boxes == (GivenBox((10, 20, 40, 60), None),)


def test_a_plain_mapping_of_json(pictures, tmp_path: Path) -> None:
    file = write(tmp_path, "boxes.json", {"a.png": [[1, 2, 3, 4], [5, 6, 7.5, 8]], "b.png": []})
    assert boxes_of(file, pictures("a.png", "b.png")) == [[(1, 2, 3, 4), (5, 6, 7.5, 8)], []]


@pytest.mark.parametrize(
    "text",
    [
        "image,x0,y0,x1,y1,label\na.png,10,20,40,60,dent\n",
        "image,x0,y0,x1,y1\na.png,10,20,40,60\n",
        "a.png,10,20,40,60,dent\n",
        "\ufeffimage;x1;y1;x2;y2;label\r\na.png;10;20;40,0;60;dent\r\n\r\n",
        "label,file_name,x,y,width,height\ndent,a.png,10,20,30,40\n",
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,100,80,dent,10,20,40,60\n",
        'Image , X0, Y0, X1, Y1\n"a.png", 10, 20, 40, 60\n',
    ],
)
def test_csv_of_every_dialect(pictures, tmp_path: Path, text: str) -> None:
    (boxes,) = read_boxes(write(tmp_path, "boxes.CSV", text), pictures("a.png")).values()
    assert boxes == (GivenBox((10, 20, 40, 60), "dent" if "dent" in text else None),)


def test_a_line_without_numbers_says_that_the_image_has_no_box(pictures, tmp_path: Path) -> None:
    file = write(tmp_path, "boxes.csv", "image,x0,y0,x1,y1\na.png,,,,\n")
    assert boxes_of(file, pictures("a.png")) == [[]]


def test_a_folder_of_yolo_files(pictures, tmp_path: Path) -> None:
    images = pictures("a.png", "b.png", "c.png")
    write(tmp_path, "labels/a.txt", "1 0.5 0.5 0.2 0.5\n\n0 0.1 0.1 0.1 0.1 0.93\n")
    write(tmp_path, "labels/b.txt", "")
    write(tmp_path, "labels/classes.txt", "dent\nscratch\n")
    write(tmp_path, "labels/README.txt", "drawn by hand\n")
    found = list(read_boxes(tmp_path / "labels", images).values())
    assert [box.label for box in found[0]] == ["scratch", "dent"]
    assert found[0][0].box_xyxy == pytest.approx((40, 20, 60, 60))
    assert found[0][1].box_xyxy == pytest.approx((5, 4, 15, 12))
    assert found[1:] == [(), ()]


def test_yolos_six_digits_make_no_box_larger(pictures, tmp_path: Path) -> None:
    (image,) = pictures("a.png")
    (width, height), (x0, y0, x1, y1) = (100, 80), (7, 3, 52, 29)
    shares = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
    write(tmp_path, "labels/a.txt", f"0 {' '.join(f'{share:.6f}' for share in shares)}\n")
    found = GivenBoxes(read_boxes(tmp_path / "labels", [image])[str(image)]).localize(
        np.zeros((height, width, 3), np.uint8)
    )
    assert found.regions[0].box_xyxy == (x0, y0, x1, y1)


@pytest.mark.parametrize("names", ["names: [dent, scratch]", "names:\n  0: dent\n  1: scratch"])
def test_yolo_polygons_and_the_names_of_data_yaml(pictures, tmp_path: Path, names: str) -> None:
    images = pictures("images/val/a.png")
    write(tmp_path, "set/labels/val/a.txt", "1 0.2 0.1 0.5 0.4 0.3 0.9\n")
    write(tmp_path, "set/data.yaml", f"train: images/train\n{names}\n")
    for folder in (tmp_path / "set" / "labels", tmp_path / "set"):
        ((box,),) = read_boxes(folder, images).values()
        assert box.label == "scratch"
        assert box.box_xyxy == pytest.approx((20, 8, 50, 72))


def test_yolo_without_names_keeps_the_number(pictures, tmp_path: Path) -> None:
    write(tmp_path, "labels/a.txt", "3 0.5 0.5 0.2 0.5")
    ((box,),) = read_boxes(tmp_path / "labels", pictures("a.jpg")).values()
    assert box.label == "3"


def test_yolo_takes_the_size_of_a_picture_as_it_is_seen(pictures, tmp_path: Path) -> None:
    (image,) = pictures("a.jpg")
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter: seen, it is 80 wide and 100 high
    Image.new("RGB", (100, 80)).save(image, exif=exif)
    write(tmp_path, "labels/a.txt", "0 0.5 0.5 1 1")
    assert boxes_of(tmp_path / "labels", [image]) == [[pytest.approx((0, 0, 80, 100))]]


# Whose boxes they are


def test_like_named_images_of_two_folders_are_told_apart(pictures, tmp_path: Path) -> None:
    good, broken = pictures(*PAIR)
    content = coco("broken_large/000.png", boxes=[[10, 20, 30, 40]])
    assert boxes_of(write(tmp_path, "b.json", content), [good, broken]) == [[], [(10, 20, 40, 60)]]
    with pytest.raises(BoxesError, match=r"b.json: names none of the given images .*such as broken_large/000.png"):
        read_boxes(tmp_path / "b.json", [good])


def test_paths_of_another_machine(pictures, tmp_path: Path) -> None:
    good, broken = pictures(*PAIR)
    for root in ("/home/somebody/bottle/test/", "C:\\data\\bottle\\", "//server/share/x/"):
        names = [f"{root}{folder}/000.png" for folder in ("broken_large", "good")]
        if "\\" in root:
            names = [name.replace("/", "\\") for name in names]
        file = write(tmp_path, "coco.json", coco(*names, boxes=[[10, 20, 30, 40]]))
        assert boxes_of(file, [good, broken]) == [[], [(10, 20, 40, 60)]]
        assert boxes_of(file, [good]) == [[]]


def test_boxes_of_one_folder_are_not_those_of_its_neighbour(pictures, tmp_path: Path) -> None:
    good, broken = pictures(*PAIR)
    for name in (str(broken), "/elsewhere/test/broken_large/000.png"):
        with pytest.raises(BoxesError, match="names none of the given images"):
            read_boxes(write(tmp_path, "coco.json", coco(name, boxes=[[10, 20, 30, 40]])), [good])


def test_pictures_that_were_moved_into_another_folder(pictures, tmp_path: Path) -> None:
    images = pictures("new/IMG_1.png", "new/IMG_2.png")
    file = write(tmp_path, "coco.json", coco("/old/place/IMG_1.png", "/old/place/IMG_2.png", boxes=[[10, 20, 30, 40]]))
    assert boxes_of(file, images) == [[(10, 20, 40, 60)], []]


def test_a_name_that_fits_several_images_is_refused(pictures, tmp_path: Path) -> None:
    file = write(tmp_path, "boxes.csv", "image,x0,y0,x1,y1\n000.png,10,20,40,60\n")
    with pytest.raises(BoxesError, match=r"boxes.csv: 000.png could be .*good.* or .*broken_large.*; name the images"):
        read_boxes(file, pictures(*PAIR))


def test_the_picture_in_the_folder_above_is_meant_where_the_other_has_a_name_of_its_own(
    pictures, tmp_path: Path
) -> None:
    images = pictures("000.png", "good/000.png")
    text = "image,x0,y0,x1,y1\n000.png,1,2,3,4\n./good/000.png,5,6,7,8\ngood/000.png,50,60,70,80\n"
    assert boxes_of(write(tmp_path, "boxes.csv", text), images) == [[(1, 2, 3, 4)], [(5, 6, 7, 8), (50, 60, 70, 80)]]


def test_images_that_the_file_does_not_know_have_no_boxes_and_others_names_are_passed_over(
    pictures, tmp_path: Path
) -> None:
    text = "image,x0,y0,x1,y1\nz.png,500,500,600,600\na.png,1,2,3,4\n"
    assert boxes_of(write(tmp_path, "boxes.csv", text), pictures("a.png", "b.png")) == [[(1, 2, 3, 4)], []]


def test_names_are_the_same_however_their_letters_are_composed(pictures, tmp_path: Path) -> None:
    images = pictures("Prüfling.png")
    file = write(tmp_path, "boxes.csv", "image,x0,y0,x1,y1\nPru\u0308fling.png,1,2,3,4\n")
    assert boxes_of(file, images) == [[(1, 2, 3, 4)]]


def test_relative_images_are_known_by_their_absolute_path(pictures, tmp_path: Path, monkeypatch) -> None:
    (image,) = pictures("a.png")
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path, "boxes.csv", "image,x0,y0,x1,y1\ndata/a.png,1,2,3,4\n")
    assert list(read_boxes(file, [Path("other/../data/a.png")])) == [str(image)]


def test_a_picture_that_cannot_be_read_is_no_error_here(pictures, tmp_path: Path) -> None:
    images = pictures("a.png", "b.png")
    images[0].write_text("no picture")
    file = write(tmp_path, "boxes.csv", "image,x0,y0,x1,y1\na.png,1,2,3,4\nb.png,1,2,3,4\n")
    assert boxes_of(file, images)[1] == [(1, 2, 3, 4)]


# Faults


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a.png,50,60,40,90", ["line 2", "x 50 to 40"]),
        ("a.png,50,60,60,60", ["line 2", "y 60 to 60"]),
        ("a.png,a,60,40,90", ["line 2", "'a' is not a number"]),
        ("a.png,nan,60,70,90", ["line 2", "'nan' is not a number"]),
        ("a.png,0,0,1e400,90", ["line 2", "is not a number"]),
        ("a.png,0,,70,90", ["line 2", "'' is not a number"]),
        ("a.png,100,0,120,20", ["line 2", "100, 0, 120, 20 lies outside the image a.png, 100 x 80"]),
        ("a.png,-9,-9,0,0", ["line 2", "outside"]),
        ("a.png,1,2,3", ["line 2", "has 4 columns"]),
    ],
)
def test_a_box_that_cannot_be_is_named_with_its_line(pictures, tmp_path: Path, row: str, words: list[str]) -> None:
    file = write(tmp_path, "boxes.csv", f"image,x0,y0,x1,y1\n{row}\n")
    with pytest.raises(BoxesError) as caught:
        read_boxes(file, pictures("a.png"))
    assert [word for word in ["boxes.csv", "; ", *words] if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.5 0.5 -0.2 0.5", ["a.txt, line 1", "no area"]),
        ("0 50 50 20 20", ["a.txt, line 1", "outside", "shares"]),
        ("0 0.5 0.5", ["a.txt, line 1", "3 columns"]),
        ("dent 0.5 0.5 0.2 0.2", ["a.txt, line 1", "'dent' is not a number"]),
    ],
)
def test_a_yolo_line_that_cannot_be_is_named(pictures, tmp_path: Path, line: str, words: list[str]) -> None:
    write(tmp_path, "labels/a.txt", line)
    with pytest.raises(BoxesError) as caught:
        read_boxes(tmp_path / "labels", pictures("a.png"))
    assert [word for word in ["labels", "; ", *words] if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (coco("a.png", boxes=[[10, 20, 0, 40]]), ["annotation 0", "no area"]),
        (coco("a.png", boxes=[[10, 20, "?", 40]]), ["annotation 0", "'?' is not a number"]),
        (coco("a.png", boxes=[[10, 20, True, 40]]), ["annotation 0", "True is not a number"]),
        (coco("a.png", boxes=[[10, 20, 30]]), ["annotation 0", "is not a box"]),
        (
            {
                "images": [{"id": 1, "file_name": "a.png", "width": 50, "height": 40}],
                "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}],
            },
            ["annotation 0", "a.png is 100 x 80, and 50 x 40 in the file"],
        ),
        ({"images": [], "annotations": [{"image_id": 4}]}, ["annotation 0", "no image has the id 4"]),
        ({"images": [{"id": 1}], "annotations": []}, ["not valid COCO", "file_name"]),
        ({"images": 3, "annotations": []}, ["not valid COCO"]),
        ({"images": [], "annotations": []}, ["names none of the given images (0 names)"]),
        ([[1, 2, 3, 4]], ["neither COCO's images and annotations nor boxes by image"]),
        ({"a.png": [1, 2, 3, 4]}, ["box 1 of a.png", "1 is not a box"]),
        ({"a.png": [], "b.png": [[5, 6, 5, 9]]}, ["box 1 of b.png", "x 5 to 5"]),
        ('{"images": [', ["not valid JSON"]),
        ("[" * 100_000, ["not valid JSON"]),
        ('{"a.png": [[1, 2, NaN, 4]]}', ["nan is not a number"]),
    ],
)
def test_json_that_cannot_be_used(pictures, tmp_path: Path, content: object, words: list[str]) -> None:
    file = write(tmp_path, "boxes.json", content)
    with pytest.raises(BoxesError) as caught:
        read_boxes(file, pictures("a.png"))
    assert [word for word in ["boxes.json", "; ", *words] if word not in str(caught.value)] == []
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("boxes.csv", b"picture,left,top\na.png,1,2\n", "names no columns of a box .*begin the file with"),
        ("boxes.csv", b"", "names none of the given images"),
        ("boxes.csv", b"\xff\xfe\x00i", "is not UTF-8 text"),
        ("boxes.csv", b'image,x0,y0,x1,y1\n"' + b"a" * 200_000, "is not CSV"),
        ("boxes.xml", b"<boxes/>", "is not a kind of boxes file"),
        ("boxes.txt", b"0 0.5 0.5 0.1 0.1", "folder of YOLO"),
    ],
)
def test_a_file_that_is_none(pictures, tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BoxesError, match=words):
        read_boxes(tmp_path / name, pictures("a.png"))


def test_a_file_that_is_not_there_and_a_folder_without_labels(pictures, tmp_path: Path) -> None:
    with pytest.raises(BoxesError, match=r"nowhere.json: cannot be read .*; check the path"):
        read_boxes(tmp_path / "nowhere.json", pictures("a.png"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BoxesError, match="empty: names none of the given images"):
        read_boxes(tmp_path / "empty", pictures("a.png"))


def test_class_names_that_are_none(pictures, tmp_path: Path) -> None:
    write(tmp_path, "labels/a.txt", "0 0.5 0.5 0.1 0.1")
    for broken in ("names: 3", "train: x", "names: [", "- a"):
        write(tmp_path, "labels/data.yaml", broken)
        with pytest.raises(BoxesError, match=r"data.yaml: has no list of class names"):
            read_boxes(tmp_path / "labels", pictures("a.png"))


def test_files_beyond_the_limit_are_refused_before_they_are_read(pictures, tmp_path: Path) -> None:
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(box_files.MAX_BYTES + 1)  # holds no bytes on disk
    with pytest.raises(BoxesError, match=r"huge.json: is larger than 200 MB"):
        read_boxes(huge, pictures("a.png"))
    (tmp_path / "labels").mkdir()
    huge.rename(tmp_path / "labels" / "a.txt")
    with pytest.raises(BoxesError, match="is larger than 200 MB"):
        read_boxes(tmp_path / "labels", pictures("a.png"))


def test_thousands_of_images_are_matched_at_once(tmp_path: Path) -> None:
    images = [tmp_path / f"lot{lot}" / f"{number:03d}.png" for lot in range(100) for number in range(50)]
    rows = "".join(f"lot{lot}/{number:03d}.png,1,2,3,4\n" for lot in range(100) for number in range(50))
    found = read_boxes(write(tmp_path, "boxes.csv", f"image,x0,y0,x1,y1\n{rows}"), images)
    assert len(found) == 5000  # none of them exists: their boxes are nobody's, and no error


# The localizer


def test_the_localizer_answers_with_the_boxes_in_their_order() -> None:
    boxes = (GivenBox((30, 40, 60, 50), "dent"), GivenBox((1.2, 2.7, 3.1, 4.0), None))
    answer = GivenBoxes(boxes).localize(np.zeros((80, 100, 3), np.uint8))
    assert answer.anomaly_map is None
    assert answer.pred_score == 1.0
    assert answer.original_hw == (80, 100)
    assert [(region.box_xyxy, region.label, region.score, region.mask) for region in answer.regions] == [
        ((30, 40, 60, 50), "dent", 1.0, None),
        ((1, 2, 4, 4), None, 1.0, None),
    ]
    assert answer.regions[0].peak_xy == (45, 45)


def test_an_image_without_boxes_is_good() -> None:
    answer = GivenBoxes(()).localize(np.zeros((80, 100, 3), np.uint8))
    assert (answer.pred_score, answer.regions) == (0.0, ())


@given(
    st.tuples(st.floats(-200, 200), st.floats(-200, 200)),
    st.tuples(st.floats(0.1, 500), st.floats(0.1, 500)),
)
def test_boxes_over_the_border_are_cut_to_the_image(corner: tuple[float, float], size: tuple[float, float]) -> None:
    box = (*corner, corner[0] + size[0], corner[1] + size[1])
    answer = GivenBoxes((GivenBox(box, None),)).localize(np.zeros((80, 100, 3), np.uint8))
    touches = box[0] < 100 and box[1] < 80 and box[2] > 0 and box[3] > 0
    assert bool(answer.regions) == touches == bool(answer.pred_score)
    for region in answer.regions:
        x0, y0, x1, y1 = region.box_xyxy
        assert 0 <= x0 < x1 <= 100
        assert 0 <= y0 < y1 <= 80
        assert x0 <= max(box[0], 0)
        assert x1 >= min(box[2], 100)
        assert x0 < region.peak_xy[0] < x1
        assert y0 < region.peak_xy[1] < y1
