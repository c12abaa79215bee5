"""Pictures on the way in: find them, and open them whatever they are. How large ones are tiled stands in `tiles.py`.

Pillow decodes: it says the size before, reads every variant of a format, and tells in one exception that a file is cut.
Measured at 900 x 900 on one core: PNG 16 ms, JPEG 2.8 ms, where OpenCV takes 13.5 and 2.0. OpenCV decodes only 16-bit
colour, of which Pillow keeps eight bits, and WebP, for which Pillow takes twice the time and memory.
"""

from __future__ import annotations

import difflib
import glob
import io
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from sam_inspect.errors import ImageError, SamInspectError, UsageError
from sam_inspect.records import Rgb

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "find_images",
    "read_image",
    "read_size",
    "scaled",
    "suffix_of",
]


IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 200_000_000
PILLOW_PIXELS = Image.MAX_IMAGE_PIXELS or MAX_PIXELS
STRIP_BYTES = 1 << 20
COPY_AGAIN = "copy it again from the camera, or save it as an 8- or 16-bit PNG"

# Named here rather than left to `Image.open`: no reader that runs another program (EPS), and our own limit of size.
_READERS: tuple[tuple[tuple[bytes, ...], type[ImageFile], str], ...] = (
    ((b"\x89PNG\r\n\x1a\n",), PngImageFile, ".png"),
    ((b"\xff\xd8\xff",), JpegImageFile, ".jpg"),
    ((b"BM",), BmpImageFile, ".bmp"),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImageFile, ".tif"),
    ((b"RIFF",), WebPImageFile, ".webp"),
)
_ORIENTATION, _BITS, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT = 274, 258, 262, 284, 339  # tags of EXIF and TIFF
_LIMIT = threading.Lock()
_GREY, _RGB = 1, 2  # values of _PHOTOMETRIC


def find_images(arguments: Sequence[str | Path]) -> list[Path]:
    """The pictures that a command line names, in natural order (img2 before img10) within each argument, each once.

    Args:
        arguments: folders (searched at any depth), files (of any suffix), and globs (`**` too). In folders and globs
            only files with one of `IMAGE_SUFFIXES` are taken, and hidden files and folders are passed over.

    Raises:
        UsageError: a path that does not exist or may not be read, a folder without a picture, a glob that matches none.
    """
    if not arguments:
        raise UsageError("no pictures are named", "name folders, files or globs")
    found: dict[str, Path] = {}
    for argument in map(str, arguments):
        try:
            paths = _named(argument)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UsageError(f"{argument}: cannot be read ({reason})", "allow this user to read it") from error
        for path in paths:
            found.setdefault(os.path.normpath(Path(path).absolute()), Path(path))
    return list(found.values())


def _named(argument: str) -> list[str]:
    """What one argument names."""
    path = Path(argument)
    if path.is_dir():
        return _in_folder(argument)
    if path.exists():
        return [argument]
    if glob.has_magic(argument):
        return _matching(argument)
    raise UsageError(f"{argument}: does not exist", _nearest_sibling(path))


def _in_folder(folder: str) -> list[str]:
    """Pictures of a folder, as `_below` finds them; at least one."""
    if found := _below(folder):
        return found
    raise UsageError(f"{folder}: holds no picture", f"picture files end in {', '.join(sorted(IMAGE_SUFFIXES))}")


def _below(folder: str) -> list[str]:
    """Pictures of a folder and those below it, links followed, each folder visited once."""
    found, visited = [], set()
    for here, folders, files in os.walk(folder, onerror=_cannot_list, followlinks=True):
        status = Path(here).stat()
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=_natural)
        pictures = (name for name in files if _is_picture(name) and not name.startswith("."))
        found += [os.path.join(here, name) for name in sorted(pictures, key=_natural)]  # noqa: PTH118 (thousands)
    return found


def _matching(pattern: str) -> list[str]:
    """Pictures that a glob matches, and those in the folders that it matches."""
    found: list[str] = []
    matches = sorted(glob.glob(pattern, recursive=True), key=_natural)  # noqa: PTH207 (it passes over hidden files)
    for match in matches:
        if Path(match).is_dir():
            found += [] if pattern.endswith("**") else _below(match)
        elif _is_picture(match):
            found.append(match)
    if not found:
        others = f"but {len(matches)} other files" if matches else "nor anything else"
        raise UsageError(f"{pattern}: matches no picture, {others}", "check the folder and the pattern")
    return found


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 (thousands of names)


def _natural(name: str) -> tuple[list[str | int], str]:
    """Sort key: numbers by value, case set aside."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name.casefold()))], name


def _cannot_list(error: OSError) -> None:
    raise UsageError(f"{error.filename}: cannot be listed ({error.strerror})", "allow this user to read it") from error


def _nearest_sibling(path: Path) -> str:
    """The remedy for a path that does not exist: what is there under nearly that name."""
    missing = path
    while not missing.parent.is_dir():
        missing = missing.parent
    near = difflib.get_close_matches(missing.name, [entry.name for entry in missing.parent.iterdir()], n=1)
    return f"did you mean {missing.with_name(near[0])}?" if near else "check the path"


def read_image(
    source: str | Path | bytes | NDArray[Any],
    *,
    max_pixels: int = MAX_PIXELS,
    bit_depth: int | None = None,
    name: str = "image",
) -> Rgb:
    """A picture as (H, W, 3) uint8 RGB, C-contiguous, turned as EXIF says.

    Grey is repeated into three channels; palettes, 1-bit and CMYK become RGB; alpha is dropped, never blended, since
    the pixels are measurements; of several frames or pages the first is read; colour profiles are not applied.

    16-bit pictures are scaled from the full range of their bit depth, 65535 to 255 (4095 to 255 for 12-bit TIFF), and
    never by what the single picture holds, so that brightness stays comparable from picture to picture. Cameras of 10
    or 12 bits that leave the upper bits of a 16-bit file empty would come out black: such a picture is refused, unless
    `bit_depth` says how many bits the camera fills.

    Args:
        source: a file, its bytes, or an array: (H, W) grey, (H, W, 3) RGB, (H, W, 4) RGBA, uint8 or uint16. A
            contiguous (H, W, 3) uint8 array is returned as it is, not copied.
        max_pixels: larger files are refused before they are decoded.
        bit_depth: bits in use of 16-bit samples, 8 to 16; None: as many as the file says.
        name: what errors call bytes and arrays.

    Raises:
        ImageError: the picture is missing, cut, too large, not a picture, or of a kind that is not read.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, name, bit_depth)
    with _opened(source, name, max_pixels) as (picture, label):
        if isinstance(picture, TiffImageFile):
            _refuse_odd_samples(picture, label)
        orientation = _orientation(picture)  # before it is decoded, as `read_size` knows it
        deep = _is_deep(picture)
        if deep or isinstance(picture, WebPImageFile):
            pixels = _by_opencv(picture, label, bit_depth)
        else:
            pixels = _by_pillow(picture)
        del picture  # frees the decoder's copy before a turned one is made
        return _turned(pixels, orientation)


def scaled(image: Rgb, hw: tuple[int, int]) -> Rgb:
    """The image at (height, width): by area where it shrinks, else bilinear."""
    by = cv2.INTER_AREA if hw[0] < image.shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, hw[::-1], interpolation=by), np.uint8)


def read_size(source: str | Path | bytes, *, max_pixels: int = MAX_PIXELS, name: str = "image") -> tuple[int, int]:
    """(H, W) of what `read_image` would return, from the file's header alone.

    Raises:
        ImageError: the file is missing, too large, or does not begin as a picture.
    """
    with _opened(source, name, max_pixels, whole=False) as (picture, _):
        width, height = picture.size
        turned = _orientation(picture) >= 5
    return (width, height) if turned else (height, width)


def suffix_of(image: bytes) -> str | None:
    """How files of that kind end, by what they begin with; None for no picture."""
    return next((suffix for magics, _, suffix in _READERS if image.startswith(magics)), None)


@contextmanager
def _opened(
    source: str | Path | bytes, name: str, max_pixels: int, whole: bool = True
) -> Iterator[tuple[ImageFile, str]]:
    """The picture with its header read and its size checked, and what to call it; whatever fails is an ImageError."""
    file, label = _file(source, name)
    with file:
        try:
            _check(_header(file, label), label, max_pixels, whole)
            yield _header(file, label), label  # opened anew, and not kept here: the caller frees it
        except SamInspectError:
            raise
        except Exception as error:  # decoders fail in many ways on bytes that anyone may have written
            reason = str(error) or type(error).__name__
            raise ImageError(f"{label}: is cut, broken or of a kind that is not read ({reason})", COPY_AGAIN) from error


def _file(source: str | Path | bytes, name: str) -> tuple[BinaryIO, str]:
    """The open file and what to call it."""
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source), name
    if not isinstance(source, str | Path):
        raise ImageError(f"{name}: is not a picture but {type(source).__name__}", "give a path, bytes or an array")
    try:
        path = Path(source)
        if path.is_fifo() or path.is_char_device():  # whose bytes may never come, or never end
            raise ImageError(f"{source}: is a pipe or a device", "copy the picture into a file")
        return path.open("rb"), str(source)
    except (OSError, TypeError, ValueError) as error:
        remedies: dict[type[Exception], str] = {
            FileNotFoundError: "check the path",
            IsADirectoryError: "name the pictures in it",
            PermissionError: "allow this user to read it",
        }
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"{source}: cannot be read ({reason})", remedies.get(type(error), "check the path")) from error


def _header(file: BinaryIO, label: str) -> ImageFile:
    """The picture, not decoded yet."""
    file.seek(0)
    start = file.read(12)
    file.seek(0)
    if not start:
        raise ImageError(f"{label}: is empty, 0 bytes", "copy it again from the camera")
    for magics, reader, _ in _READERS:
        if start.startswith(magics):
            return reader(file)
    raise ImageError(f"{label}: is not a picture, it begins with {start!r}", "give a PNG, JPEG, BMP, TIFF or WebP")


def _check(picture: ImageFile, label: str, max_pixels: int, whole: bool) -> None:
    """Before decoding: a few bytes can claim a picture that fills the memory."""
    width, height = picture.size
    if width * height > max_pixels:
        millions = f"{round(width * height / 1e6, 1):,g} million pixels where {max_pixels / 1e6:,g} million are allowed"
        raise ImageError(f"{label}: {width} x {height}, {millions}", "cut it into parts or scale it down")
    if whole and isinstance(picture, PngImageFile):
        picture.verify()  # Pillow decodes a PNG that lost its end or has a wrong bit without complaint


def _refuse_odd_samples(picture: TiffImageFile, label: str) -> None:
    """TIFF can hold what no common decoder reads right; better no picture than a wrong one."""
    bits = _tag(picture, _BITS, 8)
    kind = {1: "", 2: "signed", 3: "floating-point"}.get(_tag(picture, _SAMPLE_FORMAT, 1), "unusual")
    if not kind and bits > 16:
        kind = f"{bits}-bit"
    if not kind and bits > 8 and _tag(picture, _PHOTOMETRIC, 1) not in (_GREY, _RGB):
        kind = f"{bits}-bit inverted or CMYK"
    if not kind and bits > 8 and _tag(picture, _PLANAR, 1) == 2:
        kind = f"{bits}-bit planar"
    if kind:
        raise ImageError(f"{label}: has {kind} samples, which are not read", "save it as an 8- or 16-bit PNG")


def _tag(picture: TiffImageFile, tag: int, default: int) -> int:
    """A TIFF tag, of several values (one a channel) the highest."""
    value = picture.tag_v2.get(tag, default)
    return int(max(value) if isinstance(value, tuple) else value)


def _tiff_bits(picture: ImageFile) -> int:
    return _tag(picture, _BITS, 16) if isinstance(picture, TiffImageFile) else 16


def _is_deep(picture: ImageFile) -> bool:
    """More than eight bits a sample. Pillow's mode tells it for grey; for colour only its name for the stored bytes."""
    if not isinstance(picture, PngImageFile | TiffImageFile):
        return False
    return picture.mode.startswith("I;") or ";16" in str(picture.tile[0].args)


def _by_pillow(picture: ImageFile) -> Rgb:
    """Decoded and converted strip by strip: at no time are there more than the decoded picture and the result."""
    _load(picture)
    picture.info.pop("transparency", None)
    width, height = picture.size
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, STRIP_BYTES // (3 * width))
    for top in range(0, height, rows):
        strip = picture.crop((0, top, width, min(height, top + rows)))
        pixels[top : top + rows] = np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))
    return pixels


def _load(picture: ImageFile) -> None:
    """Decodes. Pillow checks the size of a TIFF once more, against a limit of its own, which makes way for ours."""
    if picture.width * picture.height <= PILLOW_PIXELS:
        picture.load()
        return
    with _LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            picture.load()
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _by_opencv(picture: ImageFile, label: str, bit_depth: int | None) -> Rgb:
    """16-bit pictures and WebP. As stored: with IMREAD_COLOR_RGB, OpenCV 5.0 swaps the channels of a 16-bit TIFF."""
    if picture.mode.startswith("I;"):
        _load(picture)
        stored: NDArray[Any] = np.asarray(picture).astype(np.uint16, copy=False)
    else:
        assert picture.fp is not None
        picture.fp.seek(0)
        stored = np.asarray(cv2.imdecode(np.frombuffer(picture.fp.read(), np.uint8), cv2.IMREAD_UNCHANGED))
        if stored.ndim < 2:
            raise ValueError("OpenCV cannot decode it")
    if stored.dtype == np.uint16:
        stored = _to_8_bits(stored, label, bit_depth or _tiff_bits(picture))
    codes = {2: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}
    return np.asarray(cv2.cvtColor(stored, codes[stored.ndim if stored.ndim == 2 else stored.shape[2]]), np.uint8)


def _from_array(array: NDArray[Any], label: str, bit_depth: int | None) -> Rgb:
    """An array of any accepted shape as contiguous (H, W, 3) uint8."""
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not shaped or not array.size or array.dtype not in (np.uint8, np.uint16):
        wanted = "(H, W), (H, W, 3) or (H, W, 4) of uint8 or uint16"
        raise ImageError(f"{label}: expected {wanted}, got {array.shape} of {array.dtype}", "convert the array")
    array = np.ascontiguousarray(array if array.ndim == 2 else array[..., :3])
    if array.dtype == np.uint16:
        array = _to_8_bits(array, label, bit_depth or 16)
    return array if array.ndim == 3 else np.asarray(cv2.cvtColor(array, cv2.COLOR_GRAY2RGB), np.uint8)


def _to_8_bits(samples: NDArray[np.uint16], label: str, bits: int) -> Rgb:
    """Full range to full range. Refused where under 16 grey levels would be left, or where a sample does not fit."""
    full, highest = 2**bits - 1, int(samples[..., :3].max() if samples.ndim == 3 else samples.max())
    if highest > full:
        raise ImageError(f"{label}: holds {highest}, which does not fit {bits} bits", "give the camera's bit_depth")
    if highest * 16 < full:
        dark = f"its highest sample is {highest} of {full}, too dark to inspect"
        spread = "switch on the light, or let the camera fill all 16 bits (12 bits: times 16), or give its bit_depth"
        raise ImageError(f"{label}: {dark}", spread)
    return np.asarray(cv2.convertScaleAbs(samples, alpha=255 / full), np.uint8)


def _orientation(picture: ImageFile) -> int:
    """EXIF's number, 1 to 8. TIFF's is applied by the decoders themselves."""
    if isinstance(picture, TiffImageFile):
        return 1
    try:
        # The base class's, since PNG's own decodes the whole picture first.
        return int(Image.Image.getexif(picture).get(_ORIENTATION, 1))
    except Exception:  # a broken EXIF block says nothing, and the pixels beside it are good
        return 1


def _turned(pixels: Rgb, orientation: int) -> Rgb:
    """As it would be seen: EXIF tells where the stored first row and column lie."""
    turns = {
        2: lambda: cv2.flip(pixels, 1),
        3: lambda: cv2.flip(pixels, -1),
        4: lambda: cv2.flip(pixels, 0),
        5: lambda: cv2.transpose(pixels),
        6: lambda: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
        7: lambda: cv2.flip(cv2.transpose(pixels), -1),
        8: lambda: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
    }
    return np.asarray(turns[orientation](), np.uint8) if orientation in turns else pixels
