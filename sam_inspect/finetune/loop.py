"""The training loop. Only the mask decoder moves, and of the image encoder what `settings.unfreeze` says."""

from __future__ import annotations

import copy
import io
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sam_inspect.files import write_bytes
from sam_inspect.finetune.batch import Batch
from sam_inspect.finetune.losses import LOSSES, forgotten, true_iou
from sam_inspect.finetune.settings import Settings
from sam_inspect.finetune.unfrozen import SHARES, moved, unfrozen
from sam_inspect.finetune.views import Rng, TrainingView
from sam_inspect.networks.mask_decoder import decode_each
from sam_inspect.networks.sam import SamNetwork
from sam_inspect.progress import Progress
from sam_inspect.segment.sam import normalised

WARM_STEPS, WARM_SHARE = 250, 0.1
DROPS = (2 / 3, 26 / 27)  # SAM divides its learning rate by ten at 60,000 and 86,666 of 90,000 steps
CHECKPOINT_SECONDS = 20.0
SNAPSHOTS = 4
CLICK_AGAIN = 0.5
PEAK = "peak_lr"
TINY = 1e-12
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
    (fit, trained), marks = _begun(network, settings, checkpoint), marks_of(settings)
    saved = time.monotonic()
    left = range(len(trained.losses), stop or settings.steps)
    for step in progress(left, description, len(left)):
        loss = fit.step(step, _batch(views, empty, settings, step), errors)
        if not math.isfinite(loss):
            log.warning(f"{description}: the loss of step {step} is {loss}; the decoder of the last whole part stays")
            return Trained(trained.snapshots, trained.losses, stopped=step)
        trained.losses.append(loss)
        if step + 1 in marks and fit.is_finite():
            trained.snapshots[step + 1] = fit.tuned_state()
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
        self.encoder: nn.Module | None = None
        learned = [p for name, p in self.decoder.named_parameters() if settings.iou_head or "iou" not in name]
        groups: list[dict[str, Any]] = [{"params": learned, PEAK: settings.lr}]
        if settings.unfreeze != "none":
            self.encoder = unfrozen(network.image_encoder, settings.unfreeze, settings.seed)
            moving = [p for p in self.encoder.parameters() if p.requires_grad]
            groups.append({"params": moving, PEAK: settings.lr * SHARES[settings.unfreeze]})
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        self.optimizer = kinds[settings.optimizer](groups, lr=settings.lr, weight_decay=settings.weight_decay)

    def step(self, number: int, views: Sequence[TrainingView], errors: NDArray[np.float32]) -> float:
        """One step down; the loss before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = group[PEAK] * rate(number, self.settings)
        rng = np.random.default_rng([self.settings.seed, 1, number])
        at_once = len(views) if self.encoder is None else 1  # The activations of an encoder that moves fill memory.
        self.optimizer.zero_grad()
        loss = 0.0
        for first in range(0, len(views), at_once):
            part = self._loss(views[first : first + at_once], errors, rng) * (at_once / len(views))
            part.backward()  # type: ignore[no-untyped-call]
            loss += float(part.detach())
        if math.isfinite(loss):
            self.optimizer.step()
            self._hold()
        return loss

    @torch.no_grad()
    def _hold(self) -> None:
        """Puts each of the decoder's tensors back that went further than the leash from the untuned one."""
        if not self.settings.leash:
            return
        for tuned, untuned in zip(self.decoder.parameters(), self.network.mask_decoder.parameters(), strict=True):
            change = tuned - untuned
            share = self.settings.leash * untuned.norm() / change.norm().clamp(min=TINY)
            tuned.copy_(untuned + change * share.clamp(max=1))

    def _loss(self, views: Sequence[TrainingView], errors: NDArray[np.float32], rng: Rng) -> Tensor:
        batch = Batch.of(views, errors, self.settings.jitter, rng, self.device)
        kind = self.settings.prompt if self.settings.prompt != "both" else ("box", "points")[rng.integers(2)]
        points = batch.clicks(batch.truth, rng) if kind == "points" else None
        boxes = batch.boxes if kind == "box" else None
        kept = torch.from_numpy(np.stack([view.kept.load() for view in views]).astype(np.float32)).to(self.device)
        embeddings = kept if self.encoder is None else self.encoder(self._pixels(views))
        question = self._question(batch, points, boxes, None)
        logits, iou = decode_each(self.decoder, embeddings, *question)
        loss = self._of_masks(logits, iou, batch)
        if self.settings.keep:
            before, _ = decode_each(self.network.mask_decoder, kept, *question)
            loss = loss + self.settings.keep * forgotten(logits, before, batch.truth, batch.valid).mean()
        if self.settings.prompt == "both" and rng.random() < CLICK_AGAIN:
            single = logits[:, :1].detach()
            wrong = ((single > 0).float() - batch.truth).abs() * batch.valid
            again = batch.clicks(wrong, rng)
            known = again if points is None else tuple(torch.cat(pair, 1) for pair in zip(points, again, strict=True))
            logits, iou = decode_each(self.decoder, embeddings, *self._question(batch, known, boxes, single))
            loss = (loss + self._of_masks(logits, iou, batch)) / 2
        return loss

    def _pixels(self, views: Sequence[TrainingView]) -> Tensor:
        """(B, 3, input_px, input_px), as the encoder sees them."""
        shown = [(view.pixels.load(), view.input_px) for view in views if view.pixels is not None]
        return torch.stack([normalised(pixels, input_px, self.device) for pixels, input_px in shown])

    @torch.no_grad()
    def _question(
        self, batch: Batch, points: tuple[Tensor, ...] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the decoder takes besides the embeddings."""
        encoder = self.network.prompt_encoder_for(batch.input_px)
        return encoder.get_dense_pe(), *encoder(points, boxes, masks)

    def _of_masks(self, logits: Tensor, iou: Tensor, batch: Batch) -> Tensor:
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
        return all(bool(torch.isfinite(p).all()) for group in self.optimizer.param_groups for p in group["params"])

    def tuned_state(self) -> State:
        """A copy of the decoder's tensors, and of what moves of the encoder."""
        state = {name: value.detach().cpu().clone() for name, value in self.decoder.state_dict().items()}
        return state | (moved(self.encoder) if self.encoder is not None else {})

    def save(self, path: Path, trained: Trained) -> None:
        """All that is needed to go on."""
        state = {
            "decoder": self.decoder.state_dict(),
            "encoder": self.encoder.state_dict() if self.encoder is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "snapshots": trained.snapshots,
            "losses": trained.losses,
        }
        buffer = io.BytesIO()  # torch.save itself calls a full disk a RuntimeError
        torch.save(state, buffer)
        write_bytes(path, buffer.getvalue())

    def load(self, path: Path) -> Trained:
        """Goes on where a saved fit was, which may raise anything; what that had done."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.decoder.load_state_dict(state["decoder"])
        if self.encoder is not None:
            self.encoder.load_state_dict(state["encoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        return Trained(state["snapshots"], state["losses"])


def _begun(network: SamNetwork, settings: Settings, checkpoint: Path | None) -> tuple[_Fit, Trained]:
    """A fit as far as an interrupted one had come, and what that had done; a new one where there is none to go on."""
    if checkpoint is not None and checkpoint.exists():
        fit = _Fit(network, settings)
        try:
            return fit, fit.load(checkpoint)
        except Exception as error:  # a cut zip raises anything
            log.warning(f"{checkpoint}: cannot be read ({type(error).__name__}); this fit begins anew")
    return _Fit(network, settings), Trained({})


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
