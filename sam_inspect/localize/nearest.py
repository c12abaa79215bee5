"""Distances to the nearest of many good patches, as a matrix product in the right precision."""

from __future__ import annotations

import torch
from torch import Tensor

QUERIES_AT_ONCE = 1024
CANDIDATES = 3


class NearestPatches:
    """A memory bank that answers with the distance to its nearest row.

    A half-precision product ranks the rows where the processor has one; the few best are then compared again in float32,
    so the distance is exact and only a near-tie may be decided by rounding.
    """

    def __init__(self, bank: Tensor) -> None:
        """`bank`: (n, C) float32."""
        self.bank = bank
        self.half = _fast_half(bank.device)
        self._rows = bank.to(self.half).T.contiguous()
        self._half_squares = (bank.square().sum(1) / 2).to(torch.float32)

    @torch.inference_mode()
    def distances(self, queries: Tensor) -> Tensor:
        """(q, C) float32 -> (q,) float32 Euclidean distances."""
        return torch.cat([self._chunk(chunk) for chunk in queries.split(QUERIES_AT_ONCE)])

    def _chunk(self, queries: Tensor) -> Tensor:
        closeness = (queries.to(self.half) @ self._rows).float() - self._half_squares
        best = closeness.topk(min(CANDIDATES, len(self.bank)), dim=1).indices
        return (self.bank[best] - queries[:, None]).square().sum(-1).amin(1).sqrt()


def _fast_half(device: torch.device) -> torch.dtype:
    """bfloat16 where it is faster than float32: on CUDA and on processors with AVX512-BF16 or AMX, else float32."""
    if device.type != "cpu":
        return torch.bfloat16
    capable = torch.cpu.get_capabilities()
    return torch.bfloat16 if capable.get("avx512_bf16") or capable.get("amx_bf16") else torch.float32
