"""Every error that a user can cause or meet, each with its exit code (CLI) and HTTP status.

SamInspectError
├── UsageError            2, 400   the command or request asks for something that cannot be
│   ├── ConfigError       2, 422   an unknown key, a value out of range
│   ├── DatasetError      2, 422   a data folder that is empty or not laid out as expected
│   ├── BoxesError        2, 422   a boxes file or a box that cannot be used
│   └── RecipeError       2, 422   a recipe folder that is missing, cut or of another schema
├── ImageError            1, 422   one picture that cannot be read or is too large
│   └── TooLarge          1, 413   of more bytes than are taken
├── WeightsError          1, 503   weights that are cut, swapped or unsafe to load
│   └── WeightsMissing    1, 503   known weights that are not on this machine yet
├── FetchError            1, 502   a source that did not answer, or answered with other bytes
├── OutputError           1, 507   a folder that cannot be written, a full disk
├── PluginError           1, 500   a plugin that does not load or breaks its contract
│   ├── NoSuchPlugin      2, 422   a name that no plugin has
│   └── ExtraMissing      2, 500   a part that is not installed
└── ServiceError          1, 503   what only a running service meets: its store does not answer
    ├── Refused           1, 503   an output does not want a record
    ├── NotFound          1, 404   no such recipe or inspection
    ├── Forbidden         1, 401   no key, or none that is known
    ├── Conflict          1, 409   the same idempotency key with another image
    ├── QueueFull         1, 429   as much is waiting as may wait
    ├── Draining          1, 503   it is stopping
    ├── Starting          1, 503   its recipes are still loading
    ├── TooLate           1, 504   the deadline passed before its turn
    └── ClientGone        1, 499   whoever asked went away
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class SamInspectError(Exception):
    """Base of all. `str()` is one line: what is wrong, naming the file, then the remedy.

    Args:
        problem: what is wrong, beginning with the file or value it is about.
        remedy: what the user can do about it, in the imperative; may be empty.
    """

    exit_code = 1
    http_status = 500

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.problem}; {self.remedy}" if self.remedy else self.problem
        return " ".join(text.split())


class UsageError(SamInspectError):
    """The command or request asks for something that cannot be."""

    exit_code = 2
    http_status = 400


class ConfigError(UsageError):
    """An unknown key or a value out of range in a configuration."""

    http_status = 422


class DatasetError(UsageError):
    """A data folder that is empty or not laid out as expected."""

    http_status = 422


class BoxesError(UsageError):
    """A boxes file, or a box in it, that cannot be used."""

    http_status = 422


class RecipeError(UsageError):
    """A recipe folder that is missing, cut, or of another schema."""

    http_status = 422


class ImageError(SamInspectError):
    """One picture that cannot be read or is too large."""

    http_status = 422


class TooLarge(ImageError):
    """A picture of more bytes than are taken."""

    http_status = 413


class WeightsError(SamInspectError):
    """Weights that are cut, swapped, of another size, or unsafe to load."""

    http_status = 503


class WeightsMissing(WeightsError):
    """Known weights that are not on this machine yet."""


class FetchError(SamInspectError):
    """A source of weights that did not answer, or answered with other bytes."""

    http_status = 502


class OutputError(SamInspectError):
    """A folder that cannot be written, or a full disk."""

    http_status = 507


class PluginError(SamInspectError):
    """A plugin that does not load or breaks its contract."""


class NoSuchPlugin(PluginError, UsageError):
    """A name in a configuration that no plugin has."""

    http_status = 422


class ExtraMissing(PluginError, UsageError):
    """A part of sam_inspect that is not installed: one of its extras brings it."""

    http_status = 500


class ServiceError(SamInspectError):
    """What only a running service meets: its store, or a side that it delivers to, does not answer."""

    http_status = 503


class Refused(ServiceError):
    """An output's other side has read a record and does not want it."""


class NotFound(ServiceError):
    """No such recipe or inspection."""

    http_status = 404


class Forbidden(ServiceError):
    """A request without a key, or with one that is not known."""

    http_status = 401


class Conflict(ServiceError):
    """The same idempotency key with another image."""

    http_status = 409


class QueueFull(ServiceError):
    """As much is waiting as may wait.

    Attributes:
        retry_after_s: seconds until there is likely to be room.
    """

    http_status = 429
    retry_after_s = 1


class Draining(ServiceError):
    """The service is stopping and takes nothing new."""


class Starting(ServiceError):
    """The service does not take anything yet."""


class TooLate(ServiceError):
    """The deadline passed before its turn came."""

    http_status = 504


class ClientGone(ServiceError):
    """Whoever asked went away while it waited."""

    http_status = 499


@contextmanager
def ctrl_c_as_such() -> Iterator[None]:
    """Raises KeyboardInterrupt where an error came of one.

    A library in C++ makes an ImportError of a Ctrl-C in the middle of its import (pybind11's `raise_from`).
    """
    try:
        yield
    except Exception as error:
        if _is_ctrl_c(error):
            raise KeyboardInterrupt from error
        raise


def _is_ctrl_c(error: BaseException | None) -> bool:
    """Itself, or what it came of."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or _is_ctrl_c(error.__cause__))
