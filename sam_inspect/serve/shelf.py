"""The recipes of a running service: each loaded and warmed up before it is used, swapped whole, rolled back."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from sam_inspect.errors import NotFound, RecipeError, UsageError
from sam_inspect.exports import FACTS, is_export, load_export
from sam_inspect.pipeline import Inspector
from sam_inspect.recipe import RECIPE

WARM_HW = (512, 512)
WARM_BOX = (40.0, 40.0, 120.0, 120.0)
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A recipe that is ready.

    Attributes:
        name: of its folder.
        version: the first digits of the hash of all that it says.
        inspector: warmed up.
        loaded_at: when.
    """

    name: str
    version: str
    inspector: Inspector
    loaded_at: datetime


class Shelf:
    """See the module.

    Args:
        folders: of recipes or exports, or of folders of them.
        open_recipe: loads one.

    Raises:
        RecipeError: there is none in a folder.
        UsageError: two have the same name.
    """

    def __init__(self, folders: Sequence[Path], open_recipe: Callable[[Path], Inspector]) -> None:
        self._folders, self._open = tuple(folders), open_recipe
        self._current: dict[str, Loaded] = {}
        self._before: dict[str, Loaded] = {}
        self._loading = threading.Lock()
        self.places()

    def places(self) -> dict[str, Path]:
        """Folder by name of every recipe that lies there now, loaded or not."""
        found: dict[str, Path] = {}
        for folder in self._folders:
            inside = [folder] if _is_recipe(folder) else [path for path in _folders_in(folder) if _is_recipe(path)]
            if not inside:
                raise RecipeError(f"{folder}: holds no recipe", "train one, or name its own folder")
            for path in inside:
                name = path.resolve().name if path.name in ("", ".", "..") else path.name
                if found.setdefault(name, path) != path:
                    raise UsageError(f"{path} and {found[name]} have the same name", "rename one of the folders")
        return found

    def all(self) -> list[Loaded]:
        """Those that are loaded, by name."""
        return [self._current[name] for name in sorted(self._current)]

    def get(self, name: str) -> Loaded:
        """The one of that name. Raises NotFound."""
        if (loaded := self._current.get(name)) is None:
            raise NotFound(f"recipe {name[:80]!r}: is not loaded", f"loaded are {', '.join(sorted(self._current))}")
        return loaded

    def load(self, name: str) -> Loaded:
        """Loads what lies in its folder now, warms it up, and only then puts it in the place of the one before.

        Raises:
            NotFound: no folder of that name.
            RecipeError, WeightsError, ConfigError: it cannot be used; the one before stays.
        """
        with self._loading:
            places = self.places()
            if name not in places:
                raise NotFound(f"recipe {name[:80]!r}: has no folder here", f"there are {', '.join(sorted(places))}")
            loaded = self._warm(name, places[name])
            if (before := self._current.get(name)) is not None and before.version != loaded.version:
                self._before[name] = before
            self._current[name] = loaded
        log.info("recipe %s, version %s: ready", name, loaded.version)
        return loaded

    def roll_back(self, name: str) -> Loaded:
        """Puts the one before in its place again. Raises NotFound."""
        with self._loading:
            if name not in self._before:
                raise NotFound(f"recipe {name[:80]!r}: has no version before this one", "load another into its folder")
            self._current[name], self._before[name] = self._before[name], self._current[name]
        return self._current[name]

    def _warm(self, name: str, folder: Path) -> Loaded:
        version = _version(folder)
        inspector = self._open(folder)
        image = np.full((*_image_hw(folder, inspector), 3), 128, np.uint8)
        inspector.inspect(image)
        inspector.inspect(image, boxes=[WARM_BOX])
        return Loaded(name, version, inspector, datetime.now(UTC))


def _image_hw(folder: Path, inspector: Inspector) -> tuple[int, int]:
    """Of the images that it will see."""
    if is_export(folder):
        return load_export(folder).original_hw
    return (inspector.recipe.image_hw if inspector.recipe else None) or WARM_HW


def _is_recipe(folder: Path) -> bool:
    return (folder / RECIPE).is_file() or (folder / FACTS).is_file()


def _folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _version(folder: Path) -> str:
    file = folder / (FACTS if is_export(folder) else RECIPE)
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise RecipeError(f"{file}: cannot be read ({error.strerror})", "copy the whole folder again") from None
