"""SAM's mask decoder tuned on a few labelled defects, and the proof on others that it helps.

`labels.py` says what is learned from and what is scored, `views.py` and `embeddings.py` what the decoder sees,
`loop.py` and `losses.py` fit it, `tuner.py` decides how far to go, `probes.py` and `scores.py` score it.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from sam_inspect.config import ChooseConfig
from sam_inspect.datasets import good_images
from sam_inspect.errors import ConfigError, DatasetError, ImageError
from sam_inspect.evaluate.figures import Figures
from sam_inspect.files import make_folder, write_text
from sam_inspect.finetune.embeddings import CachedEncoder
from sam_inspect.finetune.labels import Fold, Label, draw_shots, read_labels, read_split, split, write_split
from sam_inspect.finetune.page import PICTURES, curve_data, shots_plot, write_compare
from sam_inspect.finetune.probes import Probe, probe
from sam_inspect.finetune.scores import GAINS, Scored, as_tables, figures_of, score_label
from sam_inspect.finetune.settings import PRESETS, Settings, parse_curve, settings_of
from sam_inspect.finetune.tuner import MANY_PARTS, Tuned, Tuner, worst_gain
from sam_inspect.finetune.views import Sizes, ViewMaker
from sam_inspect.images import read_image
from sam_inspect.pipeline import Inspector
from sam_inspect.progress import Progress
from sam_inspect.recipe import BASE, TUNING, UNTUNED_CHOOSE, save_decoder
from sam_inspect.records import Rgb
from sam_inspect.segment.sam import Sam

__all__ = [
    "PRESETS",
    "Plan",
    "Settings",
    "Workbench",
    "as_tables",
    "finetune",
    "parse_curve",
    "settings_of",
    "whole_folds",
]

FITS, FIGURES, SPLIT = "fits", "figures.json", "split.csv"
GOOD_PARTS = 20
FEW_HELD_OUT = 0.05  # One or two images of a type say little: to take a decoder away they must say it clearly.
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """Which labels are learned from, which are scored.

    Attributes:
        shots: learn from so many labelled images; all that may be for None.
        folds: cross-validate over so many folds; 1 holds out a third once.
        groups: CSV of image,group; None for groups.csv in the data folder where there is one.
        split: CSV of image,part instead of folds.
        curve: numbers of shots to score besides, the same images held out for all.
        minutes: about so long for all fits, instead of the settings' steps; then no two runs are quite the same.
    """

    shots: int | None = None
    folds: int = 1
    groups: Path | None = None
    split: Path | None = None
    curve: tuple[int, ...] = ()
    minutes: float | None = None

    def within(self, folds: Sequence[Fold]) -> Plan:
        """The same with no more shots and folds than there are; says so where more were asked for."""
        most = min(len(fold.train) for fold in folds)
        more = sorted({count for count in (self.shots or 0, *self.curve) if count > most})
        if more:
            log.warning("%s labels were asked for; there are %d to learn from", ", ".join(map(str, more)), most)
        if self.folds > len(folds):
            log.warning("%d folds were asked for; there are %d", self.folds, len(folds))
        shots = self.shots if self.shots is not None and self.shots <= most else None
        return replace(self, shots=shots, folds=len(folds), curve=tuple(min(count, most) for count in self.curve))

    def fits(self, guard: bool) -> int:
        """How many there may be."""
        return (self.folds * (1 + len(self.curve)) + (self.folds > 1)) * (1 + MANY_PARTS if guard else 1)


def finetune(
    data: Path, folder: Path, plan: Plan, settings: Settings, *, device: str = "auto", progress: Progress
) -> tuple[Figures, Path]:
    """Tunes the decoder of a recipe on the labels of `data`, scores it on others, and puts it into the recipe.

    With one fold the decoder that was scored ships; with more, one that learned from all labels (or `shots` of them),
    of which the folds' figures are the estimate. Where tuning helps nothing, the recipe keeps the untuned decoder.

    Args:
        data: in MVTec layout, with test/TYPE and ground_truth/TYPE; of train/good a few are read.
        folder: the recipe.
        plan: what is learned from and what is scored.
        settings: how.
        device: `auto`, `cpu` or `cuda`.
        progress: shows how far it is.

    Returns:
        the figures, also in `finetune/figures.json` of the recipe: those of `scores.figures_of` and `chosen`, `folds`,
        `curve`, `settings`, `seconds`; and the comparison page.

    Raises:
        DatasetError: nothing is labelled, or the data, split or groups are not as expected.
        ConfigError: the recipe's segmenter cannot be tuned.
        RecipeError, WeightsError, OutputError.
    """
    start = time.monotonic()
    labels = read_labels(data, plan.groups)  # What is wrong with them is said before minutes of work.
    whole = whole_folds(labels, plan, settings.seed)
    plan, settings = plan.within(whole), _guarded(settings, whole)
    # In torch, so that the same seed gives the same figures whatever is installed.
    inspector = Inspector.from_recipe(folder, device, tuned=False, runtime="torch")
    out = make_folder(folder / TUNING)
    bench = Workbench.of(inspector, labels, progress)
    tuner = bench.tuner(settings, out / FITS, data)
    folds = [bench.drawn(fold, plan.shots, settings.seed) for fold in whole]
    if plan.minutes is not None:
        tuner.limit(folds[0].train, 60 * plan.minutes / plan.fits(settings.guard), progress)
    runs = [tuner.tune(fold.train, f"fold {number + 1}", progress) for number, fold in enumerate(folds)]
    scored = bench.scored(tuner, folds, runs, progress)
    learned = folds[0].train if len(runs) == 1 else bench.all_shots(plan, settings.seed)
    shipped = runs[0] if len(runs) == 1 else tuner.tune(learned, "all", progress)
    shipped = _unless_worse(shipped, scored, inspector.config.choose)
    figures = figures_of(scored) | {
        "chosen": shipped.word,
        "folds": [_facts_of(run, fold) for run, fold in zip(runs, folds, strict=True)],
        "curve": bench.curve(plan.curve, whole, tuner, progress),
        "settings": tuner.settings.model_dump(),
        "seconds": {"total": time.monotonic() - start, "encode": bench.encoder.seconds},
        "embeddings": {"encoded": bench.encoder.encoded, "found": bench.encoder.found},
    }
    facts = _decoder_facts(bench, data, tuner.settings, shipped, plan, learned)
    config = inspector.config.model_copy(update={"choose": shipped.choose})
    save_decoder(folder, shipped.decoder, facts, config)
    write_split(out / SPLIT, bench.labels, folds)
    write_text(out / FIGURES, json.dumps(figures, indent=2) + "\n")
    plots = curve_data(runs if shipped is runs[0] else [*runs, shipped])
    plots += [shots_plot(figures["curve"])] if figures["curve"] else []
    shutil.rmtree(out / PICTURES, ignore_errors=True)  # of an earlier split
    page = write_compare(out, scored, figures, plots, first_good(data))
    shutil.rmtree(out / FITS, ignore_errors=True)
    return figures, page


def _guarded(settings: Settings, folds: Sequence[Fold]) -> Settings:
    """The same; with the guard where nothing is held out, since nothing else would say that a decoder is worse."""
    if settings.guard or any(fold.test for fold in folds):
        return settings
    log.warning("nothing is held out: the labels that are learned from are parted to validate, whatever the preset")
    return settings.model_copy(update={"guard": True})


def _unless_worse(tuned: Tuned, scored: Sequence[Scored], untuned_choose: ChooseConfig) -> Tuned:
    """The same; without its decoder where the held-out images say that a type came out worse, beyond noise."""
    if not scored or not tuned.decoder:
        return tuned
    gains = [
        sum(each.scores[after].iou - each.scores[before].iou for before, after in GAINS.values()) / len(GAINS)
        for each in scored
    ]
    worst, kind = worst_gain(gains, [each.label for each in scored], FEW_HELD_OUT)
    if worst >= 0:
        return tuned
    word = f"worse on held-out {kind} beyond noise: the untuned decoder stays ({tuned.word})"
    return replace(tuned, decoder={}, choose=untuned_choose, word=word)


@dataclass(frozen=True, slots=True, eq=False)
class Workbench:
    """The labels, localized and encoded, and the network that is tuned."""

    inspector: Inspector
    sam: Sam
    encoder: CachedEncoder
    labels: list[Label]
    probes: list[Probe]

    @classmethod
    def of(cls, inspector: Inspector, labels: list[Label], progress: Progress) -> Workbench:
        """Every label, localized and encoded. Raises ConfigError and RecipeError."""
        sam = inspector.segmenter
        if not isinstance(sam, Sam):
            raise ConfigError(f"segmenter {inspector.config.segmenter.name}: cannot be tuned", "name a SAM")
        encoder = CachedEncoder(sam)
        named = progress(labels, "localize and encode labels", len(labels))
        return cls(inspector, sam, encoder, labels, [probe(label, inspector, encoder) for label in named])

    def tuner(self, settings: Settings, fits: Path, data: Path) -> Tuner:
        """What tunes by these settings and keeps its fits in that folder."""
        sizes = Sizes.of(self.inspector.config.prompt, self.sam)
        maker = ViewMaker(self.encoder, sizes, frozen=settings.unfreeze == "none")
        good = list(islice(good_parts(data), GOOD_PARTS)) if settings.empty else []
        return Tuner(self.sam, self.probes, maker, good, self.inspector.config.choose, settings, fits)

    def drawn(self, fold: Fold, shots: int | None, seed: int) -> Fold:
        """The same fold, so many labels in its train."""
        return Fold(draw_shots(self.labels, fold.train, shots, seed), fold.test)

    def all_shots(self, plan: Plan, seed: int) -> tuple[int, ...]:
        """The labels that the shipped decoder learns from where folds are scored."""
        return draw_shots(self.labels, range(len(self.labels)), plan.shots, seed)

    def scored(self, tuner: Tuner, folds: Sequence[Fold], runs: Sequence[Tuned], progress: Progress) -> list[Scored]:
        """Every held-out label, by the decoder of its fold."""
        choose = self.inspector.config.choose
        tuned = [tuner.sam_with(run.decoder) for run in runs]
        places = [(number, index) for number, fold in enumerate(folds) for index in fold.test]
        return [
            score_label(self.probes[index], number, self.sam, tuned[number], choose, runs[number].choose)
            for number, index in progress(places, "score held-out labels", len(places))
        ]

    def curve(
        self, curve: Sequence[int], folds: Sequence[Fold], tuner: Tuner, progress: Progress
    ) -> list[dict[str, Any]]:
        """For each number of shots the mean IoU on the same held-out images, that of no shot first."""
        if curve and not any(fold.test for fold in folds):
            log.warning("--curve: nothing is held out to score; left out")
            return []
        return [self._point(shots, folds, tuner, progress) for shots in (0, *sorted(set(curve)))] if curve else []

    def _point(self, shots: int, folds: Sequence[Fold], tuner: Tuner, progress: Progress) -> dict[str, Any]:
        ious = []
        for number, fold in enumerate(folds):
            name = f"{shots} labels, fold {number + 1}"
            run = tuner.tune(self.drawn(fold, shots, tuner.settings.seed).train, name, progress) if shots else None
            sam, choose = (tuner.sam_with(run.decoder), run.choose) if run else (self.sam, tuner.untuned_choose)
            ious += [tuner.ious(index, sam, choose) * (1, self.probes[index].detected) for index in fold.test]
        boxes, refined = (float(sum(values) / len(ious)) for values in zip(*ious, strict=True))
        return {"shots": shots, "images": len(ious), "gt_boxes": boxes, "refined": refined}


def whole_folds(labels: Sequence[Label], plan: Plan, seed: int) -> list[Fold]:
    """All that may be learned from, and what is scored, of each fold. Raises DatasetError."""
    return read_split(plan.split, labels) if plan.split else split(labels, plan.folds, seed)


def first_good(data: Path) -> Rgb | None:
    """A good part, to show beside the defective ones."""
    return next((image for _, image in good_parts(data)), None)


def good_parts(data: Path) -> Iterator[tuple[str, Rgb]]:
    """Good parts, every so-many-th of the folder, each read when it is asked for; none where there is none."""
    try:
        files = good_images(data)
    except DatasetError:
        return
    for file in islice(files, 0, None, max(1, len(files) // GOOD_PARTS)):
        try:
            yield file.name, read_image(file)
        except ImageError as error:
            log.warning("%s; left out", error)


def _facts_of(run: Tuned, fold: Fold) -> dict[str, Any]:
    return {
        "train": len(fold.train),
        "test": len(fold.test),
        "chosen": run.word,
        "choose": run.choose.model_dump(),
        "stopped": run.stopped,
        "points": [asdict(point) for point in run.points],
    }


def _decoder_facts(
    bench: Workbench, data: Path, settings: Settings, shipped: Tuned, plan: Plan, learned: Sequence[int]
) -> dict[str, Any]:
    """What an auditor asks of a tuned decoder."""
    return {
        BASE: bench.sam.sha256,
        UNTUNED_CHOOSE: bench.inspector.config.choose.model_dump(),
        "base": bench.inspector.config.segmenter.name,
        "chosen": shipped.word,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "data": str(data.absolute()),
        "labels": len(bench.labels),
        "learned_from": [bench.labels[index].name for index in learned],
        "shots": plan.shots,
        "settings": settings.model_dump(),
    }
