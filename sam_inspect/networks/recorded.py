"""A frozen network on a GPU: its kernels recorded once for each shape of its inputs, then launched all at once.

A view through SAM's encoder is hundreds of kernels of a few microseconds each: launched one by one, the GPU waits for
the processor most of the time. The first inputs of a shape run as they are, the second are recorded (a CUDA graph).
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

MOST_RECORDINGS = 64
Work = Callable[..., list[Tensor]]
Shapes = tuple[tuple[int, ...], ...]
log = logging.getLogger(__name__)
# Recordings share the memory of what lies between inputs and outputs, so one is launched at a time.
_alone = threading.RLock()
_pools: dict[int, Any] = {}
_abandoned: list[torch.cuda.CUDAGraph] = []


class Recorded:
    """`work` of tensors on one GPU, the least used recordings forgotten; as it is where it cannot be recorded.

    Args:
        work: tensors to tensors.
        compiled: the same in faster kernels, which take their time to be made; recorded instead where there is one.
        name: of the network, for messages.
    """

    def __init__(self, work: Work, compiled: Work | None, name: str) -> None:
        self.work, self.name = work, name
        self.recordable = [work] if compiled is None else [compiled, work]
        self.recordings: OrderedDict[Shapes, _Recording | None] = OrderedDict()

    @torch.inference_mode()
    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """What `work` answers, in tensors of its own."""
        with _alone:
            recording = self._recording(inputs)
            return self.work(*inputs) if recording is None else recording(inputs)

    def _recording(self, inputs: Sequence[Tensor]) -> _Recording | None:
        shapes = tuple(tuple(tensor.shape) for tensor in inputs)
        if shapes not in self.recordings:
            self.recordings[shapes] = None
            if len(self.recordings) > MOST_RECORDINGS:
                self.recordings.popitem(last=False)
            return None
        if self.recordings[shapes] is None:
            self.recordings[shapes] = self._recorded(inputs)
        self.recordings.move_to_end(shapes)
        return self.recordings[shapes]

    def _recorded(self, inputs: Sequence[Tensor]) -> _Recording | None:
        while self.recordable:
            try:
                return _Recording(self.recordable[0], inputs)
            except RuntimeError as error:  # no compiler, too little memory, or it waits for the GPU somewhere
                missing = "recorded" if len(self.recordable) == 1 else "compiled"
                log.warning("%s cannot be %s (%s); it runs slower", self.name, missing, str(error).split("\n")[0])
                self.recordable.pop(0)
        return None


class _Recording:
    def __init__(self, work: Work, inputs: Sequence[Tensor]) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        self.graph = torch.cuda.CUDAGraph()
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            work(*self.inputs)  # libraries set themselves up on a stream's first use, which cannot be recorded
        current.wait_stream(aside)
        try:
            with torch.cuda.graph(self.graph, pool=_pool(), stream=aside, capture_error_mode="thread_local"):
                self.outputs = work(*self.inputs)
        except RuntimeError:
            _abandon(self.graph)
            raise

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        for kept, given in zip(self.inputs, inputs, strict=True):
            kept.copy_(given)
        self.graph.replay()
        return [tensor.clone() for tensor in self.outputs]


def _pool() -> Any:
    """Memory of the current GPU's recordings."""
    return _pools.setdefault(torch.cuda.current_device(), torch.cuda.graph_pool_handle())


def _abandon(graph: torch.cuda.CUDAGraph) -> None:
    """Leaves to a recording that failed what still waits for its end: its memory, and the GPU's generator.

    Every further recording in that memory, and every use of that generator, would raise.
    """
    _abandoned.append(graph)
    device = torch.cuda.current_device()
    _pools.pop(device, None)
    generator = torch.cuda.default_generators[device]
    fresh = torch.Generator(generator.device).manual_seed(generator.initial_seed())
    generator.graphsafe_set_state(fresh.graphsafe_get_state())
