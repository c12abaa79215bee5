"""Every picture that a plant may hold, and every way in which it may be spoilt."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from sam_inspect.errors import ImageError, UsageError
from sam_inspect.images import find_images, read_image, read_size

NOBODY = 65534


def part(height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    """A smooth picture in which no two corners are alike."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 128 // (width + height)], -1).astype(np.uint8)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def by_opencv(array: NDArray[Any], suffix: str) -> bytes:
    bgr = array if array.ndim == 2 else np.concatenate([array[..., 2::-1], array[..., 3:]], -1)
    return bytes(cv2.imencode(suffix, bgr)[1])


def tiff(samples: NDArray[Any], *, bits: int, photometric: int, kind: int = 1, planar: int = 1, turn: int = 1) -> bytes:
    """An uncompressed TIFF of any sample format: what writers of measuring cameras produce and Pillow does not."""
    height, width = samples.shape[:2]
    channels = samples.shape[2] if samples.ndim == 3 else 1
    data = np.moveaxis(samples, 2, 0).tobytes() if planar == 2 else samples.tobytes()
    share = len(data) // channels
    values = {256: [width], 257: [height], 258: [bits] * channels, 259: [1], 262: [photometric]}
    values |= {273: [8 + i * share for i in range(channels)] if planar == 2 else [8], 274: [turn], 277: [channels]}
    values |= {278: [height], 279: [share] * channels if planar == 2 else [len(data)], 284: [planar]}
    values[339] = [kind] * channels
    entries, beyond = b"", b""
    start = 8 + len(data) + 2 + 12 * len(values) + 4
    for tag, numbers in values.items():
        packed = struct.pack(f"<{len(numbers)}I", *numbers)
        if len(packed) > 4:
            packed, beyond = struct.pack("<I", start + len(beyond)), beyond + packed
        entries += struct.pack("<HHI", tag, 4, len(numbers)) + packed
    directory = struct.pack("<H", len(values)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + beyond


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder as a line computer leaves it."""
    for name in ["img10.png", "img2.png", "IMG1.PNG", "notes.txt", ".hidden.png", "Thumbs.db", "shift2/a.JPEG"]:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "img3.png").write_bytes(b"x")
    return tmp_path


def names(found: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in found]


def test_a_folder_gives_its_pictures_in_the_order_a_person_counts(pictures: Path) -> None:
    assert names(find_images([pictures]), pictures) == ["IMG1.PNG", "img2.png", "img10.png", "shift2/a.JPEG"]


def test_each_picture_is_inspected_once_however_often_it_is_named(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures)
    found = find_images(["img10.png", "./img10.png", pictures / "shift2" / ".." / "img10.png", ".", "*.png"])
    assert [str(path) for path in found] == ["img10.png", "IMG1.PNG", "img2.png", "shift2/a.JPEG"]


def test_a_file_named_outright_is_taken_whatever_its_suffix(pictures: Path) -> None:
    assert find_images([str(pictures / "notes.txt")]) == [pictures / "notes.txt"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["img2.png", "img10.png"]),
        ("**/*.JPEG", ["shift2/a.JPEG"]),
        ("**", ["IMG1.PNG", "img2.png", "img10.png", "shift2/a.JPEG"]),
        ("shift?", ["shift2/a.JPEG"]),
        ("*", ["IMG1.PNG", "img2.png", "img10.png", "shift2/a.JPEG"]),
    ],
)
def test_a_quoted_glob_gives_the_pictures_it_matches(pictures: Path, pattern: str, expected: list[str]) -> None:
    assert names(find_images([str(pictures / pattern)]), pictures) == expected


def test_a_glob_that_matches_folders_gives_what_is_in_them(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").mkdir()
    (tmp_path / "a.png" / "b.png").write_bytes(b"x")
    for pattern in ("*", "*.png", "**"):
        assert names(find_images([str(tmp_path / pattern)]), tmp_path) == ["a.png/b.png"]


def test_bytes_of_any_kind_are_a_picture() -> None:
    data = encoded(Image.new("RGB", (3, 2)), "PNG")
    assert read_image(memoryview(data)).shape == read_image(bytearray(data)).shape == (2, 3, 3)  # type: ignore[arg-type]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "part[1].png").write_bytes(b"x")
    assert find_images([str(tmp_path / "part[1].png")]) == [tmp_path / "part[1].png"]


def test_linked_folders_are_followed_and_a_loop_of_links_ends(pictures: Path, tmp_path_factory: Any) -> None:
    line = tmp_path_factory.mktemp("line")
    (line / "archive").symlink_to(pictures)
    (pictures / "shift2" / "back").symlink_to(pictures)
    assert len(find_images([line])) == 4


@pytest.mark.parametrize(
    ("argument", "problem", "remedy"),
    [
        ("img3.pgn", "img3.pgn: does not exist", "img"),
        ("shift/a.JPEG", "shift/a.JPEG: does not exist", "did you mean"),
        ("zzzz", "zzzz: does not exist", "check the path"),
        ("empty", "empty: holds no picture", ".png"),
        ("only_text", "only_text: holds no picture", ".tif"),
        ("*.webp", "*.webp: matches no picture", "pattern"),
        ("*.txt", "*.txt: matches no picture, but 1 other files", "pattern"),
    ],
)
def test_an_argument_that_names_no_picture_says_so(pictures: Path, argument: str, problem: str, remedy: str) -> None:
    (pictures / "empty").mkdir()
    (pictures / "only_text").mkdir()
    (pictures / "only_text" / "readme.txt").write_text("x")
    with pytest.raises(UsageError) as caught:
        find_images([pictures / "img2.png", str(pictures / argument)])
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy
    assert str(caught.value).count("\n") == 0


def test_the_nearest_name_is_offered(pictures: Path) -> None:
    with pytest.raises(UsageError, match=r"did you mean .*shift2\?"):
        find_images([pictures / "shfit2" / "a.JPEG"])


def test_no_argument_at_all_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no pictures are named"):
        find_images([])


KINDS = {"PNG": {}, "BMP": {}, "TIFF": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}


@pytest.mark.parametrize("kind", KINDS)
def test_colours_arrive_as_red_green_blue(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "part.png"
    file.write_bytes(encoded(Image.fromarray(part()), kind, **KINDS[kind]))
    pixels = read_image(file)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert np.abs(pixels.astype(int) - part()).max() <= (3 if kind == "JPEG" else 0)
    assert np.array_equal(pixels, read_image(file.read_bytes()))
    assert read_size(file) == (40, 60)


def test_a_large_picture_is_read_strip_by_strip_without_a_seam() -> None:
    large = part(1100, 900)
    assert np.array_equal(read_image(encoded(Image.fromarray(large), "PNG")), large)


def test_real_pictures_are_read_as_opencv_reads_them(shared: Path) -> None:
    for file in find_images([shared / "data" / "mvtec_bottle" / "test" / "broken_large"])[:3]:
        assert np.array_equal(read_image(file), cv2.imread(str(file))[..., ::-1])


def test_grey_palette_one_bit_and_alpha_all_become_rgb() -> None:
    grey = Image.fromarray(part()).convert("L")
    expected = np.repeat(np.asarray(grey)[..., None], 3, -1)
    assert np.array_equal(read_image(encoded(grey, "PNG")), expected)
    assert np.array_equal(read_image(encoded(grey, "TIFF", compression="tiff_lzw")), expected)
    palette = Image.fromarray(part()).quantize(64)
    assert np.array_equal(read_image(encoded(palette, "PNG")), np.asarray(palette.convert("RGB")))
    assert np.array_equal(read_image(encoded(palette, "BMP")), np.asarray(palette.convert("RGB")))
    one_bit = grey.convert("1")
    assert np.array_equal(read_image(encoded(one_bit, "PNG"))[..., 1], np.asarray(one_bit) * np.uint8(255))


def test_alpha_is_dropped_and_never_darkens_a_pixel() -> None:
    alpha = np.random.default_rng(0).integers(0, 256, (40, 60, 1), np.uint8)
    rgba = Image.fromarray(np.concatenate([part(), alpha], -1))
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert np.array_equal(read_image(encoded(rgba, kind, **options)), part()), kind
    grey = rgba.convert("LA")
    assert np.array_equal(read_image(encoded(grey, "PNG"))[..., 0], np.asarray(grey)[..., 0])


def test_a_palette_with_transparent_entries_is_read_without_a_warning() -> None:
    data = encoded(Image.fromarray(part()).quantize(16), "PNG", transparency=bytes(range(16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(data).shape == (40, 60, 3)


def test_a_cmyk_jpeg_looks_like_the_part() -> None:
    data = encoded(Image.fromarray(part()).convert("CMYK"), "JPEG", quality=100)
    assert np.abs(read_image(data).astype(int) - part()).mean() < 2


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_camera_held_sideways_gives_an_upright_part(kind: str, turn: int) -> None:
    exif = Image.Exif()
    exif[274] = turn
    data = encoded(Image.fromarray(part()), kind, exif=exif, **KINDS[kind])
    upright = Image.fromarray(part())
    upright.getexif()[274] = turn
    expected = np.asarray(ImageOps.exif_transpose(upright)).astype(int)
    pixels = read_image(data)
    assert pixels.shape == expected.shape
    assert pixels.flags.c_contiguous
    assert np.abs(pixels - expected).max() <= (4 if kind == "JPEG" else 0)
    assert read_size(data) == expected.shape[:2]


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("channels", [1, 3])
def test_a_sixteen_bit_tiff_is_turned_once_and_not_twice(turn: int, channels: int) -> None:
    samples = part().astype(np.uint16)[..., 0 if channels == 1 else slice(3)] * 257
    data = tiff(samples, bits=16, photometric=1 if channels == 1 else 2, turn=turn)
    upright = Image.fromarray(part() if channels == 3 else np.repeat(part()[..., :1], 3, -1))
    upright.getexif()[274] = turn
    expected = np.asarray(ImageOps.exif_transpose(upright))
    assert np.array_equal(read_image(data), expected)
    assert read_size(data) == expected.shape[:2]


def test_a_broken_exif_block_does_not_cost_the_picture() -> None:
    data = encoded(Image.fromarray(part()), "JPEG", exif=b"Exif\0\0not a directory at all")
    assert read_image(data).shape == (40, 60, 3)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_scaled_from_their_full_range(suffix: str, channels: int) -> None:
    samples = np.random.default_rng(1).integers(0, 65536, (30, 50, channels), np.uint16)
    data = by_opencv(samples[..., 0] if channels == 1 else samples, suffix)
    expected = np.rint(samples[..., :3] / 257).astype(np.uint8)
    assert np.array_equal(read_image(data), np.broadcast_to(expected, (30, 50, 3)))
    assert read_size(data) == (30, 50)


def test_brightness_stays_comparable_between_pictures_of_one_sixteen_bit_camera() -> None:
    bright, dim = np.full((8, 8), 60000, np.uint16), np.full((8, 8), 30000, np.uint16)
    ratio = read_image(by_opencv(bright, ".png")).mean() / read_image(by_opencv(dim, ".png")).mean()
    assert ratio == pytest.approx(2, rel=0.01)


def packed_12_bits() -> tuple[bytes, NDArray[np.int64]]:
    """A TIFF of 12 bits a sample, two samples in three bytes, and what it holds."""
    samples = np.random.default_rng(2).integers(0, 4096, (20, 30))
    first, second = samples[:, ::2], samples[:, 1::2]
    triples = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1).astype(np.uint8)
    data = tiff(triples.reshape(20, 45), bits=12, photometric=1)
    return data.replace(struct.pack("<HHII", 256, 4, 1, 45), struct.pack("<HHII", 256, 4, 1, 30)), samples


def test_a_twelve_bit_tiff_says_its_range_itself() -> None:
    data, samples = packed_12_bits()
    assert np.array_equal(read_image(data)[..., 0], np.rint(samples * (255 / 4095)))


@pytest.mark.parametrize("shape", [(30, 50), (30, 50, 3), (30, 50, 4)])
def test_a_twelve_bit_camera_in_a_sixteen_bit_file_is_not_silently_black(shape: tuple[int, ...]) -> None:
    samples = np.random.default_rng(3).integers(0, 4096, shape, np.uint16)
    if len(shape) == 3:
        samples[..., 3:] = 65535  # an opaque alpha channel says nothing about the range of the colours
    data = by_opencv(samples, ".png")
    with pytest.raises(ImageError, match=r"too dark to inspect.*times 16"):
        read_image(data)
    colours = samples[..., :3] if len(shape) == 3 else samples[..., None]
    assert np.array_equal(
        read_image(data, bit_depth=12), np.broadcast_to(np.rint(colours * (255 / 4095)), (*shape[:2], 3))
    )
    with pytest.raises(ImageError, match="does not fit 10 bits"):
        read_image(data, bit_depth=10)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (encoded(Image.fromarray(np.ones((5, 5), np.float32)), "TIFF"), "floating-point"),
        (by_opencv(np.ones((5, 5, 3), np.float32), ".tif"), "unknown pixel mode"),
        (encoded(Image.fromarray(np.ones((5, 5), np.int32)), "TIFF"), "signed"),
        (tiff(np.ones((5, 5), np.uint32), bits=32, photometric=1), "32-bit"),
        (tiff(np.ones((5, 5), np.int16), bits=16, photometric=1, kind=2), "signed"),
        (tiff(np.ones((5, 5), np.int8), bits=8, photometric=1, kind=2), "signed"),
        (tiff(np.ones((5, 5), np.uint16), bits=16, photometric=0), "16-bit inverted"),
        (tiff(np.ones((5, 5, 4), np.uint16), bits=16, photometric=5), "16-bit inverted or CMYK"),
        (tiff(np.ones((5, 5, 3), np.uint16), bits=16, photometric=2, planar=2), "16-bit planar"),
    ],
)
def test_samples_that_would_be_misread_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(ImageError, match=f"{why}.*PNG"):
        read_image(data)


@pytest.mark.parametrize("kind", KINDS)
def test_one_pixel_is_a_picture(kind: str) -> None:
    data = encoded(Image.new("RGB", (1, 1), (200, 200, 200)), kind)
    assert np.abs(read_image(data).astype(int) - 200).max() <= 2
    assert read_size(data) == (1, 1)


def test_a_hundred_megapixels_cost_less_than_three_times_their_own_size(tmp_path: Path) -> None:
    coarse = np.random.default_rng(4).integers(0, 256, (90, 120, 3), np.uint8)
    file = tmp_path / "web.jpg"
    cv2.imwrite(str(file), cv2.resize(coarse, (12000, 9000), interpolation=cv2.INTER_NEAREST))
    script = """
import resource, sys
from sam_inspect.images import read_image
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
pixels = read_image(sys.argv[1])
print(pixels.shape, (peak() - before) / pixels.nbytes)
"""
    # As an error, a warning of the decoder about the size would end the script.
    run = subprocess.run([sys.executable, "-W", "error", "-c", script, str(file)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    shape, times = run.stdout.rsplit(" ", 1)
    assert shape == "(9000, 12000, 3)"
    assert float(times) < 3


@pytest.mark.parametrize("turn", [1, 6])
def test_a_large_tiff_is_read_although_pillow_alone_would_warn(
    tmp_path: Path, turn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setattr("sam_inspect.images.PILLOW_PIXELS", 1000)
    exif = Image.Exif()
    exif[274] = turn
    data = encoded(Image.fromarray(part(100, 120)), "TIFF", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(data).shape == ((100, 120, 3) if turn == 1 else (120, 100, 3))
    assert Image.MAX_IMAGE_PIXELS == 1000


def lying_png() -> bytes:
    """A few bytes that claim ten thousand million pixels."""
    data = encoded(Image.new("RGB", (1, 1)), "PNG")
    header = struct.pack(">II", 100_000, 100_000) + data[24:29]
    return data[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + data[33:]


def test_nothing_is_no_picture() -> None:
    with pytest.raises(ImageError, match="image: is not a picture but NoneType"):
        read_image(None)  # type: ignore[arg-type]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="is a pipe or a device; copy the picture into a file"):
        read_image(tmp_path / "pipe.png")


def test_a_picture_that_claims_too_many_pixels_is_refused_before_decoding(tmp_path: Path) -> None:
    file = tmp_path / "bomb.png"
    file.write_bytes(lying_png())
    for read in (read_image, read_size):
        with pytest.raises(ImageError, match=r"bomb\.png: 100000 x 100000, 10,000 million .* 200 million") as caught:
            read(file)
        assert caught.value.remedy == "cut it into parts or scale it down"


def test_the_limit_of_size_is_the_callers() -> None:
    data = encoded(Image.fromarray(part()), "PNG")
    assert read_image(data, max_pixels=2400).shape == (40, 60, 3)
    with pytest.raises(ImageError, match="60 x 40"):
        read_image(data, max_pixels=2399)


CUT = {
    "PNG": encoded(Image.fromarray(part()), "PNG"),
    "16-bit PNG": by_opencv(part().astype(np.uint16) * 257, ".png"),
    "JPEG": encoded(Image.fromarray(part()), "JPEG"),
    "progressive JPEG": encoded(Image.fromarray(part()), "JPEG", progressive=True),
    "BMP": encoded(Image.fromarray(part()), "BMP"),
    "TIFF": encoded(Image.fromarray(part()), "TIFF"),
    "deflated TIFF": encoded(Image.fromarray(part()), "TIFF", compression="tiff_adobe_deflate"),
    "WebP": encoded(Image.fromarray(part()), "WEBP"),
}


@pytest.mark.parametrize("kind", CUT)
@pytest.mark.parametrize("left", [0.02, 0.1, 0.5, 0.9, 0.97, -14, -9])
@pytest.mark.filterwarnings("ignore:.*(EXIF|Truncated).*")
def test_a_file_cut_by_a_full_disk_is_never_half_a_picture(kind: str, left: float, tmp_path: Path) -> None:
    data = CUT[kind]
    file = tmp_path / "cut.png"
    file.write_bytes(data[: int(len(data) * left) if left > 0 else int(left)])
    with pytest.raises(ImageError, match=r"cut\.png: (is cut|is not a picture|is empty)") as caught:
        read_image(file)
    assert caught.value.remedy
    assert str(caught.value).count("\n") == 0


def test_a_jpeg_that_lacks_its_very_last_byte_is_cut() -> None:
    with pytest.raises(ImageError, match="is cut"):
        read_image(CUT["JPEG"][:-1])


def test_pillow_is_not_told_to_forgive_cut_files() -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@given(st.data())
def test_one_wrong_bit_in_a_png_is_noticed(data: st.DataObject) -> None:
    good = CUT["PNG"]
    at = data.draw(st.integers(8, len(good) - 5))
    bad = bytearray(good)
    bad[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        pixels = read_image(bytes(bad))
    except ImageError:
        return
    assert np.array_equal(pixels, part())


@given(st.sampled_from(sorted(CUT)), st.data())
@pytest.mark.filterwarnings("ignore")
def test_whatever_bytes_come_there_is_a_picture_or_an_image_error(kind: str, data: st.DataObject) -> None:
    bad = bytearray(CUT[kind])
    for at in data.draw(st.lists(st.integers(0, len(bad) - 1), min_size=1, max_size=6)):
        bad[at] = data.draw(st.integers(0, 255))
    for read in (read_image, read_size):
        try:
            read(bytes(bad), max_pixels=1_000_000)
        except ImageError as error:
            assert str(error).startswith("image: ")


def test_a_text_file_named_png_says_how_it_begins(tmp_path: Path) -> None:
    file = tmp_path / "notes.png"
    file.write_text("to do:\norder lamps")
    with pytest.raises(ImageError) as caught:
        read_image(file)
    assert str(caught.value).startswith(f"{file}: is not a picture, it begins with b'to do:\\norder'; give a PNG")


def test_an_empty_file_a_folder_and_a_missing_file_each_say_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    for source, why in [
        (tmp_path / "empty.png", r"empty\.png: is empty, 0 bytes"),
        (tmp_path, "Is a directory.*name the pictures in it"),
        (tmp_path / "gone.png", r"gone\.png: cannot be read \(No such file.*check the path"),
        (tmp_path / "empty.png" / "x.png", "Not a directory"),
        (f"{tmp_path}/a\0.png", "embedded null byte"),
        (tmp_path / ("a" * 300), "File name too long"),
    ]:
        for read in (read_image, read_size):
            with pytest.raises(ImageError, match=why):
                read(source)


@pytest.fixture
def nobody() -> Iterator[None]:
    """The test as a user without rights, where it runs as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def locked() -> Iterator[Path]:
    """A folder that all may read, with a picture and a folder that nobody may read."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "night shift").mkdir(mode=0)
        (folder / "locked.png").write_bytes(CUT["PNG"])
        (folder / "locked.png").chmod(0)
        yield folder
        (folder / "night shift").chmod(0o755)


def test_what_this_user_may_not_read_says_so(locked: Path, nobody: None) -> None:
    with pytest.raises(ImageError, match=r"locked\.png: .*Permission denied.*allow this user to read it"):
        read_image(locked / "locked.png")
    for argument in (locked, locked / "night shift", locked / "night shift" / "a.png"):
        with pytest.raises(UsageError, match=r"night shift.*Permission denied.*allow this user to read it"):
            find_images([argument])


def test_arrays_are_taken_as_they_are() -> None:
    frame = part()
    assert np.shares_memory(read_image(frame), frame)
    turned = frame[:, ::-1]
    assert read_image(turned).flags.c_contiguous
    assert np.array_equal(read_image(turned), turned)
    assert np.array_equal(read_image(part()[..., 0]), np.repeat(part()[..., :1], 3, -1))
    assert np.array_equal(read_image(np.dstack([part(), part()[..., 0]])), part())
    assert np.array_equal(read_image(part().astype(np.uint16) * 257), part())


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 5, 3), np.float32),
        np.zeros((4, 5, 3), np.int64),
        np.zeros((4, 5, 2), np.uint8),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((1, 4, 5, 3), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros(5, np.uint8),
    ],
)
def test_an_array_of_another_kind_is_named_by_shape_and_dtype(array: NDArray[Any]) -> None:
    with pytest.raises(ImageError) as caught:
        read_image(array, name="camera 2")
    assert caught.value.problem.startswith("camera 2: expected (H, W), (H, W, 3) or (H, W, 4) of uint8 or uint16, got")
    assert str(array.shape) in str(caught.value)
    assert str(array.dtype) in str(caught.value)
