"""Which runtime is the fastest here: measured once for each network on a machine, and remembered."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import cast

import torch
from torch import nn

from sam_inspect.errors import OutputError, UsageError
from sam_inspect.files import make_folder, write_text
from sam_inspect.networks.graphs import ON, PACKAGES, Precision, Runtime, RuntimeName, check, usable
from sam_inspect.networks.runtime import has_bf16, run, running_on
from sam_inspect.weights import cache_folder

ROUNDS, VIEW_PX = 3, 512
log = logging.getLogger(__name__)


def pick_runtime(name: str, precision: str, device: str, encoder: nn.Module | None, sha256: str = "") -> Runtime:
    """The runtime that a command line asks for.

    Args:
        name: `torch`, `openvino`, `onnx`, `compiled`, or `auto` for the fastest here, torch where there is nothing to
            measure.
        precision: `f32` or `bf16`; `auto` is f32, with which masks do not change.
        device: `cpu`, or `cuda`, where it is torch, compiled or not.
        encoder: of the recipe's SAM, which is measured; None where it has none.
        sha256: of its weights.

    Raises:
        UsageError: what is asked for does not run on that device.
        ExtraMissing: it is not installed.
    """
    exact: Precision = "bf16" if precision == "bf16" else "f32"
    named = _named(name, exact, device) if name != "auto" else None
    if exact == "bf16" and device == "cpu" and not has_bf16():
        log.warning("--precision bf16: this processor computes none; f32 is used")
        exact = "f32"
    if named is not None:
        return replace(named, precision=exact)
    every = [runtime for runtime in usable() if runtime.precision == exact]
    if device != "cpu" or encoder is None or len(every) == 1:
        return Runtime("torch", exact)
    return replace(_fastest(every, encoder, sha256), patient=True)


def _named(name: str, precision: Precision, device: str) -> Runtime:
    """Checked whatever this processor computes: a line that is wrong on one station is wrong on all."""
    runtime = Runtime(cast(RuntimeName, name), precision)
    check(runtime)
    if runtime.name not in ON[device]:
        raise UsageError(
            f"--runtime {name}: runs on {'a GPU' if device == 'cpu' else 'the CPU'} only",
            f"name one of auto, {', '.join(ON[device])}",
        )
    return runtime


def _fastest(every: list[Runtime], encoder: nn.Module, sha256: str) -> Runtime:
    file = cache_folder() / "runtimes.json"
    known = _remembered(file)
    machine = f"{platform.node()} {os.cpu_count()} {torch.get_num_threads()} {sha256[:16]}"
    key = " ".join([machine, *(f"{runtime} {version(PACKAGES[runtime.name])}" for runtime in every)])
    names = {str(runtime): runtime for runtime in every}
    if known.get(key) not in names:
        log.info("measuring which of %s runs the networks fastest here; once", ", ".join(names))
        known[key] = str(min(every, key=lambda runtime: _seconds(runtime, encoder)))
        try:
            make_folder(file.parent)
            write_text(file, json.dumps(known, indent=2) + "\n")
        except OutputError as error:
            log.debug("%s; it is measured again next time", error)
    return names[known[key]]


def _remembered(file: Path) -> dict[str, str]:
    """By key; nothing of a file that is absent or damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _seconds(runtime: Runtime, encoder: nn.Module) -> float:
    """The best of a few runs, after the first."""
    device, side = next(encoder.parameters()).device, int(getattr(encoder, "img_size", VIEW_PX))
    images, times = torch.zeros(1, 3, side, side, device=device), []
    with running_on(runtime):
        running = run(encoder, device)
    running(images)
    for _ in range(ROUNDS):
        start = time.perf_counter()
        running(images)
        times.append(time.perf_counter() - start)
    return min(times)
