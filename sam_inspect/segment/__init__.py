"""Segmenters: from views with prompts to candidate masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sam_inspect.records import Candidates, Prompt, View

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class Segmenter(Protocol):
    """Answers prompts with candidate masks."""

    @classmethod
    def from_config(cls, args: Mapping[str, Any], *, device: str) -> Self:
        """The segmenter that a recipe asks for.

        Args:
            args: the recipe's `segmenter.args`.
            device: `cpu` or `cuda`.

        Raises:
            ConfigError, WeightsError.
        """
        ...

    def segment(self, image: NDArray[np.uint8], views: Sequence[View]) -> list[Candidates]:
        """One `Candidates` for each prompt, views in order and each view's prompts in order.

        Args:
            image: (H, W, 3) uint8 RGB.
            views: each is encoded once, whatever the number of its prompts.
        """
        ...


class Encoded(Protocol):
    """A view as its segmenter keeps it, to be asked again."""

    @property
    def view(self) -> View:
        """What was encoded, with its prompts, at the size at which the network saw it."""
        ...


@runtime_checkable
class Interactive(Segmenter, Protocol):
    """A segmenter whose views are encoded once and asked again and again, click by click."""

    def encode(self, image: NDArray[np.uint8], views: Sequence[View]) -> Iterator[Any]:
        """An `Encoded` for each view, in order; a value that can be kept.

        Args:
            image: (H, W, 3) uint8 RGB; of a mirror image a view whose rows or columns run backwards.
            views: crops of it; their prompts play no part in it, and stay with the views.
        """
        ...

    def decode(self, embedding: Any, prompts: Sequence[Prompt]) -> list[Candidates]:
        """The answers to `prompts`, in order."""
        ...


@runtime_checkable
class Tunable(Segmenter, Protocol):
    """A segmenter that can be tuned on labelled defects."""

    def with_tuned(self, tensors: Mapping[str, Tensor], base_sha256: str) -> Self:
        """The same network with what was tuned of it; the rest is shared, nothing of this one changes.

        Args:
            tensors: the decoder's, under its own key names; of an encoder that moved, what did, under `image_encoder.`
            base_sha256: of the weights that it was tuned from.

        Raises:
            WeightsError: it was tuned from other weights, or does not fit.
        """
        ...
