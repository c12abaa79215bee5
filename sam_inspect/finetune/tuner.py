"""From labels to a decoder that is never worse than the untuned one: held-out labels decide how far to go.

The labels are parted by group; a decoder is fitted to each rest and scored on its part, after each quarter of the steps
and mixed with the untuned one (averaging weights keeps what pretraining knew: Wortsman et al., CVPR 2022). The number
of steps and the share that do best there are then used on all labels. Where nothing helps, the untuned decoder stays.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from sam_inspect.config import ChooseConfig
from sam_inspect.errors import DatasetError
from sam_inspect.files import make_folder, write_bytes, write_text
from sam_inspect.finetune.labels import Fold, Label, parted
from sam_inspect.finetune.loop import State, Trained, fit_decoder, marks_of
from sam_inspect.finetune.probes import Probe, box_errors
from sam_inspect.finetune.settings import Settings
from sam_inspect.finetune.views import TrainingView, ViewMaker
from sam_inspect.masks import union
from sam_inspect.metrics import mask_iou
from sam_inspect.progress import Progress, silent
from sam_inspect.records import Rgb
from sam_inspect.segment.sam import Sam

SHARES = (0.3, 0.5, 0.7, 1.0)
UNVALIDATED_SHARE = 0.5
PARTS, MANY_PARTS, MANY = 2, 5, 30
FEW = 3
NOISE, MOST_NOISE = 0.02, 0.1
ALIKE = 0.01
ERRORS = 2  # Standard errors that count as noise: 95 % confidence.
GOOD_VIEWS = 2
PREDICTED_IOUS, LEAST_SHARES, WORTH = (0.1, 0.3, 1.0), (0.4, 0.45, 0.5, 0.55, 0.6), 0.01
TIMED_STEPS = 5
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Point:
    """One decoder, scored on labels that it did not learn from.

    Attributes:
        steps: of the fit.
        share: of the tuned decoder in the mean of both; 0 is the untuned one.
        boxes, found: mean IoU in ground-truth boxes and in the localizer's regions.
        worst: of all types the least gain beyond noise; below 0 it may not ship.
    """

    steps: int
    share: float
    boxes: float
    found: float
    worst: float

    @property
    def iou(self) -> float:
        """The mean of both."""
        return (self.boxes + self.found) / 2


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """What tuning came to.

    Attributes:
        decoder: its tensors; empty where the untuned one stays.
        chosen: which of `points` ships; None where there were no held-out labels.
        points: every decoder that was scored on held-out labels, the untuned one first.
        losses: of the last fit.
        word: one line for the user: what was chosen and why.
        choose: how its masks are chosen: as before, or as did better on held-out labels.
        stopped: at which step the loss ceased to be a number; None where it never did.
    """

    decoder: State
    chosen: Point | None
    points: tuple[Point, ...]
    losses: list[float]
    word: str
    choose: ChooseConfig
    stopped: int | None = None


class Tuner:
    """Tunes one network on choices of one set of labels; interrupted, it goes on where it stopped.

    Attributes:
        sam: untuned.
        labels, probes: all labels, and the same localized and encoded.
        folder: where finished and unfinished fits lie.
        untuned_choose, choose: how the recipe chooses among the untuned network's masks, and among those of tuned ones.
    """

    def __init__(
        self,
        sam: Sam,
        probes: Sequence[Probe],
        maker: ViewMaker,
        good: Sequence[tuple[str, Rgb]],
        choose: ChooseConfig,
        settings: Settings,
        folder: Path,
    ) -> None:
        self.sam, self.probes, self.maker, self.good = sam, probes, maker, good
        self.untuned_choose, self.settings, self.folder = choose, settings, make_folder(folder)
        self.choose = choose.model_copy(update={"mirrored": choose.mirrored or settings.mirrored})
        self.labels = [probe.label for probe in probes]
        self._truths: dict[int, NDArray[np.bool_]] = {}

    def limit(self, train: Sequence[int], seconds: float, progress: Progress) -> None:
        """Sets the steps of every fit to what fits into so many seconds, timed on the views of `train`."""
        errors = box_errors([self.probes[index] for index in train])
        views, empty = self.views(train, "measure", progress)
        start = time.perf_counter()
        fit_decoder(self.sam.network, views, empty, errors, self.settings, stop=TIMED_STEPS, progress=silent)
        steps = round(seconds * TIMED_STEPS / (time.perf_counter() - start))
        self.settings = self.settings.model_copy(update={"steps": max(1, steps), "epochs": 0})

    def sized(self, train: Sequence[int]) -> Settings:
        """The settings with the steps that they mean for these labels."""
        labels = [self.labels[index] for index in train]
        views = sum(len(label.defects) for label in labels) * self._views_each(labels)
        steps = math.ceil(self.settings.epochs * views / self.settings.batch)
        return self.settings.model_copy(update={"steps": max(self.settings.steps, steps)})

    def tune(self, train: Sequence[int], name: str, progress: Progress) -> Tuned:
        """A decoder from the labels `train`.

        Raises:
            OutputError: a checkpoint cannot be written, or the disk is full.
        """
        settings = self.sized(train)
        if not settings.guard:
            trained = self.fit(train, name, settings, None, progress)
            return self._shipped(trained, settings.steps, 1.0, (), None, "all steps, as its preset says")
        if len({self.labels[index].group for index in train}) < 2:
            trained = self.fit(train, name, settings, None, progress)
            word = f"one part alone cannot be validated: {UNVALIDATED_SHARE:.0%} tuned, the rest untuned"
            return self._shipped(trained, settings.steps, UNVALIDATED_SHARE, (), None, word)
        points, last = self._validated(train, name, settings, progress)
        best = best_point(points)
        if best.share == 0:
            word = f"nothing helped on held-out labels: the untuned decoder stays{_until(last)}"
            return Tuned({}, best, points, last.losses, word, self.untuned_choose, last.stopped)
        trained = self.fit(train, name, settings, best.steps, progress)
        word = (
            f"{best.share:.0%} tuned after {best.steps} steps: held-out labels "
            f"{points[0].boxes:.3f} to {best.boxes:.3f} in their boxes, {points[0].found:.3f} to {best.found:.3f} found"
        )
        shipped = self._shipped(trained, best.steps, best.share, points, best, word)
        return replace(shipped, choose=self._calibrated(train, name, settings, best, progress))

    def _shipped(
        self, trained: Trained, steps: int, share: float, points: tuple[Point, ...], chosen: Point | None, word: str
    ) -> Tuned:
        done = [mark for mark in trained.snapshots if mark <= steps]
        if not done:
            word = f"the loss of step {trained.stopped} was no number: the untuned decoder stays"
            return Tuned({}, chosen, points, trained.losses, word, self.untuned_choose, trained.stopped)
        decoder = self.mixed(trained.snapshots[max(done)], share)
        word += f"{_until(trained)}; this is the decoder of step {max(done)}" if trained.stopped is not None else ""
        return Tuned(decoder, chosen, points, trained.losses, word, self.choose, trained.stopped)

    def _calibrated(
        self, train: Sequence[int], name: str, settings: Settings, point: Point, progress: Progress
    ) -> ChooseConfig:
        """How the tuned decoder's masks are best chosen, by labels that it was validated on.

        Another choice than the recipe's must be worth 0.01 in mean IoU: a few labels say little.
        """
        ious: dict[tuple[float, float], list[float]] = {}
        for number, fold in enumerate(self._parts(train)):
            trained = self.fit(fold.train, f"{name}, without part {number + 1}", settings, None, progress)
            sam = self.sam_with(self.mixed(trained.snapshots[point.steps], point.share))
            for index in fold.test:
                self._try_choices(index, sam, ious)
        mean = {choice: float(np.mean(values)) for choice, values in ious.items()}
        best = max(mean, key=lambda choice: mean[choice])
        own = (self.choose.predicted_iou, self.choose.least_share)
        if mean[best] < mean[own] + WORTH:
            return self.choose
        return self.choose.model_copy(update={"predicted_iou": best[0], "least_share": best[1]})

    def _try_choices(self, index: int, sam: Sam, ious: dict[tuple[float, float], list[float]]) -> None:
        """Adds the IoU of one label's found masks under every choice."""
        probe = self.probes[index]
        candidates = probe.found.candidates(sam, self.choose)
        own = (self.choose.predicted_iou, self.choose.least_share)
        for choice in {own, *product(PREDICTED_IOUS, LEAST_SHARES)}:
            config = self.choose.model_copy(update={"predicted_iou": choice[0], "least_share": choice[1]})
            found = union(probe.found.chosen(candidates, config), probe.label.original_hw)
            ious.setdefault(choice, []).append(mask_iou(found, self._truth(index)))

    def _validated(
        self, train: Sequence[int], name: str, settings: Settings, progress: Progress
    ) -> tuple[tuple[Point, ...], Trained]:
        """Every number of steps and share, scored on the labels `train`, each by a fit without its part; the last fit.

        The untuned network is asked as the recipe asks it, which is what would stay.
        """
        keys = [(steps, 1.0) for steps in marks_of(settings)[:-1]]
        keys += [(settings.steps, share) for share in SHARES]
        untuned = {index: self.ious(index, self.sam, self.untuned_choose) for index in train}
        scored: dict[tuple[int, float], dict[int, NDArray[np.float64]]] = {key: {} for key in keys}
        last = Trained({})
        for number, fold in enumerate(self._parts(train)):
            trained = self.fit(fold.train, f"{name}, without part {number + 1}", settings, None, progress)
            last = trained if last.stopped is None else last
            for steps, share in keys:
                if steps in trained.snapshots:
                    sam = self.sam_with(self.mixed(trained.snapshots[steps], share))
                    scored[steps, share] |= {index: self.ious(index, sam) for index in fold.test}
        whole = {key: ious for key, ious in scored.items() if len(ious) == len(untuned)}
        points = [self._point((0, 0.0), untuned, untuned)]
        points += [self._point(key, ious, untuned) for key, ious in whole.items()]
        return tuple(points), last

    def _parts(self, train: Sequence[int]) -> list[Fold]:
        """In which the labels are validated; of few labels, small ones: a decoder of half of them is another one."""
        groups = len({self.labels[index].group for index in train})
        return parted(self.labels, train, min(groups, MANY_PARTS if len(train) <= MANY else PARTS), self.settings.seed)

    def _point(
        self,
        key: tuple[int, float],
        ious: Mapping[int, NDArray[np.float64]],
        untuned: Mapping[int, NDArray[np.float64]],
    ) -> Point:
        gains = [float((iou - untuned[index]).mean()) for index, iou in ious.items()]
        worst, _ = worst_gain(gains, [self.labels[index] for index in ious], NOISE)
        boxes, found = np.mean(list(ious.values()), axis=0)
        return Point(*key, float(boxes), float(found), worst)

    def ious(self, index: int, sam: Sam, choose: ChooseConfig | None = None) -> NDArray[np.float64]:
        """(2,) IoU of one label's masks in its ground-truth boxes, and in the localizer's regions."""
        probe, choose = self.probes[index], choose or self.choose
        truth, answers = self._truth(index), (probe.box_masks(sam, choose), probe.found_masks(sam, choose))
        return np.array([mask_iou(union(masks, probe.label.original_hw), truth) for masks in answers])

    def _truth(self, index: int) -> NDArray[np.bool_]:
        if index not in self._truths:
            self._truths[index] = self.probes[index].truth()
        return self._truths[index]

    def sam_with(self, decoder: State) -> Sam:
        """The network with this decoder; the untuned one for an empty one."""
        return self.sam.with_tuned(decoder, self.sam.sha256) if decoder else self.sam

    def mixed(self, tuned: State, share: float) -> State:
        """The mean of what was tuned and the same tensors untuned."""
        base = self.sam.tunable_tensors()
        return {name: base[name].cpu().lerp(value, share) for name, value in tuned.items()}

    def fit(self, train: Sequence[int], name: str, settings: Settings, stop: int | None, progress: Progress) -> Trained:
        """The fit to these labels: read where an earlier run finished it."""
        path = self.folder / f"{self._key(train, settings, stop)}.safetensors"
        done = _finished(path)
        if done is not None:
            return done
        errors = box_errors([self.probes[index] for index in train])
        views, empty = self.views(train, name, progress)
        checkpoint = path.with_suffix(".pt")
        trained = fit_decoder(
            self.sam.network,
            views,
            empty,
            errors,
            settings,
            stop=stop,
            checkpoint=checkpoint,
            description=name,
            progress=progress,
        )
        _keep(path, trained)
        checkpoint.unlink(missing_ok=True)
        return trained

    def views(
        self, train: Sequence[int], name: str, progress: Progress
    ) -> tuple[list[TrainingView], list[TrainingView]]:
        """Views of these labels, and of good parts."""
        labels = [self.labels[index] for index in train]
        each = self._views_each(labels)
        views: list[TrainingView] = []
        for label in progress(labels, f"{name}: encode views", len(labels)):
            views += self.maker.labelled(label, each)
        if not self.settings.empty:
            return views, []
        return views, [view for file, image in self.good for view in self.maker.good(image, file, GOOD_VIEWS)]

    def _views_each(self, labels: Sequence[Label]) -> int:
        """How many views of each defect are kept."""
        count = sum(len(label.defects) for label in labels)
        return max(1, min(self.settings.views, self.settings.most_views // count))

    def _key(self, train: Sequence[int], settings: Settings, stop: int | None) -> str:
        """Of all that the fit depends on."""
        digest = hashlib.sha256(f"{self.sam.sha256} {settings.model_dump_json()} {stop}".encode())
        good = [(name, hashlib.sha256(image.tobytes()).hexdigest()) for name, image in self.good]
        digest.update(repr((self.maker.sizes, good)).encode())
        for index in train:
            label = self.labels[index]
            if label.sample.mask_path is None:
                raise DatasetError(f"{label.name}: has no ground truth", "label it")
            digest.update(label.name.encode("utf-8", "surrogateescape"))
            digest.update(label.sample.image.read_bytes() + label.sample.mask_path.read_bytes())
            digest.update(repr([region.box_xyxy for region in self.probes[index].found.localization.regions]).encode())
        return digest.hexdigest()[:16]


def _until(trained: Trained) -> str:
    """What a reader must know of a fit that did not come to its end."""
    return "" if trained.stopped is None else f" (a fit stopped at step {trained.stopped}: the loss was no number)"


def best_point(points: Sequence[Point]) -> Point:
    """Of the decoders that make no type worse the best; the untuned one where none is better.

    Among those whose mean IoU is within 0.01 of the best, which a few labels do not tell apart, the one of the most
    steps: its learning rate has fallen to nothing. Of several shares of it the best.

    Args:
        points: the untuned one first.
    """
    allowed = [point for point in points[1:] if point.worst >= 0]
    highest = max((point.iou for point in allowed), default=-1.0)
    if highest <= points[0].iou:
        return points[0]
    alike = (point for point in allowed if point.iou >= max(highest - ALIKE, points[0].iou))
    return max(alike, key=lambda point: (point.steps, point.iou))


def worst_gain(gains: Sequence[float], labels: Sequence[Label], few: float) -> tuple[float, str]:
    """Of all defect types the least mean gain beyond noise, and the type; below 0 it came out worse.

    Noise is two standard errors over parts: pictures of one part come out alike. For fewer than three parts it is
    `few`. It is never more than `MOST_NOISE`: where one part of several is ruined, the error is as large as the loss.

    Args:
        gains: (n,) what each image gained.
        labels: (n,) the images.
        few: of a gain.
    """
    by_type: dict[str, dict[str, list[float]]] = {}
    for gain, label in zip(gains, labels, strict=True):
        by_type.setdefault(label.sample.defect_type, {}).setdefault(label.group, []).append(gain)
    return min((_beyond_noise(list(groups.values()), few), kind) for kind, groups in by_type.items())


def _beyond_noise(gains_of_parts: Sequence[Sequence[float]], few: float) -> float:
    means = [float(np.mean(gains)) for gains in gains_of_parts]
    noise = min(ERRORS * float(np.std(means, ddof=1) / np.sqrt(len(means))), MOST_NOISE) if len(means) >= FEW else few
    return float(np.mean(np.concatenate(gains_of_parts))) + noise


def _keep(path: Path, trained: Trained) -> None:
    """Snapshots as safetensors, the rest as JSON beside it, which is written last."""
    tensors = {f"{steps}/{name}": value for steps, state in trained.snapshots.items() for name, value in state.items()}
    write_bytes(path, save(tensors))
    write_text(path.with_suffix(".json"), json.dumps({"losses": trained.losses, "stopped": trained.stopped}))


def _finished(path: Path) -> Trained | None:
    """What `_keep` wrote, or None."""
    try:
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        tensors = load_file(path)
    except (OSError, ValueError, SafetensorError):
        return None
    snapshots: dict[int, State] = {}
    for key, value in tensors.items():
        steps, name = key.split("/", 1)
        snapshots.setdefault(int(steps), {})[name] = value
    return Trained(snapshots, facts["losses"], facts["stopped"])
