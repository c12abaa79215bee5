"""What of the image encoder moves beside the decoder: a low-rank change of its linear layers, or all of it."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sam_inspect.segment.sam import ENCODER

RANK = 4
SHARES = {"encoder-lora": 1.0, "encoder": 0.1}
"""Of the decoder's learning rate: weights that pretraining found bear smaller steps than a change that begins at 0."""
How = Literal["encoder-lora", "encoder"]


class LowRank(nn.Module):
    """A weight with a change of rank 4 added, which is 0 at first (LoRA: Hu et al., ICLR 2022)."""

    def __init__(self, weight: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.up = nn.Parameter(torch.zeros(rows, RANK, device=weight.device))
        down = torch.randn(RANK, columns, generator=generator) / columns**0.5
        self.down = nn.Parameter(down.to(weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """(O, I) -> (O, I)."""
        return weight + self.up @ self.down


def unfrozen(encoder: nn.Module, how: How, seed: int) -> nn.Module:
    """A copy of an image encoder of which that much moves; it answers as the encoder does, until it has moved."""
    moving = copy.deepcopy(encoder).requires_grad_(how == "encoder")
    if how == "encoder-lora":
        generator = torch.Generator().manual_seed(seed)
        for layer in [module for module in moving.modules() if isinstance(module, nn.Linear)]:
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, generator))
    return moving.train()


def moved(encoder: nn.Module) -> dict[str, Tensor]:
    """What moves of an `unfrozen` encoder, on the CPU, under the names of the encoder that it was copied from."""
    changed = {
        f"{name}.weight": layer.weight for name, layer in encoder.named_modules() if parametrize.is_parametrized(layer)
    }
    whole = {name: value for name, value in encoder.named_parameters() if value.requires_grad}
    return {ENCODER + name: value.detach().cpu().clone() for name, value in (changed or whole).items()}
