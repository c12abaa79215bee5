"""The training loop: only the mask decoder moves. Encoder and prompt encoder answer without gradient."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam_inspect.files import write_atomically
from sam_inspect.finetune.losses import LOSSES, true_iou
from sam_inspect.finetune.settings import Settings
from sam_inspect.finetune.views import Rng, TrainingView, jittered
from sam_inspect.networks.sam import SamNetwork, decode_each
from sam_inspect.progress import Progress

WARM_STEPS, WARM_SHARE = 250, 0.1
DROPS = (2 / 3, 26 / 27)  # SAM divides its learning rate by ten at 60,000 and 86,666 of 90,000 steps
CHECKPOINT_SECONDS = 20.0
SNAPSHOTS = 4
CLICK_AGAIN = 0.5
log = logging.getLogger(__name__)
State = dict[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What a fit came to.

    Attributes:
        snapshots: the decoder's tensors after each part of the steps, by how many were done.
        losses: the loss of every step.
        stopped: at which step the loss ceased to be a number; None where it never did.
    """

    snapshots: dict[int, State]
    losses: list[float] = field(default_factory=list)
    stopped: int | None = None


def fit_decoder(
    network: SamNetwork,
    views: Sequence[TrainingView],
    empty: Sequence[TrainingView],
    errors: NDArray[np.float32],
    settings: Settings,
    *,
    stop: int | None = None,
    checkpoint: Path | None = None,
    description: str = "tune the decoder",
    progress: Progress,
) -> Trained:
    """Tunes a copy of the network's decoder.

    The same settings and views give the same decoder; with a checkpoint an interrupted fit goes on where it stopped.

    Args:
        network: untuned; nothing of it changes.
        views: of labelled defects, at least one.
        empty: of good parts.
        errors: (n, 4) float32 of the localizer's boxes, as shares of their sides.
        settings: every choice.
        stop: end after so many of the settings' steps.
        checkpoint: file that is written on the way, and removed by the caller.
        description: what the progress bar says.
        progress: shows how far it is.

    Raises:
        OutputError: the checkpoint cannot be written, or the disk is full.
    """
    fit, marks = _Fit(network, settings), marks_of(settings)
    trained = fit.resumed(checkpoint) if checkpoint is not None else Trained({})
    saved = time.monotonic()
    left = range(len(trained.losses), stop or settings.steps)
    for step in progress(left, description, len(left)):
        loss = fit.step(step, _batch(views, empty, settings, step), errors)
        if not math.isfinite(loss):
            log.warning(f"{description}: the loss of step {step} is {loss}; the decoder of the last whole part stays")
            return Trained(trained.snapshots, trained.losses, stopped=step)
        trained.losses.append(loss)
        if step + 1 in marks and fit.is_finite():
            trained.snapshots[step + 1] = fit.decoder_state()
        if checkpoint is not None and time.monotonic() - saved > CHECKPOINT_SECONDS:
            fit.save(checkpoint, trained)
            saved = time.monotonic()
    return trained


def marks_of(settings: Settings) -> list[int]:
    """After how many steps the decoder is kept, the last one at the end."""
    return sorted({math.ceil(settings.steps * (part + 1) / SNAPSHOTS) for part in range(SNAPSHOTS)})


class _Fit:
    """Decoder and optimiser of one fit."""

    def __init__(self, network: SamNetwork, settings: Settings) -> None:
        self.network, self.settings = network, settings
        self.decoder = copy.deepcopy(network.mask_decoder).train().requires_grad_(True)
        self.device = next(self.decoder.parameters()).device
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        learned = [p for name, p in self.decoder.named_parameters() if settings.iou_head or "iou" not in name]
        self.optimizer = kinds[settings.optimizer](learned, lr=settings.lr, weight_decay=settings.weight_decay)

    def step(self, number: int, views: Sequence[TrainingView], errors: NDArray[np.float32]) -> float:
        """One step down; the loss before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * rate(number, self.settings)
        rng = np.random.default_rng([self.settings.seed, 1, number])
        loss = self._loss(views, errors, rng)
        if torch.isfinite(loss):
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        return float(loss.detach())

    def _loss(self, views: Sequence[TrainingView], errors: NDArray[np.float32], rng: Rng) -> Tensor:
        batch = _Batch.of(views, errors, self.settings.jitter, rng, self.device)
        kind = self.settings.prompt if self.settings.prompt != "both" else ("box", "points")[rng.integers(2)]
        points = batch.clicks(batch.truth, rng) if kind == "points" else None
        boxes = batch.boxes if kind == "box" else None
        logits, iou = self._decode(batch, points, boxes, None)
        loss = self._of_masks(logits, iou, batch)
        if self.settings.prompt == "both" and rng.random() < CLICK_AGAIN:
            single = logits[:, :1].detach()
            wrong = ((single > 0).float() - batch.truth).abs() * batch.valid
            again = batch.clicks(wrong, rng)
            known = again if points is None else tuple(torch.cat(pair, 1) for pair in zip(points, again, strict=True))
            logits, iou = self._decode(batch, known, boxes, single)
            loss = (loss + self._of_masks(logits, iou, batch)) / 2
        return loss

    def _decode(
        self, batch: _Batch, points: tuple[Tensor, ...] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        encoder = self.network.prompt_encoder_for(batch.input_px)
        with torch.no_grad():
            sparse, dense = encoder(points, boxes, masks)
            image_pe = encoder.get_dense_pe()
        return decode_each(self.decoder, batch.embeddings, image_pe, sparse, dense)

    def _of_masks(self, logits: Tensor, iou: Tensor, batch: _Batch) -> Tensor:
        """The single mask's loss, the best of three's beside it, and that of the IoU head."""
        losses = LOSSES[self.settings.loss](logits, batch.truth, batch.valid)
        loss = losses[:, 0].mean()
        if self.settings.masks == "all":
            loss = loss + losses[:, 1:].min(1).values.mean()
        if self.settings.iou_head:
            loss = loss + ((iou - true_iou(logits.detach(), batch.truth, batch.valid)) ** 2).mean()
        return loss

    def is_finite(self) -> bool:
        """Whether every weight is a number: the loss says so one step later."""
        return all(bool(torch.isfinite(parameter).all()) for parameter in self.decoder.parameters())

    def decoder_state(self) -> State:
        """A copy of the decoder's tensors."""
        return {name: value.detach().cpu().clone() for name, value in self.decoder.state_dict().items()}

    def save(self, path: Path, trained: Trained) -> None:
        """All that is needed to go on."""
        state = {
            "decoder": self.decoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "snapshots": trained.snapshots,
            "losses": trained.losses,
        }
        write_atomically(path, lambda part: torch.save(state, part))

    def resumed(self, path: Path) -> Trained:
        """What an interrupted fit had done; nothing where there is none, or its file is cut."""
        if not path.exists():
            return Trained({})
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.decoder.load_state_dict(state["decoder"])
            self.optimizer.load_state_dict(state["optimizer"])
        except Exception as error:  # a cut zip raises anything
            log.warning(f"{path}: cannot be read ({type(error).__name__}); this fit begins anew")
            return Trained({})
        return Trained(state["snapshots"], state["losses"])


def rate(step: int, settings: Settings) -> float:
    """The share of the learning rate at a step: warmed up, then by the schedule."""
    if settings.schedule == "constant":
        return 1.0
    warm = max(1, min(WARM_STEPS, round(WARM_SHARE * settings.steps)))
    if step < warm:
        return (step + 1) / warm
    if settings.schedule == "steps":
        return float(0.1 ** sum(step >= drop * settings.steps for drop in DROPS))
    return (1 + math.cos(math.pi * (step - warm) / max(1, settings.steps - warm))) / 2


def _batch(
    views: Sequence[TrainingView], empty: Sequence[TrainingView], settings: Settings, step: int
) -> list[TrainingView]:
    """The views of a step: every labelled one once in each round, in an order of its own."""
    rng = np.random.default_rng([settings.seed, 2, step])
    places = range(step * settings.batch, (step + 1) * settings.batch)
    chosen = [views[_place(len(views), settings.seed, *divmod(place, len(views)))] for place in places]
    if len(empty):
        chosen = [empty[int(rng.integers(len(empty)))] if rng.random() < settings.empty else view for view in chosen]
    return chosen


def _place(count: int, seed: int, turn: int, place: int) -> int:
    """Which of `count` comes at `place` of a round."""
    return int(np.random.default_rng([seed, 3, turn]).permutation(count)[place])


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Views of one step as tensors; truth is what lies mostly inside the box that is asked about."""

    input_px: int
    embeddings: Tensor
    boxes: Tensor
    truth: Tensor
    valid: Tensor

    @classmethod
    def of(
        cls,
        views: Sequence[TrainingView],
        errors: NDArray[np.float32],
        jitter: float,
        rng: Rng,
        device: torch.device,
    ) -> _Batch:
        input_px, low = views[0].input_px, views[0].input_px // 4
        boxes = np.stack([_box(view, errors, jitter, rng) for view in views])
        truth = np.stack([_truth_in(view, box) for view, box in zip(views, boxes, strict=True)])[:, None]
        valid = np.zeros((len(views), 1, low, low), np.float32)
        for mask, view in zip(valid, views, strict=True):
            mask[0, : -(-view.valid_hw[0] // 4), : -(-view.valid_hw[1] // 4)] = 1
        embeddings = np.stack([view.embedding.load() for view in views]).astype(np.float32)
        tensors = (torch.from_numpy(array).to(device) for array in (embeddings, boxes, truth, valid))
        return cls(input_px, *tensors)

    def clicks(self, where: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """One random point a view where `where` is set, positive on the defect; beside the defect where it is empty."""
        points, labels = [], []
        for wanted, truth, valid in zip(where[:, 0], self.truth[:, 0], self.valid[:, 0], strict=True):
            places = torch.nonzero(wanted > 0.5 if bool((wanted > 0.5).any()) else valid > 0)
            row, column = places[int(rng.integers(len(places)))].tolist()
            points.append([[4 * column + 2.0, 4 * row + 2.0]])
            labels.append([int(truth[row, column] > 0.5)])
        device = self.boxes.device
        return torch.tensor(points, device=device), torch.tensor(labels, device=device)


def _box(view: TrainingView, errors: NDArray[np.float32], jitter: float, rng: Rng) -> NDArray[np.float32]:
    if view.own is None:
        return view.random_box
    height, width = view.valid_hw
    box = jittered(view.boxes[view.own], errors, jitter, rng)
    return np.asarray(np.clip(box, 0, np.array([width, height] * 2)), np.float32)


def _truth_in(view: TrainingView, box: NDArray[np.float32]) -> NDArray[np.float32]:
    """(l, l): every defect that lies at least half in the box, and the one that the view was drawn for."""
    low = view.input_px // 4
    truth = np.zeros((low, low), np.float32)
    x0, y0 = np.floor(box[:2] / 4).astype(int)
    x1, y1 = np.ceil(box[2:] / 4).astype(int)
    for index, part in enumerate(view.truths.astype(np.float32)):
        if index == view.own or part[y0:y1, x0:x1].sum() >= part.sum() / 2:
            truth = np.maximum(truth, part)
    return truth
