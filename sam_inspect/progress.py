"""Progress of long work: the library is handed a wrapper for its loops and does not know what shows it.

`silent` shows nothing, `bar` draws a bar on a terminal, `spoken` says a line every ten seconds where there is none.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from functools import cache
from threading import Timer
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Display

T = TypeVar("T")
BAR_AFTER_SECONDS = 2.0
LINE_SECONDS = 10.0
log = logging.getLogger(__name__)


class Progress(Protocol):
    """Wraps a loop: yields the items on, and may show how far it is."""

    def __call__(self, items: Iterable[T], description: str, total: int) -> Iterator[T]:
        """`items` unchanged; `description` says what one step is about, `total` how many there are."""
        ...


def silent(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Shows nothing."""
    return iter(items)


def spoken(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Logs how far it is, its rate and the time left, every `LINE_SECONDS`; short work says nothing."""
    start = said = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - said >= LINE_SECONDS:
            said = now
            rate = done / (now - start)
            left = max(0, total - done) / rate
            facts = {"done": done, "total": total, "per_second": round(rate, 2), "seconds_left": round(left)}
            log.info("%s: %d of %d, %.1f/s, %.0f s left", description, done, total, rate, left, extra={"facts": facts})
        yield item


def bar(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """A bar on stderr with rate and time left, drawn only where the work takes over `BAR_AFTER_SECONDS`."""
    display = _display()
    task = display.add_task(description, total=total, rate=0.0)
    start = time.monotonic()
    timer = Timer(BAR_AFTER_SECONDS, display.start)
    timer.daemon = True
    timer.start()
    done = 0
    try:
        for item in items:
            yield item
            done += 1
            display.update(task, completed=done, rate=done / max(time.monotonic() - start, 1e-9))
    finally:
        timer.cancel()
        timer.join()
        if display.live.is_started:
            display.stop()


@cache
def _console() -> Console:
    """One console for all bars, so that a bar inside a bar is drawn below it."""
    from rich.console import Console

    return Console(stderr=True)


def _display() -> Display:
    # Imported here: rich costs 50 ms, and most commands never draw a bar.
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Display

    rate = TextColumn("{task.fields[rate]:.1f}/s")
    left = TimeRemainingColumn(elapsed_when_finished=True)
    return Display(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, left, console=_console())
