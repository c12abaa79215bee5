"""What runs a frozen network: torch itself, or a graph of it in OpenVINO or ONNX Runtime.

A graph is made of the module (seconds) and kept in the user's cache under the hash of everything that makes it; later
processes load it. It serves one size of images, or all where the module can have such a graph. A patient runtime leaves
them to torch until the graph would have paid for itself.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from sam_inspect.errors import OutputError, ctrl_c_as_such
from sam_inspect.files import drop_oldest, make_folder, write_bytes
from sam_inspect.networks.graphs import HEIGHT, TORCH, WIDTH, Array, Graph, Precision, Runtime, check, graph
from sam_inspect.networks.recorded import Recorded
from sam_inspect.weights import cache_folder

OPSET = 17
# A graph holds some 120 MB in memory and 20 on disk, twice that with what OpenVINO keeps of it.
MOST_GRAPHS, MOST_BYTES = 8, 4 << 30
MAKING_SECONDS, LOADING_SECONDS = 2.5, 0.4
# A graph saves about half of what torch takes: it has paid for itself when torch has taken twice its price.
PATIENCE = 2
# On a CPU a batch gains a twentieth at best, and every further size of batch is a further graph to make and to load.
IMAGES_AT_ONCE = {"cpu": 1, "cuda": 16}
PIXELS_AT_ONCE = 16 * 512 * 512
Free = Mapping[int, Sequence[int]]
FIXED: Free = {}
log = logging.getLogger(__name__)
_current: ContextVar[Runtime] = ContextVar("runtime", default=TORCH)


@contextmanager
def running_on(runtime: Runtime) -> Iterator[None]:
    """Networks that are built within it run on `runtime`, and stay there.

    Raises:
        ConfigError: it does not know the precision.
        ExtraMissing: it is not installed.
    """
    check(runtime)
    token = _current.set(runtime)
    try:
        yield
    finally:
        _current.reset(token)


def has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32: with AVX512-BF16 or AMX."""
    capable = torch.cpu.get_capabilities()
    return bool(capable.get("avx512_bf16") or capable.get("amx_bf16"))


def at_once(pixels: int, device: torch.device) -> int:
    """Images of so many pixels that share a batch."""
    return min(IMAGES_AT_ONCE[device.type], max(1, PIXELS_AT_ONCE // pixels))


def batches_of(count: int, pixels: int, device: torch.device) -> Iterator[slice]:
    """The batches of `count` images of so many pixels."""
    most = at_once(pixels, device)
    return (slice(start, start + most) for start in range(0, count, most))


class Running(Protocol):
    """A frozen module in its runtime."""

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Its inputs, float32 on its device -> its outputs, float32."""
        ...


@runtime_checkable
class Sizable(Protocol):
    """A module that has another form where all its images are of one size."""

    def for_size(self, height: int, width: int) -> nn.Module:
        """That form."""
        ...


@runtime_checkable
class AnySize(Protocol):
    """A module of which one graph serves images of all sizes.

    Attributes:
        traced_px: side of images on whose way through it lies everything that other sizes need.
    """

    traced_px: int


def run(module: nn.Module, device: torch.device, free: Free = FIXED) -> Running:
    """The module in the runtime in force; on a GPU it is torch, compiled or not, and recorded.

    Args:
        module: frozen, in evaluation mode; tensors to a tensor or several.
        device: where it lies.
        free: axes of its inputs, by their places, that may be of any length in one graph.
    """
    runtime = _current.get()
    in_torch = _InTorch(module, device, runtime.precision)
    if device.type == "cuda":
        compiles = runtime.name == "compiled" and not free  # on free axes it would be again for each length
        compiled = _InTorch(_compiled(module), device, runtime.precision) if compiles else None
        return Recorded(in_torch, compiled, type(module).__name__)
    if runtime.name == "torch":
        return in_torch
    return _InGraphs(in_torch, runtime, free)


def _compiled(module: nn.Module) -> nn.Module:
    """With kernels that torch makes on the first inputs of a shape, seconds each; they are kept for later processes."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "graphs" / "compiled"))
    return cast(nn.Module, torch.compile(module, dynamic=False))


class _InTorch:
    def __init__(self, module: nn.Module, device: torch.device, precision: Precision) -> None:
        self.module, self.device, self.half = module, device, precision == "bf16"

    @torch.inference_mode()
    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """See `Running`."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            answer = self.module(*inputs)
        return [tensor.float() for tensor in _several(answer)]


class _InGraphs:
    """A graph for each shape of the inputs, the least used ones forgotten.

    Of what is `AnySize` one for the size that comes first, since a camera has one, and one for all others.
    """

    def __init__(self, in_torch: _InTorch, runtime: Runtime, free: Free) -> None:
        self.in_torch, self.module, self.runtime, self.free = in_torch, in_torch.module, runtime, free
        self.any_size = isinstance(self.module, AnySize)
        self.in_file = {**free, 0: (*free.get(0, ()), 2, 3)} if self.any_size else free
        self.key = self.first = ""
        self.graphs: OrderedDict[str, Graph] = OrderedDict()
        self.torch_seconds: dict[str, float] = {}

    @torch.inference_mode()
    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """See `Running`."""
        exact, shared = _shapes(inputs, self.free), _shapes(inputs, self.in_file)
        self.first = self.first or exact
        served = exact if exact == self.first else shared
        if served not in self.graphs:
            if self.runtime.patient and self.torch_seconds.get(shared, 0.0) < PATIENCE * self._price(shared):
                return self._timed(inputs, shared)
            self.graphs[served] = self._made(inputs, shared, alone=served != shared)
            if len(self.graphs) > MOST_GRAPHS:
                self.torch_seconds.pop(self.graphs.popitem(last=False)[0], None)
        self.graphs.move_to_end(served)
        answers = self.graphs[served]([tensor.contiguous().numpy() for tensor in inputs])
        return [torch.from_numpy(answer) for answer in answers]

    def _price(self, shapes: str) -> float:
        return LOADING_SECONDS if self._file(shapes).is_file() else MAKING_SECONDS

    def _timed(self, inputs: Sequence[Tensor], shapes: str) -> list[Tensor]:
        start = time.perf_counter()
        answers = self.in_torch(*inputs)
        self.torch_seconds[shapes] = self.torch_seconds.get(shapes, 0.0) + time.perf_counter() - start
        return answers

    def _file(self, shapes: str) -> Path:
        self.key = self.key or _key(self.module)
        return cache_folder() / "graphs" / f"{self.key}-{shapes}.onnx"

    def _made(self, inputs: Sequence[Tensor], shapes: str, alone: bool) -> Graph:
        """From its file, which is made where it is absent; `alone` where it is to serve only the size at hand."""
        file = self._file(shapes)
        image_hw = (inputs[0].shape[2], inputs[0].shape[3]) if alone else None
        try:
            with ctrl_c_as_such():
                kept = graph(file.read_bytes(), self.runtime, image_hw)
            _touch(file)
            return kept
        except Exception as error:  # absent, or whatever a runtime raises for a damaged graph
            log.debug("%s: %s; it is made", file, error)
        try:
            with ctrl_c_as_such():
                content = exported(self.module, inputs, self.free, self.any_size)
        except Exception as error:  # whatever torch's exporter raises for a network that has no graph
            log.warning("%s has no graph (%s); torch runs it", type(self.module).__name__, type(error).__name__)
            return self._arrays_in_torch
        _keep(file, content)
        return graph(content, self.runtime, image_hw)

    def _arrays_in_torch(self, inputs: list[Array]) -> list[Array]:
        return [answer.numpy() for answer in self.in_torch(*map(torch.from_numpy, inputs))]


def _shapes(inputs: Sequence[Tensor], free: Free) -> str:
    """As in `1x3x512x512`, `n` for a free axis."""
    sides = [
        ["n" if axis in free.get(place, ()) else str(side) for axis, side in enumerate(tensor.shape)]
        for place, tensor in enumerate(inputs)
    ]
    return "-".join("x".join(shape) for shape in sides)


def _several(answer: Any) -> tuple[Tensor, ...]:
    return (answer,) if isinstance(answer, Tensor) else tuple(answer)


def _key(module: nn.Module) -> str:
    """Of its structure, of every number in it, and of the code that computes with them."""
    digest = hashlib.sha256(f"{module!r} {torch.__version__} {OPSET}".encode())
    own = {Path(inspect.getfile(type(part))) for part in module.modules()} | set(Path(__file__).parent.glob("*.py"))
    for file in sorted(own):
        digest.update(file.read_bytes())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _keep(file: Path, content: bytes) -> None:
    """For later processes; a full disk costs them time, nothing else."""
    try:
        make_folder(file.parent)
        write_bytes(file, content)
    except OutputError as error:
        log.debug("%s; the graph is made again next time", error)
    drop_oldest([*file.parent.glob("*.onnx"), *file.parent.glob("openvino/*.blob")], MOST_BYTES)


def _touch(file: Path) -> None:
    """What is used is not the oldest; a cache that cannot be written stays as it is."""
    with suppress(OSError):
        file.touch()


def exported(module: nn.Module, inputs: Sequence[Tensor], free: Free = FIXED, any_size: bool = False) -> bytes:
    """The ONNX file of the module for inputs of exactly these shapes but for free axes.

    Its inputs are `input_0`, `input_1`, …, its outputs `output_0`, …. With `any_size`, which takes a module that is
    `AnySize`, the images of `input_0` are free in their height and width.
    """
    examples = [torch.zeros(_example_shape(tensor, free.get(place, ()))) for place, tensor in enumerate(inputs)]
    axes = {place: {axis: f"n{place}_{axis}" for axis in every} for place, every in free.items()}
    if any_size:
        side = cast(AnySize, module).traced_px
        examples[0] = torch.zeros(*examples[0].shape[:2], side, side)
        axes[0] = axes.get(0, {}) | {2: HEIGHT, 3: WIDTH}
    module = module.for_size(*examples[0].shape[-2:]) if isinstance(module, Sizable) else module
    module.eval()  # torch's exporter leaves it in the mode that it finds its outermost part in
    names = [f"input_{place}" for place in range(len(examples))]
    with TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells of each of our shapes that it becomes a constant: it is meant to
        file = Path(folder) / "graph.onnx"
        torch.onnx.export(
            module,
            tuple(examples),
            file,
            input_names=names,
            output_names=[f"output_{place}" for place in range(len(_several(module(*examples))))],
            dynamic_axes={names[place]: every for place, every in axes.items()},
            opset_version=OPSET,
            dynamo=False,  # a fifth of the time, without onnxscript, and no slower to run
        )
        return file.read_bytes()


def _example_shape(tensor: Tensor, free: Sequence[int]) -> list[int]:
    """Three on free axes: what is traced with one would be a constant."""
    return [3 if axis in free else side for axis, side in enumerate(tensor.shape)]
