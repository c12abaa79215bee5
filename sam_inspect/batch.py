"""A list of images through an Inspector into an out folder: results, pictures, report, and where to resume."""

from __future__ import annotations

import difflib
import hashlib
import logging
import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sam_inspect.errors import ImageError, UsageError
from sam_inspect.exports import FACTS, is_export, load_export
from sam_inspect.images import read_image
from sam_inspect.localize.boxes import read_boxes
from sam_inspect.pipeline import Inspector, unread
from sam_inspect.progress import Progress
from sam_inspect.recipe import Recipe, load_recipe
from sam_inspect.records import Inspection
from sam_inspect.report.page import write_page
from sam_inspect.report.pictures import SUFFIXES, PictureWriter
from sam_inspect.report.writers import SUMMARY, ResultsLog, fingerprint, write_coco, write_summary

SAVE = ("results", "overlays", "masks", "maps", "report")
DEFAULT_SAVE = frozenset({"results", "overlays", "masks", "report"})
WAITING_PER_JOB = 4
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """What a run over many images came to.

    Attributes:
        inspected: images that this run inspected.
        resumed: images that an earlier run had inspected with the same recipe and settings.
        passed, failed, errors: verdicts over both.
        seconds: time of this run, without loading the networks.
        page: the report; None where it was not wanted.
    """

    inspected: int
    resumed: int
    passed: int
    failed: int
    errors: int
    seconds: float
    page: Path | None

    def exit_status(self, fail_on_defect: bool) -> int:
        """1 when an image could not be read, else 3 when a part failed and that is asked for, else 0.

        Unread images come first: a station must not take a part that nobody looked at for one that was judged.
        """
        if self.errors:
            return 1
        return 3 if fail_on_defect and self.failed else 0

    def as_row(self) -> dict[str, str]:
        """A table's one row, by column."""
        counts = (self.inspected, self.resumed, self.passed, self.failed, self.errors)
        names = ("inspected", "resumed", "pass", "fail", "errors")
        rate = f"{self.inspected / self.seconds:.1f}" if self.inspected else "-"
        return {name: str(count) for name, count in zip(names, counts, strict=True)} | {"images/s": rate}


def parse_save(text: str) -> frozenset[str]:
    """`results,masks` as a set of words of `SAVE`. Raises UsageError, naming the nearest."""
    words = frozenset(word.strip() for word in text.split(",") if word.strip())
    for word in sorted(words - set(SAVE)):
        nearest = difflib.get_close_matches(word, SAVE, n=1)
        remedy = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(SAVE)}"
        raise UsageError(f"--save {word}: no such output", remedy)
    return words


def open_inspector(
    recipe: Path | None,
    boxes: Path | None,
    images: Sequence[Path],
    device: str,
    *,
    threshold: float | None = None,
    false_reject_rate: float | None = None,
    min_area_px: int | None = None,
    runtime: str = "auto",
    precision: str = "auto",
) -> Inspector:
    """The inspector that a command line asks for: of a recipe, or of given boxes.

    With boxes, a recipe gives its choices and its tuned decoder.

    Raises:
        UsageError: neither or both of what excludes the other.
        RecipeError, BoxesError, WeightsError, PluginError: what it names cannot be used.
    """
    if threshold is not None and not math.isfinite(threshold):
        raise UsageError(f"--threshold {threshold}: is not a score", "give a number")
    if threshold is not None and false_reject_rate is not None:
        raise UsageError("--threshold and --false-reject-rate both set the threshold", "give one of them")
    if boxes is not None:
        if threshold is not None or false_reject_rate is not None:
            raise UsageError("--boxes has no threshold: every box is outlined", "leave out what sets one")
        given = read_boxes(boxes, images)
        return Inspector.from_boxes(
            given,
            device,
            recipe=_loaded(recipe) if recipe else None,
            min_area_px=min_area_px,
            runtime=runtime,
            precision=precision,
        )
    if recipe is None:
        raise UsageError("nothing says where the defects are", "give --recipe DIR, or --boxes FILE")
    return Inspector.from_recipe(
        recipe,
        device,
        threshold=threshold,
        false_reject_rate=false_reject_rate,
        min_area_px=min_area_px,
        runtime=runtime,
        precision=precision,
    )


def _loaded(folder: Path) -> Recipe:
    return load_export(folder).recipe if is_export(folder) else load_recipe(folder)


def inspect_folder(
    inspector: Inspector,
    images: Sequence[Path],
    out: Path,
    *,
    progress: Progress,
    save: frozenset[str] = DEFAULT_SAVE,
    jobs: int = 2,
) -> BatchSummary:
    """Inspects what of `images` is missing or changed in `out`, and writes everything that `save` names.

    results.jsonl is written whatever `save` says: it is what a later run resumes from. An image counts as done only
    when its pictures are on disk. What an earlier run wrote beside what `save` names is kept true, and what it drew is
    not inspected.

    Args:
        inspector: what inspects.
        images: files, in the order of the results.
        out: the folder, made where it is missing.
        progress: shows how far it is.
        save: words of `SAVE`.
        jobs: threads that write pictures beside the model.

    Raises:
        UsageError: every image is one that an earlier run drew.
        OutputError: the folder cannot be written, or the disk is full. What was done until then stays.
    """
    start = time.monotonic()
    save = save | _written_before(out)
    there = os.path.realpath(out)
    names = [str(image) for image in images if not _is_drawn(image, there)]
    if images and not names:
        raise UsageError(f"{out}: every image is one that was drawn there", "name the pictures that were inspected")
    with ResultsLog(out) as results:
        pictures = PictureWriter(out, save, results.names(names))
        run = _Run(inspector, results, pictures, _settings(inspector))
        todo = [name for name in names if not run.is_done(name)]
        run.inspect(todo, jobs, progress)
        inspections = results.finish(names)
        for problem in results.problems:
            log.warning(problem)
    page = conclude(inspector, inspections, pictures, save)
    verdicts = Counter(inspection.verdict for inspection in inspections)
    counts = (verdicts["pass"], verdicts["fail"], verdicts["error"])
    return BatchSummary(len(todo), len(names) - len(todo), *counts, time.monotonic() - start, page)


def _is_drawn(image: Path, out: str) -> bool:
    """Whether a run wrote it into that out folder, by whatever links it is reached; the folder's are followed."""
    inside = os.path.relpath(os.path.realpath(image), out)
    return bool(SUFFIXES.keys() & Path(inside).parts[:1])


def _written_before(out: Path) -> frozenset[str]:
    """The words of `SAVE` of which an earlier run left something."""
    drawn = {kind for kind in SUFFIXES if (out / kind).is_dir()}
    return frozenset(drawn | ({"results"} if (out / SUMMARY).exists() else set()))


@dataclass(frozen=True, slots=True)
class _Run:
    """One run into one out folder; `settings` is what its results depend on beside the image."""

    inspector: Inspector
    results: ResultsLog
    pictures: PictureWriter
    settings: str

    def is_done(self, image: str) -> bool:
        with_map = self.inspector.localizer is not None
        return self.results.is_done(image, self._mark(image)) and self.pictures.is_complete(image, with_map=with_map)

    def inspect(self, images: Sequence[str], jobs: int, progress: Progress) -> None:
        # Taken before a file is read: one that changes meanwhile is inspected again by the next run.
        marks = {image: self._mark(image) for image in images}
        found = self.inspector.inspect_many([Path(image) for image in images])
        with _beside(jobs) as start:
            for inspection in progress(found, "inspect", len(images)):
                if inspection.error is not None:
                    log.warning(inspection.error)
                start(self._keep, inspection, marks[inspection.image])

    def _mark(self, image: str) -> str:
        return fingerprint(image, f"{self.settings}\n{self.inspector.boxes_of(image)}")

    def _keep(self, inspection: Inspection, mark: str) -> None:
        drawn = inspection.verdict != "error" and self.pictures.save
        try:
            image = read_image(inspection.image) if drawn else None
            if image is not None and image.shape[:2] != inspection.original_hw:
                raise ImageError(f"{inspection.image}: was replaced while it was inspected", "run it again")
        except ImageError as error:  # It was there a moment ago.
            log.warning(error)
            image, inspection = None, unread(inspection.image, error)
        self.pictures.write(image, inspection)
        self.results.append(inspection, mark)


@contextmanager
def _beside(jobs: int) -> Iterator[Callable[..., None]]:
    """A function that starts work in `jobs` threads; it waits when much is waiting, and raises what work raised."""
    waiting: deque[Future[None]] = deque()
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="pictures")

    def start(work: Callable[..., None], *arguments: object) -> None:
        waiting.append(pool.submit(work, *arguments))
        while len(waiting) > jobs * WAITING_PER_JOB or (waiting and waiting[0].done()):
            waiting.popleft().result()

    try:
        yield start
        while waiting:
            waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _settings(inspector: Inspector) -> str:
    """Text that differs whenever the same image could get another result."""
    digest = hashlib.sha256()
    if inspector.recipe is not None:
        folder = inspector.recipe.folder
        for path in [folder / FACTS] if is_export(folder) else sorted(folder.glob("*.safetensors")):
            digest.update(path.read_bytes())
    parts = [version("sam-inspect"), inspector.config.model_dump_json(), repr(inspector.threshold), digest.hexdigest()]
    return "\n".join([*parts, inspector.runtime.precision, getattr(inspector.segmenter, "sha256", "")])


def conclude(
    inspector: Inspector,
    inspections: Sequence[Inspection],
    pictures: PictureWriter,
    save: frozenset[str],
    **shown: Any,
) -> Path | None:
    """The files that are about all images together; the report's path where it is wanted.

    Args:
        inspector: what inspected.
        inspections: in the order of the results.
        pictures: what wrote the pictures.
        save: words of `SAVE`.
        shown: what else `write_page` is to show: its title, its metrics.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    if "results" in save:
        write_summary(pictures.out, inspections)
        write_coco(pictures.out, inspections)
    if "report" not in save:
        return None
    recipe = inspector.recipe
    return write_page(
        pictures.out,
        inspections,
        calibration_scores=recipe.calibration_scores if recipe and inspector.threshold is not None else None,
        recipe_name=recipe.folder.name if recipe else None,
        names=pictures.names,
        **shown,
    )
