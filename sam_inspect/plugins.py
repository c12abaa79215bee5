"""Plugins: entry points of installed packages by kind and name, loaded only when somebody names them.

The name of the entry point is the word in a recipe's config. The package's own localizers and segmenters come through
the same door as a third party's:

    [project.entry-points."sam_inspect.localizers"]
    my_localizer = "my_package.module:MyLocalizer"
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Literal, get_args

from sam_inspect.errors import ExtraMissing, NoSuchPlugin, PluginError

Kind = Literal["localizers", "segmenters", "outputs"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_IN_TORCH = ("torch", "torchvision", "timm", "segment_anything", "sklearn", "onnx")
EXTRA_OF = dict.fromkeys(_IN_TORCH, "torch") | {"anomalib": "anomalib", "onnxruntime": "onnx", "openvino": "openvino"}
_IN_SERVE = ("alembic", "fastapi", "paho", "prometheus_client", "sqlalchemy", "uvicorn")
EXTRA_OF |= dict.fromkeys(_IN_SERVE, "serve") | {"psycopg": "postgres", "nncf": "int8"}
"""The extra of sam_inspect that brings a module."""


@dataclass(frozen=True, slots=True)
class PluginStatus:
    """One entry point, after trying to load it.

    Attributes:
        kind: `localizers`, `segmenters` or `outputs`.
        name: the word in a config.
        target: `module:attribute`.
        package: name and version of the distribution that offers it; empty where that is not known.
        error: why it does not load, one line; None for one that does.
        extra_missing: it would load with an extra of sam_inspect.
    """

    kind: Kind
    name: str
    target: str
    package: str
    error: str | None
    extra_missing: bool = False


def load_plugin(kind: Kind, name: str) -> type:
    """The class that `name` stands for. Imports its module; no other plugin's.

    Raises:
        PluginError: no such name (the nearest is given), two packages offer it, or it does not load.
    """
    points = entry_points(group=_group(kind))
    found = points.select(name=name)
    if not found:
        raise _unknown(kind, name, (point.name for point in points))
    if len({point.value for point in found}) > 1:
        packages = " and ".join(sorted({_package(point) for point in found}))
        raise PluginError(f"{name}: {packages} each offer one in {_group(kind)}", "uninstall all but one of them")
    return _load(next(iter(found)))


def broken_contract(name: str, loaded: type, protocol: type) -> PluginError:
    """Says which methods of a protocol (of `localize` or `segment`) the class of a plugin lacks."""
    missing = [method for method in dir(protocol) if not method.startswith("_") and not hasattr(loaded, method)]
    problem = f"{name}: the plugin {loaded.__module__}:{loaded.__qualname__} lacks {', '.join(missing)}"
    return PluginError(problem, f"give it what {protocol.__module__}.{protocol.__qualname__} has")


def list_plugins() -> list[PluginStatus]:
    """Every entry point of every kind, each loaded to see whether it can be; a broken one is a row, never an error."""
    found = [(kind, point) for kind in KINDS for point in entry_points(group=_group(kind))]
    rows = {(kind, point.name, point.value): _status(kind, point) for kind, point in found}
    return sorted(rows.values(), key=lambda row: (KINDS.index(row.kind), row.name))


def _group(kind: Kind) -> str:
    return f"sam_inspect.{kind}"


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else ""


def _load(point: EntryPoint) -> type:
    try:
        loaded = point.load()
    except ModuleNotFoundError as error:
        raise _broken(point, error) if (missing := missing_extra(error)) is None else missing from error
    except Exception as error:  # a plugin's module is somebody else's code: it may raise anything
        raise _broken(point, error) from error
    if not isinstance(loaded, type):
        raise PluginError(f"{point.name}: the plugin {point.value} is not a class", "name a class in its entry point")
    return loaded


def _broken(point: EntryPoint, error: Exception) -> PluginError:
    problem = f"{point.name}: the plugin {point.value} does not load ({type(error).__name__}: {error})"
    return PluginError(problem, f"fix or uninstall the package {_package(point)}")


def missing_extra(error: ModuleNotFoundError) -> ExtraMissing | None:
    """What to install where an absent module is one that an extra of sam_inspect brings."""
    module = (error.name or "").partition(".")[0]
    if module not in EXTRA_OF:
        return None
    return not_installed(module, EXTRA_OF[module])


def not_installed(what: str, extra: str) -> ExtraMissing:
    """The error that says so, and which extra of sam_inspect brings it."""
    return ExtraMissing(f"{what} is not installed", f"pip install 'sam-inspect[{extra}]'")


def _status(kind: Kind, point: EntryPoint) -> PluginStatus:
    try:
        _load(point)
    except PluginError as broken:
        missing = isinstance(broken, ExtraMissing)
        return PluginStatus(kind, point.name, point.value, _package(point), broken.problem, missing)
    return PluginStatus(kind, point.name, point.value, _package(point), None)


def _unknown(kind: Kind, name: str, known: Iterable[str]) -> NoSuchPlugin:
    names = sorted(set(known))
    nearest = difflib.get_close_matches(name, names, n=1)
    remedy = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(names) or 'none'}"
    return NoSuchPlugin(f"{name}: there is no {kind.removesuffix('s')} of that name", remedy)
