"""The queue before the model: bounded, in order, one thread that works; late or unwanted work is not done."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sam_inspect.errors import Draining, QueueFull, TooLate

T = TypeVar("T")
SMOOTHING = 0.2


@dataclass(slots=True, eq=False)
class Job(Generic[T]):
    """A piece of work that waits.

    Attributes:
        work: what is to be done, in the model's thread.
        answer: what it came to, for the event loop that asked.
        loop: that loop.
        deadline: `time.monotonic()` after which nobody wants it; None for never.
    """

    work: Callable[[], T]
    answer: asyncio.Future[T]
    loop: asyncio.AbstractEventLoop
    deadline: float | None

    def settle(self, value: T | None, error: BaseException | None) -> None:
        """Answers, unless whoever asked is gone."""

        def set_it() -> None:
            if self.answer.done():
                return
            if error is None:
                self.answer.set_result(value)  # type: ignore[arg-type]
            else:
                self.answer.set_exception(error)

        try:
            self.loop.call_soon_threadsafe(set_it)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return


class WorkQueue:
    """Jobs in the order of their arrival, for one thread.

    Args:
        most: jobs that may wait beside the one that is worked on.
    """

    def __init__(self, most: int) -> None:
        self.most, self.seconds = most, 0.5
        self._waiting: deque[Job[Any]] = deque()
        self._ready = threading.Condition()
        self._closed = False
        self._busy = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Jobs that wait or are worked on."""
        with self._ready:
            return len(self._waiting) + self._busy

    def submit(self, work: Callable[[], T], deadline: float | None = None) -> Job[T]:
        """Takes a job, from a coroutine.

        Raises:
            QueueFull, Draining.
        """
        loop = asyncio.get_running_loop()
        job = Job(work, loop.create_future(), loop, deadline)
        with self._ready:
            if self._closed:
                raise Draining("the service is stopping", "send it again when it is back")
            if len(self._waiting) >= self.most:
                raise self._full()
            self._waiting.append(job)
            self._ready.notify()
        return job

    def _full(self) -> QueueFull:
        seconds = max(1, math.ceil(len(self._waiting) * self.seconds))
        full = QueueFull(f"{len(self._waiting)} images are waiting", f"send it again in {seconds} s")
        full.retry_after_s = seconds
        return full

    def forget(self, job: Job[Any]) -> None:
        """Frees the place of a job that waits; one that is worked on is finished."""
        with self._ready:
            if job in self._waiting:
                self._waiting.remove(job)

    def close(self) -> None:
        """Takes nothing new; what was taken is finished."""
        with self._ready:
            self._closed = True
            self._ready.notify()

    def join(self, timeout_s: float | None = None) -> None:
        """Waits until all that was taken is done, after `close`."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (job := self._next()) is not None:
            start = time.monotonic()
            if job.deadline is not None and start > job.deadline:
                job.settle(
                    None, TooLate("its deadline passed before its turn", "give it longer, or send fewer at once")
                )
                continue
            try:
                job.settle(job.work(), None)
            except BaseException as error:  # whatever it is, whoever asked is told, and the thread goes on
                job.settle(None, error)
            self.seconds += SMOOTHING * (time.monotonic() - start - self.seconds)

    def _next(self) -> Job[Any] | None:
        """The oldest job; None when closed and empty."""
        with self._ready:
            self._busy = False
            while not self._waiting:
                if self._closed:
                    return None
                self._ready.wait()
            self._busy = True
            return self._waiting.popleft()
