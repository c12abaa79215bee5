"""SAM's two-way transformer, segment_anything's modules, with the products of its cross attention in a cheaper order.

Seven tokens or so meet thousands of cells of the image. segment_anything projects every cell to a key, a value or a
query, and then multiplies; here the tokens take the projection on themselves, and the cells are multiplied as they are:
`q (X W)^T` is `(q W^T) X^T`. The same numbers to rounding, for half the work; from sixteen tokens on it would be more.
"""

from __future__ import annotations

import math

import torch
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer
from torch import Tensor, nn


def two_way(
    transformer: TwoWayTransformer, embeddings: Tensor, image_pe: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """`TwoWayTransformer.forward`.

    Args:
        transformer: SAM's.
        embeddings: (B, C, h, w).
        image_pe: (1, C, h, w) positions of its cells.
        tokens: (B, T, C).

    Returns:
        the tokens (B, T, C) and the cells (B, h * w, C) after it.
    """
    cells, cells_pe = _cells(embeddings), _cells(image_pe)
    queries = tokens
    for layer in transformer.layers:
        assert isinstance(layer, TwoWayAttentionBlock)
        queries, cells = _layer(layer, queries, cells, tokens, cells_pe)
    answer = _tokens_ask(transformer.final_attn_token_to_image, queries + tokens, cells + cells_pe, cells)
    return transformer.norm_final_attn(queries + answer), cells


def _cells(image: Tensor) -> Tensor:
    return image.flatten(2).transpose(1, 2).contiguous()


def _layer(
    layer: TwoWayAttentionBlock, queries: Tensor, cells: Tensor, tokens_pe: Tensor, cells_pe: Tensor
) -> tuple[Tensor, Tensor]:
    """`TwoWayAttentionBlock.forward`."""
    if layer.skip_first_layer_pe:
        queries = layer.norm1(layer.self_attn(queries, queries, queries))
    else:
        placed = queries + tokens_pe
        queries = layer.norm1(queries + layer.self_attn(placed, placed, queries))
    placed_cells = cells + cells_pe
    queries = layer.norm2(
        queries + _tokens_ask(layer.cross_attn_token_to_image, queries + tokens_pe, placed_cells, cells)
    )
    queries = layer.norm3(queries + layer.mlp(queries))
    answer = _cells_ask(layer.cross_attn_image_to_token, placed_cells, queries + tokens_pe, queries)
    return queries, layer.norm4(cells + answer)


def _tokens_ask(attention: Attention, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Tokens (B, T, C) to cells (B, N, C): (B, T, C). A bias of keys would move all scores alike."""
    asked = _by_heads(attention, attention.q_proj(tokens)) @ _weights(attention, attention.k_proj)
    shares = torch.softmax(_scaled(attention, asked).flatten(1, 2) @ keys.transpose(1, 2), -1)
    seen = torch.unflatten(shares @ values, 1, (attention.num_heads, -1))
    answer = seen @ _weights(attention, attention.v_proj).transpose(1, 2)
    projected: Tensor = attention.out_proj(answer.transpose(1, 2).flatten(2) + attention.v_proj.bias)
    return projected


def _cells_ask(attention: Attention, cells: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Cells (B, N, C) to tokens (B, T, C): (B, N, C)."""
    heads = attention.num_heads
    keys = _scaled(attention, _by_heads(attention, attention.k_proj(keys)))
    bias = keys @ attention.q_proj.bias.view(heads, -1, 1)
    scores = (keys @ _weights(attention, attention.q_proj)).flatten(1, 2) @ cells.transpose(1, 2)
    shares = torch.softmax(torch.unflatten(scores, 1, (heads, -1)) + bias, 2).flatten(1, 2)
    projection = attention.out_proj.weight.T.reshape(heads, -1, attention.embedding_dim)
    told = (_by_heads(attention, attention.v_proj(values)) @ projection).flatten(1, 2)
    answer: Tensor = shares.transpose(1, 2) @ told + attention.out_proj.bias
    return answer


def _by_heads(attention: Attention, projected: Tensor) -> Tensor:
    """(B, T, heads * d) -> (B, heads, T, d)."""
    return torch.unflatten(projected, 2, (attention.num_heads, -1)).transpose(1, 2)


def _weights(attention: Attention, projection: nn.Linear) -> Tensor:
    """(heads, d, C)."""
    return projection.weight.view(attention.num_heads, -1, attention.embedding_dim)


def _scaled(attention: Attention, asked: Tensor) -> Tensor:
    return asked / math.sqrt(attention.internal_dim // attention.num_heads)
