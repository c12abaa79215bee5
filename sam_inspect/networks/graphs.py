"""Runs a graph without torch: in OpenVINO, or in ONNX Runtime. What there is to choose from stands here too."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import psutil
from numpy.typing import NDArray

from sam_inspect.errors import ConfigError
from sam_inspect.plugins import not_installed
from sam_inspect.weights import cache_folder

RuntimeName = Literal["torch", "openvino", "onnx", "compiled"]
Precision = Literal["f32", "bf16"]
PACKAGES: dict[str, str] = {"torch": "torch", "openvino": "openvino", "onnx": "onnxruntime", "compiled": "torch"}
ON: dict[str, tuple[RuntimeName, ...]] = {"cpu": ("torch", "openvino", "onnx"), "cuda": ("torch", "compiled")}
UNKNOWN_TO_CPUS: tuple[RuntimeName, Precision] = ("onnx", "bf16")
Array = NDArray[np.float32]
Graph = Callable[[list[Array]], list[Array]]
HEIGHT, WIDTH = "height", "width"  # of a graph's first input, where it takes images of any size


@dataclass(frozen=True, slots=True)
class Runtime:
    """What runs a network, and how exactly.

    Attributes:
        name: who runs it; `compiled` is torch with kernels made for the network (`torch.compile`), on a GPU.
        precision: of products; inputs and outputs are float32.
        patient: makes a graph only when torch has spent its price on what it would serve.
    """

    name: RuntimeName = "torch"
    precision: Precision = "f32"
    patient: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.precision}"


TORCH = Runtime()


def check(runtime: Runtime) -> None:
    """Raises ConfigError: it is not known, or does not know the precision; ExtraMissing: it is not installed."""
    if runtime.name not in PACKAGES:
        raise ConfigError(f"runtime {runtime.name}: is not known", f"name one of auto, {', '.join(PACKAGES)}")
    if not installed(runtime.name):
        raise not_installed(f"runtime {runtime.name}", runtime.name)
    if (runtime.name, runtime.precision) == UNKNOWN_TO_CPUS:
        raise ConfigError("runtime onnx: knows no bf16 on a CPU", "name openvino or torch, or f32")


def installed(name: str) -> bool:
    """Whether the package of that runtime is here; nothing is imported."""
    return name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is not None


def openvino_has_bf16() -> bool:
    """Whether OpenVINO finds bfloat16 in this processor."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def usable(device: str = "cpu") -> list[Runtime]:
    """What is installed and runs on `cpu` or `cuda`, in every precision that it knows there, torch in f32 first."""
    every = [Runtime(name, precision) for name in ON[device] for precision in get_args(Precision)]
    return [runtime for runtime in every if installed(runtime.name) and runtime != Runtime(*UNKNOWN_TO_CPUS)]


def threads() -> int:
    """Of the networks: torch's number where torch is here, else `OMP_NUM_THREADS`, else the processor's cores."""
    if (torch := sys.modules.get("torch")) is not None:
        return int(torch.get_num_threads())
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) else min(psutil.cpu_count(logical=False) or 1, cores())


def cores() -> int:
    """Logical ones that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def graph(source: bytes | Path, runtime: Runtime, image_hw: tuple[int, int] | None = None) -> Graph:
    """An ONNX graph's bytes, or a file that the runtime knows, ready to run: arrays to arrays, float32.

    Args:
        source: the graph.
        runtime: who runs it.
        image_hw: the one size that it will see of those it takes; that is 5 to 12 % faster than any size.

    Raises:
        Exception: whatever the runtime raises for what is no graph.
    """
    if runtime.name == "openvino":
        return _in_openvino(source, runtime.precision, image_hw)
    return _in_onnx(source, image_hw)


def _in_openvino(source: bytes | Path, precision: Precision, image_hw: tuple[int, int] | None) -> Graph:
    import openvino

    model = openvino.Core().read_model(model=source)
    if image_hw:
        shape = model.input(0).partial_shape
        shape[2], shape[3] = image_hw
        model.reshape({0: shape})
    compiled = openvino_compiled(model, precision)

    def running(inputs: list[Array]) -> list[Array]:
        answer = compiled(inputs, share_inputs=True)
        return [np.asarray(answer[index], np.float32) for index in range(len(answer))]

    return running


def _in_onnx(source: bytes | Path, image_hw: tuple[int, int] | None) -> Graph:
    session = onnx_session(source, **({HEIGHT: image_hw[0], WIDTH: image_hw[1]} if image_hw else {}))
    names = [each.name for each in session.get_inputs()]
    return lambda inputs: list(session.run(None, dict(zip(names, inputs, strict=True))))


def openvino_compiled(model: Any, precision: Precision) -> Any:
    """An OpenVINO model ready to run on the CPU on `threads`; what was compiled is kept."""
    import openvino

    options: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads(),
        "INFERENCE_PRECISION_HINT": precision,
    }
    folder = cache_folder() / "graphs"
    if os.access(folder, os.W_OK):
        options["CACHE_DIR"] = str(folder / "openvino")  # half a second a graph
    return openvino.Core().compile_model(model, "CPU", options)


def onnx_session(source: bytes | Path, **lengths: int) -> Any:
    """An ONNX Runtime session on the CPU on `threads`, free axes of these names at these lengths."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    for name, length in lengths.items():
        options.add_free_dimension_override_by_name(name, length)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
