"""What is installed, where the networks would run, which weights and plugins are here, and how to get what is not."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sam_inspect.errors import WeightsMissing
from sam_inspect.networks.graphs import threads
from sam_inspect.plugins import EXTRA_OF, PluginStatus, list_plugins
from sam_inspect.weights import KNOWN, WeightsState, cache_folder, states

Rows = list[list[str]]
Table = tuple[str, list[str], Rows]
DEFAULT_WEIGHTS = "mobile_sam"
LIBRARIES = {
    "opencv-python-headless": "cv2",
    "numpy": "numpy",
    "pillow": "PIL",
    "pycocotools": "pycocotools",
    "safetensors": "safetensors",
}
EXTRAS = {
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "segment-anything": "segment_anything",
    "scikit-learn": "sklearn",
    "onnx": "onnx",
    "anomalib": "anomalib",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
}
SLOW_TO_IMPORT = {"anomalib", "onnxruntime", "openvino"}
OTHER_OPENCV = ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `sam-inspect doctor` shows.

    Attributes:
        tables: (title, columns, rows) each, for `console.table`.
        healthy: nothing is broken and the default weights are here.
    """

    tables: list[Table]
    healthy: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is missing or broken, and what to do; `broken` where the main job fails for it."""

    what: str
    remedy: str
    broken: bool


def diagnose(device: str = "auto") -> Diagnosis:
    """Looks at everything, imports every library and plugin; changes nothing but the noted times of touched weights.

    Args:
        device: `auto`, `cpu` or `cuda`: whether the networks could run there is part of the answer.
    """
    here = {name: module for name, module in EXTRAS.items() if _version(name) and name not in SLOW_TO_IMPORT}
    libraries, plugins = [_library(*names) for names in (LIBRARIES | here).items()], list_plugins()
    weights = states(_names_of_weights())
    findings = [finding for _, finding in libraries if finding]
    findings += _opencv_findings() + _device_findings(device)
    findings += [finding for state in weights if (finding := _weights_finding(state))]
    findings += [
        Finding(row.error, f"fix or uninstall {row.package}", True)
        for row in plugins
        if row.error and not row.extra_missing
    ]
    findings += [
        Finding(f"{name} (an extra)", f"pip install 'sam-inspect[{EXTRA_OF[EXTRAS[name]]}]'", False)
        for name in EXTRAS
        if _version(name) is None
    ]
    tables = [
        ("Versions", ["what", "version"], _versions([row for row, _ in libraries])),
        ("Machine", ["what", "value"], _machine(device)),
        weights_table(weights),
        ("Plugins", ["name", "kind", "from", "state"], [_plugin_row(row) for row in plugins]),
        ("Missing or broken", ["what", "needed", "what to do"], _finding_rows(findings)),
    ]
    return Diagnosis([table for table in tables if table[2]], not any(finding.broken for finding in findings))


def weights_table(rows: Sequence[WeightsState] | None = None) -> Table:
    """What is known, under which terms, how large, and whether it is here or how to get it."""
    facts = {known.name: (known.what, known.terms, known.files[0].size_bytes) for known in KNOWN}
    shown: Rows = []
    for state in states(_names_of_weights()) if rows is None else rows:
        what, terms, size_bytes = facts.get(state.name, ("your own", "", 0))
        stored = state.stored
        if stored is not None and not stored.terms:
            what, terms = f"your own, from {stored.source}", ""
        size_bytes = stored.size_bytes if stored else size_bytes
        shown.append([state.name, what, terms or "not said", f"{size_bytes / 1e6:,.0f} MB", _here(state)])
    return "Weights", ["name", "what", "terms", "size", "here"], shown


def _finding_rows(findings: Sequence[Finding]) -> Rows:
    """What stops the main job first."""
    ordered = sorted(findings, key=lambda finding: not finding.broken)
    return [[finding.what, "yes" if finding.broken else "if you use it", finding.remedy] for finding in ordered]


def _names_of_weights() -> list[str]:
    known = [row.name for row in KNOWN]
    return known + [state.name for state in states() if state.name not in known]


def _here(state: WeightsState) -> str:
    if state.error is None:
        return "yes"
    return state.error.remedy if isinstance(state.error, WeightsMissing) else f"damaged; {state.error.remedy}"


def _weights_finding(state: WeightsState) -> Finding | None:
    if state.error is None:
        return None
    missing = isinstance(state.error, WeightsMissing)
    what = f"weights {state.name}" if missing else state.error.problem
    return Finding(
        what, state.error.remedy, not missing or (state.name == DEFAULT_WEIGHTS and _version("torch") is not None)
    )


def _library(distribution: str, module: str) -> tuple[list[str], Finding | None]:
    """Its row, and what is wrong with it: a library may be installed and not load, as a mismatched torchvision does."""
    try:
        loaded = importlib.import_module(module)
    except Exception as error:  # somebody else's module: it may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        remedy = f"pip install --force-reinstall {distribution}, or make setup"
        return [distribution, "does not load"], Finding(f"{distribution} does not load ({reason})", remedy, True)
    return [distribution, _version(distribution) or str(getattr(loaded, "__version__", "unknown"))], None


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _versions(libraries: Rows) -> Rows:
    own = [["python", platform.python_version()], ["sam-inspect", _version("sam-inspect") or "not installed"]]
    shown = {name for name, _ in libraries}
    return own + libraries + [[name, _version(name) or "not installed"] for name in EXTRAS if name not in shown]


def _opencv_findings() -> list[Finding]:
    others = [name for name in OTHER_OPENCV if _version(name)]
    if not others or _version("opencv-python-headless") is None:
        return []
    remedy = f"pip uninstall {' '.join(others)} and pip install --force-reinstall opencv-python-headless"
    return [Finding(f"{' and '.join(others)} beside opencv-python-headless overwrite each other's files", remedy, True)]


def _device_findings(device: str) -> list[Finding]:
    if device != "cuda" or _cuda() is not None:
        return []
    return [
        Finding("a GPU that torch can use", "install its driver and a torch built for it, or use --device cpu", True)
    ]


def _cuda() -> str | None:
    """The GPU's name and memory; None without one, or without a torch that loads."""
    try:
        import torch

        if not torch.cuda.is_available():
            return None
        facts = torch.cuda.get_device_properties(0)
        return f"{facts.name}, {facts.total_memory / 1e9:.0f} GB"
    except Exception:  # a torch that does not load is a finding of its own
        return None


def _machine(device: str) -> Rows:
    import psutil

    gpu = _cuda()
    memory, folder = psutil.virtual_memory(), cache_folder()
    runs = gpu if gpu and device != "cpu" else "the CPU"
    return [
        ["system", f"{platform.system()} {platform.release()}, {platform.machine()}"],
        ["networks run on", runs],
        ["CPU threads", f"{threads()} of {os.cpu_count()} cores"],
        ["memory", f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"],
        ["cache", str(folder)],
        ["disk free there", f"{_free_bytes(folder) / 1e9:.1f} GB"],
    ]


def _free_bytes(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


def _plugin_row(row: PluginStatus) -> list[str]:
    state = "needs an extra" if row.extra_missing else "broken" if row.error else "loads"
    return [row.name, row.kind, row.package, state]
