"""The queue before the model: bounded and in order. Late work is not done.

One thread reads ahead, one works: on one job, or on several that came together and are of one kind.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sam_inspect.errors import Draining, QueueFull, TooLate

P = TypeVar("P")
T = TypeVar("T")
SMOOTHING = 0.2
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kind:
    """What jobs must share to be worked on together.

    Attributes:
        key: equal for those.
        most: how many at once.
    """

    key: Hashable
    most: int


@dataclass(frozen=True, slots=True)
class Task(Generic[P, T]):
    """A piece of work in two steps.

    Attributes:
        read: what comes before the work, while the model is busy with the one before.
        work: what is to be done with that, in the model's thread; it is given several where `kind` allows, and answers
            one after another.
        kind: of what was read; None for work that is done alone.
    """

    read: Callable[[], P]
    work: Callable[[Sequence[P]], Iterator[T]]
    kind: Callable[[P], Kind | None] = lambda _: None


@dataclass(slots=True, eq=False)
class Job(Generic[P, T]):
    """A task that waits.

    Attributes:
        task: what is to be done.
        answer: what it came to, for the event loop that asked.
        loop: that loop.
        deadline: `time.monotonic()` after which nobody wants it; None for never.
    """

    task: Task[P, T]
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


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """A job after its first step: what was read, and its kind."""

    job: Job[Any, Any]
    found: Any
    kind: Kind | None


class WorkQueue:
    """Jobs in the order of their arrival.

    Args:
        most: jobs that may wait, beside those that are worked on and those that are read ahead.
    """

    def __init__(self, most: int) -> None:
        self.most, self.seconds = most, 0.5
        self._waiting: deque[Job[Any, Any]] = deque()
        self._read: deque[_Read] = deque()
        self._changed = threading.Condition()
        self._closed = self._all_read = False
        self._taken = 0
        self._threads = [
            threading.Thread(target=self._read_ahead, name="reader", daemon=True),
            threading.Thread(target=self._run, name="model", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """Jobs that wait or are worked on."""
        with self._changed:
            return len(self._waiting) + self._taken

    def submit(self, task: Task[P, T], deadline: float | None = None) -> Job[P, T]:
        """Takes a task, from a coroutine.

        Raises:
            QueueFull, Draining.
        """
        loop = asyncio.get_running_loop()
        job = Job(task, loop.create_future(), loop, deadline)
        with self._changed:
            if self._closed:
                raise Draining("the service is stopping", "send it again when it is back")
            if len(self._waiting) >= self.most:
                raise self._full()
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def _full(self) -> QueueFull:
        seconds = max(1, math.ceil(len(self._waiting) * self.seconds))
        full = QueueFull(f"{len(self._waiting)} images are waiting", f"send it again in {seconds} s")
        full.retry_after_s = seconds
        return full

    def forget(self, job: Job[Any, Any]) -> bool:
        """Frees the place of a job that waits; one that is worked on is finished. Whether it waited."""
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                return True
        return False

    def close(self) -> None:
        """Takes nothing new; what was taken is finished."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def join(self, timeout_s: float | None = None) -> None:
        """Waits until all that was taken is done, after `close`."""
        for thread in self._threads:
            thread.join(timeout_s)

    def _read_ahead(self) -> None:
        while (job := self._next()) is not None:
            read = self._first_step(job)
            with self._changed:
                if read is None:
                    self._taken -= 1
                else:
                    self._read.append(read)
                self._changed.notify_all()
        with self._changed:
            self._all_read = True
            self._changed.notify_all()

    def _next(self) -> Job[Any, Any] | None:
        """The oldest job, when there is room for it among those that are read; None when closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_room() and (self._waiting or self._closed))
            if not self._waiting:
                return None
            self._taken += 1
            return self._waiting.popleft()

    def _has_room(self) -> bool:
        """One is read ahead, or as many as can be worked on together."""
        kind = self._read[0].kind if self._read else None
        return len(self._read) < (kind.most if kind else 1)

    def _first_step(self, job: Job[Any, Any]) -> _Read | None:
        """None where it failed or is too late, which whoever asked is told."""
        if not _in_time(job):
            return None
        try:
            found = job.task.read()
            return _Read(job, found, job.task.kind(found))
        except BaseException as error:  # whatever it is, the thread goes on
            job.settle(None, error)
            return None

    def _run(self) -> None:
        while reads := self._together():
            if wanted := [read for read in reads if _in_time(read.job)]:
                start = time.monotonic()
                self._second_step(wanted)
                self.seconds += SMOOTHING * ((time.monotonic() - start) / len(wanted) - self.seconds)
            with self._changed:
                self._taken -= len(reads)

    def _together(self) -> list[_Read]:
        """The oldest job that is read, and those after it that can be worked on with it; none when all is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._read or self._all_read)
            reads = [self._read.popleft()] if self._read else []
            kind = reads[0].kind if reads else None
            while kind and self._read and self._read[0].kind == kind and len(reads) < kind.most:
                reads.append(self._read.popleft())
            self._changed.notify_all()
        return reads

    def _second_step(self, reads: Sequence[_Read]) -> None:
        """Answers each in turn; where one fails, those after it are begun anew; where the first does, each alone."""
        if not reads:
            return
        done = 0
        try:
            answers = reads[0].job.task.work([read.found for read in reads])
            for read, answer in zip(reads, answers, strict=True):
                read.job.settle(answer, None)
                done += 1
        except BaseException as error:  # whatever it is, the thread goes on
            if done == len(reads):
                log.error("work went wrong after its last answer: %s: %s", type(error).__name__, error)
                return
            if not done and len(reads) > 1:  # it may be another's fault
                for read in reads:
                    self._second_step([read])
                return
            reads[done].job.settle(None, error)
            self._second_step(reads[done + 1 :])


def _in_time(job: Job[Any, Any]) -> bool:
    """Whether it is; whoever asked is told where it is not."""
    if job.deadline is None or time.monotonic() <= job.deadline:
        return True
    job.settle(None, TooLate("its deadline passed before its turn", "give it longer"))
    return False
