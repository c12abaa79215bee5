"""SAM's ViT encoders with fused attention: the same numbers to rounding, but no scores of all cells in memory.

SAM adds to the score of a query and a cell what the query says of the cell's row and of its column (decomposed
relative positions, Li et al., MViTv2, CVPR 2022). That is a product as well: of the query's answers for all rows and
columns, and of a key that says in which of them the cell lies. With these as further channels no kernel has to know of
positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention, Block, window_partition, window_unpartition
from torch import Tensor


class VitEncoder(ImageEncoderViT):  # type: ignore[misc]
    """segment_anything's, under its key names."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 1024, 1024) normalised -> (B, 256, 64, 64)."""
        cells = self.patch_embed(images) + self.pos_embed
        for block in self.blocks:
            cells = _transformed(block, cells)
        embedding: Tensor = self.neck(cells.permute(0, 3, 1, 2))
        return embedding


def _transformed(block: Block, cells: Tensor) -> Tensor:
    """`Block.forward`: (B, H, W, C) to the same."""
    if block.window_size:
        windows, padded_hw = window_partition(block.norm1(cells), block.window_size)
        seen = window_unpartition(attended(block.attn, windows), block.window_size, padded_hw, cells.shape[1:3])
    else:
        seen = attended(block.attn, block.norm1(cells))
    cells = cells + seen
    out: Tensor = cells + block.mlp(block.norm2(cells))
    return out


def attended(attention: Attention, cells: Tensor) -> Tensor:
    """`Attention.forward`: (B, H, W, C) to the same."""
    _, height, width, _ = cells.shape
    qkv = torch.unflatten(attention.qkv(cells).flatten(1, 2), 2, (3, attention.num_heads, -1))
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, H * W, d)
    rows, columns = _by_distance(attention.rel_pos_h, height), _by_distance(attention.rel_pos_w, width)
    placed = torch.unflatten(query, 2, (height, width))
    asks_row = torch.einsum("bnhwc,hkc->bnhwk", placed, rows).flatten(2, 3)
    asks_column = torch.einsum("bnhwc,wkc->bnhwk", placed, columns).flatten(2, 3)
    lies = _one_hot(height, width, key).expand(*key.shape[:2], -1, -1)
    answer = F.scaled_dot_product_attention(
        torch.cat([query * attention.scale, asks_row, asks_column], -1),
        torch.cat([key, lies], -1),
        value if _takes_narrow_values(value) else F.pad(value, (0, height + width)),
        scale=1.0,
    )[..., : value.shape[-1]]
    projected: Tensor = attention.proj(torch.unflatten(answer.transpose(1, 2).flatten(2), 1, (height, width)))
    return projected


def _takes_narrow_values(value: Tensor) -> bool:
    """Whether the fused kernel does; the others want queries, keys and values of one width."""
    return value.is_cuda and value.dtype == torch.float32


def _by_distance(table: Tensor, side: int) -> Tensor:
    """(2 * side - 1, d) by distance as (side, side, d) by query and key."""
    places = torch.arange(side, device=table.device)
    return table[places[:, None] - places[None, :] + side - 1]


def _one_hot(height: int, width: int, like: Tensor) -> Tensor:
    """(H * W, H + W): in which row and column each cell lies."""
    rows = torch.eye(height, dtype=like.dtype, device=like.device).repeat_interleave(width, 0)
    return torch.cat([rows, torch.eye(width, dtype=like.dtype, device=like.device).repeat(height, 1)], 1)
