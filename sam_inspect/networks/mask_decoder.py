"""SAM's mask decoder, segment_anything's modules, with its products in a cheaper order: the same numbers to rounding.

Seven tokens or so meet thousands of cells of the image. segment_anything projects every cell to a key, a value or a
query, and then multiplies; here the tokens take the projection on themselves, and the cells are multiplied as they are:
`q (X W)^T` is `(q W^T) X^T`, half the work (from sixteen tokens on it would be more). And a transposed convolution
whose steps do not overlap is a matrix product of each cell, so that cells stay rows from the first layer to the masks.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer
from torch import Tensor, nn


def decode_each(
    decoder: MaskDecoder, embeddings: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor
) -> tuple[Tensor, Tensor]:
    """`MaskDecoder.predict_masks` for prompts that each ask about an image of its own, as in training, or about one.

    Args:
        decoder: SAM's.
        embeddings: (B, 256, s, s), or (1, 256, s, s) for one image.
        image_pe: (1, 256, s, s), the prompt encoder's `get_dense_pe`.
        sparse: (B, N, 256) of the prompt encoder.
        dense: (B, 256, s, s) of the same, or (1, 256, s, s) where it is the same for all: without masks.

    Returns:
        (B, 4, 4s, 4s) logits and (B, 4) predicted IoU.
    """
    height, width = embeddings.shape[2:]
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own.expand(sparse.shape[0], -1, -1), sparse], 1)
    answers, cells = two_way(decoder.transformer, embeddings + dense, image_pe, tokens)
    heads = decoder.output_hypernetworks_mlps
    weights = torch.stack([head(answers[:, 1 + index]) for index, head in enumerate(heads)], 1)
    return _logits(decoder, cells, weights, (height, width)), decoder.iou_prediction_head(answers[:, 0])


def _logits(decoder: MaskDecoder, cells: Tensor, weights: Tensor, hw: tuple[int, int]) -> Tensor:
    """`output_upscaling` of cells (B, h * w, C), and its product with each mask's weights (B, M, C / 8)."""
    first, norm, _, second, _ = decoder.output_upscaling
    quarters = torch.unflatten(_stepped(first, cells), -1, (4, -1))
    quarters = F.gelu(F.layer_norm(quarters, norm.weight.shape, norm.weight, norm.bias, norm.eps))
    sixteenths = torch.unflatten(F.gelu(_stepped(second, quarters)), -1, (4, -1))
    logits = weights @ sixteenths.flatten(1, 3).transpose(1, 2)
    placed = logits.view(*weights.shape[:2], *hw, 2, 2, 2, 2).permute(0, 1, 2, 4, 6, 3, 5, 7)
    return placed.reshape(*weights.shape[:2], 4 * hw[0], 4 * hw[1])


def _stepped(convolution: nn.ConvTranspose2d, cells: Tensor) -> Tensor:
    """A transposed convolution of kernel and stride 2: (..., C) -> (..., 4 * C'), the four quarters row by row."""
    kernel = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)
    assert convolution.bias is not None
    return F.linear(cells, kernel, convolution.bias.repeat(4))


def two_way(
    transformer: TwoWayTransformer, embeddings: Tensor, image_pe: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """`TwoWayTransformer.forward`.

    Args:
        transformer: SAM's.
        embeddings: (B, C, h, w), or (1, C, h, w).
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
