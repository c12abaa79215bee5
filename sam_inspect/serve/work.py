"""The queue before the model: bounded and in order. One thread reads ahead, one works; late work is not done."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import Queue
from typing import Any, Generic, TypeVar

from sam_inspect.errors import Draining, QueueFull, TooLate

P = TypeVar("P")
T = TypeVar("T")
SMOOTHING = 0.2


@dataclass(slots=True, eq=False)
class Job(Generic[P, T]):
    """A piece of work that waits.

    Attributes:
        read: what comes before the work, while the model is busy with the one before.
        work: what is to be done with that, in the model's thread.
        answer: what it came to, for the event loop that asked.
        loop: that loop.
        deadline: `time.monotonic()` after which nobody wants it; None for never.
    """

    read: Callable[[], P]
    work: Callable[[P], T]
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
    """Jobs in the order of their arrival.

    Args:
        most: jobs that may wait, beside the one that is worked on and the one that is read ahead.
    """

    def __init__(self, most: int) -> None:
        self.most, self.seconds = most, 0.5
        self._waiting: deque[Job[Any, Any]] = deque()
        self._ready = threading.Condition()
        self._closed = False
        self._taken = 0
        self._read: Queue[tuple[Job[Any, Any], Any] | None] = Queue(maxsize=1)
        self._threads = [
            threading.Thread(target=self._read_ahead, name="reader", daemon=True),
            threading.Thread(target=self._run, name="model", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """Jobs that wait or are worked on."""
        with self._ready:
            return len(self._waiting) + self._taken

    def submit(self, read: Callable[[], P], work: Callable[[P], T], deadline: float | None = None) -> Job[P, T]:
        """Takes a job, from a coroutine.

        Raises:
            QueueFull, Draining.
        """
        loop = asyncio.get_running_loop()
        job = Job(read, work, loop.create_future(), loop, deadline)
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

    def forget(self, job: Job[Any, Any]) -> bool:
        """Frees the place of a job that waits; one that is worked on is finished. Whether it waited."""
        with self._ready:
            if job in self._waiting:
                self._waiting.remove(job)
                return True
        return False

    def close(self) -> None:
        """Takes nothing new; what was taken is finished."""
        with self._ready:
            self._closed = True
            self._ready.notify()

    def join(self, timeout_s: float | None = None) -> None:
        """Waits until all that was taken is done, after `close`."""
        for thread in self._threads:
            thread.join(timeout_s)

    def _read_ahead(self) -> None:
        while (job := self._next()) is not None:
            if (read := self._tried(job, job.read)) is not None:
                self._read.put((job, *read))
            else:
                self._done()
        self._read.put(None)

    def _run(self) -> None:
        while (entry := self._read.get()) is not None:
            job, read = entry
            start = time.monotonic()
            if (answer := self._tried(job, partial(job.work, read))) is not None:
                job.settle(answer[0], None)
                self.seconds += SMOOTHING * (time.monotonic() - start - self.seconds)
            self._done()

    def _tried(self, job: Job[Any, Any], step: Callable[[], T]) -> tuple[T] | None:
        """What a step of the job came to; None where it is too late, or failed, which whoever asked is told."""
        try:
            if job.deadline is not None and time.monotonic() > job.deadline:
                raise TooLate("its deadline passed before its turn", "give it longer")
            return (step(),)
        except BaseException as error:  # whatever it is, the thread goes on
            job.settle(None, error)
            return None

    def _next(self) -> Job[Any, Any] | None:
        """The oldest job; None when closed and empty."""
        with self._ready:
            while not self._waiting:
                if self._closed:
                    return None
                self._ready.wait()
            self._taken += 1
            return self._waiting.popleft()

    def _done(self) -> None:
        with self._ready:
            self._taken -= 1
