"""What the service does, without HTTP: take an image, wait for the model, keep the answer, tell everybody."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, TypeVar

from sam_inspect.errors import ClientGone, Conflict, NotFound, Starting, UsageError
from sam_inspect.images import read_size, suffix_of
from sam_inspect.masks import clip_box, to_rle
from sam_inspect.pipeline import Part
from sam_inspect.records import CropMask
from sam_inspect.serve.clicks import Clicker, Clicks
from sam_inspect.serve.figures import Telemetry
from sam_inspect.serve.messages import Fields, LabelledMask, Review, Xyxy
from sam_inspect.serve.outputs import Outbox
from sam_inspect.serve.shelf import Loaded, Shelf
from sam_inspect.serve.store import Arrival, Store
from sam_inspect.serve.tables import InspectionRow
from sam_inspect.serve.work import Job, Kind, Task, WorkQueue

T = TypeVar("T")
Gone = Callable[[], Awaitable[bool]]
Clicked = tuple[CropMask | None, float, tuple[int, int]]
Event = Literal["inspection", "review"]
LOOK_S = 0.1
PRUNE_S = 60.0
LISTEN_S = 10.0
REVIEWS = 100  # that a slow listener may lag behind
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the service takes and keeps.

    Attributes:
        image_bytes, image_pixels: of one upload.
        keep_days, keep_bytes: of the store; None for all.
    """

    image_bytes: int = 64 << 20
    image_pixels: int = 100_000_000
    keep_days: float | None = None
    keep_bytes: int | None = None


@dataclass(slots=True, eq=False)
class Service:
    """See the module. Its coroutines belong to one event loop.

    Attributes:
        shelf: the recipes.
        queue: before the model.
        store: of what was answered.
        outbox: for what is to be delivered.
        limits: of uploads and of the store.
        figures: for Prometheus.
        loading: one recipe at a time.
        ready: every recipe is loaded and warmed up.
        draining: nothing new is taken.
        failure: why it never became ready.
    """

    shelf: Shelf
    queue: WorkQueue
    store: Store
    outbox: Outbox
    limits: Limits = field(default_factory=Limits)
    figures: Telemetry = field(default_factory=Telemetry)
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)
    ready: bool = False
    draining: bool = False
    failure: Exception | None = None
    _clicker: Clicker = field(default_factory=Clicker)
    _keeper: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="keeper"))
    _by_key: dict[tuple[str, str], asyncio.Lock] = field(default_factory=dict)
    _asking: Counter[tuple[str, str]] = field(default_factory=Counter)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _reviews: deque[tuple[int, InspectionRow]] = field(default_factory=lambda: deque(maxlen=REVIEWS))

    async def inspect(
        self,
        recipe: str,
        image: bytes,
        name: str,
        fields: Fields,
        *,
        key: str | None = None,
        deadline_s: float | None = None,
        gone: Gone | None = None,
    ) -> InspectionRow:
        """Inspects an image and keeps the answer before it returns.

        Args:
            recipe: its name.
            image: the file's bytes, as they came.
            name: what the inspection calls it.
            fields: what came with it.
            key: the client's idempotency key: the same image under the same key is answered from the store.
            deadline_s: seconds from now after which the model does not begin with it.
            gone: tells whether the client has gone; a waiting image then gives its place up.

        Raises:
            NotFound, ImageError, UsageError, QueueFull, Draining, TooLate, Conflict, OutputError, ServiceError.
        """
        started, loaded = time.monotonic(), self._recipe(recipe)
        arrival = _arrival(loaded, image, fields, key)
        async with self._alone(recipe, key):
            if key is not None and (known := await self._in_store(recipe, key)) is not None:
                if known.request_sha256 != arrival.sha256:
                    raise Conflict(
                        f"Idempotency-Key {key[:60]!r}: was used for another image or other boxes",
                        "give each a key of its own",
                    )
                return known
            height, width = read_size(image, max_pixels=self.limits.image_pixels, name=name)
            if any(clip_box(box, (height, width)) is None for box in fields.boxes or ()):
                raise UsageError("a box lies outside the image", f"give pixels of {width} x {height}")
            deadline = None if deadline_s is None else started + deadline_s
            read = partial(self._read, image, name, fields.boxes)
            task = Task(read, loaded.inspector.inspect_together, partial(_kind, loaded))
            inspection = await self._answer(self.queue.submit(task, deadline), gone)
            save = partial(self.store.save, inspection, image, suffix_of(image) or ".bin", arrival, self.outbox.names)
            row = await asyncio.get_running_loop().run_in_executor(self._keeper, save)
        self.figures.answered(loaded, inspection, time.monotonic() - started)
        self.announce()
        return row

    async def segment(self, recipe: str, image: bytes, key: str, clicks: Clicks) -> Clicked:
        """The mask that clicks mean, SAM's estimate of its IoU, and the image's (H, W).

        Args:
            recipe: whose segmenter.
            image: the file's bytes.
            key: of the image, under which its encoded views are kept.
            clicks: in pixels of the image.
        """
        task = Task(partial(self._read, image, "image"), partial(self._clicked, self._recipe(recipe), key, clicks))
        return await self._answer(self.queue.submit(task), None)

    async def review(self, row: InspectionRow, review: Review) -> InspectionRow:
        """Keeps what a person says. Raises ValueError: masks do not fit the image, or the decision."""
        kept = review.model_dump(mode="json", exclude={"masks"})
        if review.masks is not None:
            kept["masks"] = await asyncio.to_thread(_kept_masks, review.masks, tuple(row.result["size"]))
            _check_agree(row.verdict, review.decision, bool(kept["masks"]))
        kept["at"] = datetime.now(UTC).isoformat(timespec="milliseconds")
        found = await asyncio.to_thread(self.store.review, row.id, kept)
        self._reviews.append((self._reviewed + 1, found))
        self.announce()
        return found

    async def events(self, after: str | None) -> AsyncIterator[tuple[Event, InspectionRow]]:
        """Every inspection answered after that one, as it comes, and what is reviewed meanwhile.

        Args:
            after: an inspection's id; None for from now on. What came after it is read from the store, so that a slow
                listener misses none.
        """
        heard = self._reviewed
        last = await asyncio.to_thread(self.store.newest_id) if after is None else after
        while not self.draining:
            news = self._news
            for row in await asyncio.to_thread(self.store.after, last, 100):
                last = row.id
                yield "inspection", row
            reviews = [(number, row) for number, row in self._reviews if number > heard]
            for number, row in reviews:
                heard = number
                yield "review", row
            with suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), LISTEN_S)

    @property
    def _reviewed(self) -> int:
        return self._reviews[-1][0] if self._reviews else 0

    def announce(self) -> None:
        """There is something new for listeners and outputs."""
        news, self._news = self._news, asyncio.Event()
        news.set()
        self.outbox.wake()

    async def start(self) -> None:
        """Begins to deliver, loads the recipes and warms them up; `failure` tells where one cannot be used."""
        try:
            await asyncio.to_thread(self.outbox.start)
            for name in self.shelf.places():
                await asyncio.to_thread(self.shelf.load, name)
            self.ready = True
        except Exception as error:  # whoever runs the service ends it, and says why
            self.failure = error

    async def prune_for_ever(self) -> None:
        """Keeps the store within its limits."""
        while True:
            try:
                forgotten = await asyncio.to_thread(self.store.prune, self.limits.keep_days, self.limits.keep_bytes)
            except Exception as error:  # Whatever it is, the next time may be better.
                log.warning("retention: %s", error)
            else:
                if forgotten:
                    log.info("retention: %d inspections are no longer kept", forgotten)
            await asyncio.sleep(PRUNE_S)

    def close(self) -> None:
        """Finishes what was taken; what is not delivered stays in the store."""
        self.draining = True
        self.queue.close()
        self.queue.join(60)
        self._keeper.shutdown()
        self.outbox.close()
        self.store.close()

    @asynccontextmanager
    async def _alone(self, recipe: str, key: str | None) -> AsyncIterator[None]:
        """Requests with the same key one after another."""
        if key is None:
            yield
            return
        lock = self._by_key.setdefault((recipe, key), asyncio.Lock())
        self._asking[(recipe, key)] += 1
        try:
            async with lock:
                yield
        finally:
            self._asking[(recipe, key)] -= 1
            if not self._asking[(recipe, key)]:
                del self._asking[(recipe, key)], self._by_key[(recipe, key)]

    async def _in_store(self, recipe: str, key: str) -> InspectionRow | None:
        return await asyncio.to_thread(self.store.answered, recipe, key)

    async def _answer(self, job: Job[Any, T], gone: Gone | None) -> T:
        """What the job came to; a client that goes away frees the place of one that waits."""
        while True:
            await asyncio.wait({job.answer}, timeout=LOOK_S if gone else None)
            if job.answer.done():
                return job.answer.result()
            if gone is not None and await gone() and self.queue.forget(job):
                raise ClientGone("the client went away")

    def _recipe(self, name: str) -> Loaded:
        """The one that is loaded. Raises NotFound, and Starting where it soon will be."""
        try:
            return self.shelf.get(name)
        except NotFound:
            if self.ready or name not in self.shelf.places():
                raise
            raise Starting(f"recipe {name[:80]!r}: is still loading", "send it again when /readyz says so") from None

    def _read(self, image: bytes, name: str, boxes: Sequence[Xyxy] | None = None) -> Part:
        return Part.read(image, name, boxes, max_pixels=self.limits.image_pixels)

    def _clicked(self, loaded: Loaded, key: str, clicks: Clicks, parts: Sequence[Part]) -> Iterator[Clicked]:
        inspector, (part,) = loaded.inspector, parts
        of = (f"{loaded.name} {loaded.version}", key)
        mask, iou = self._clicker.mask(inspector.segmenter, part.image, of, clicks, inspector.config.prompt)
        yield mask, iou, (part.image.shape[0], part.image.shape[1])


def _kind(loaded: Loaded, part: Part) -> Kind:
    """Parts of one recipe and size share batches of its heatmap."""
    return Kind((loaded.name, loaded.version, part.image.shape), loaded.inspector.at_once(part))


def _arrival(loaded: Loaded, image: bytes, fields: Fields, key: str | None) -> Arrival:
    digest = hashlib.sha256(image)
    digest.update(fields.model_dump_json(include={"boxes"}).encode())
    return Arrival(
        recipe=loaded.name,
        version=loaded.version,
        captured_at=datetime.now(UTC),
        sha256=digest.hexdigest(),
        part=fields.part,
        serial=fields.serial,
        camera=fields.camera,
        triggered_at=fields.triggered_at,
        idempotency_key=key,
    )


def _check_agree(verdict: str, decision: str, has_masks: bool) -> None:
    """A label with masks of a good part, or without any of a defective one, would teach the wrong thing."""
    if verdict != "error" and has_masks != ((verdict == "fail") == (decision == "confirm")):
        what = "show defects" if has_masks else "show none"
        raise ValueError(f"the masks {what}, and to {decision} a {verdict} says otherwise")


def _kept_masks(given: Sequence[LabelledMask], original_hw: tuple[int, int]) -> list[dict[str, Any]]:
    """As they are stored, one after another: each is a whole frame for a moment. Raises ValueError."""
    kept = []
    for each in given:
        if (mask := each.mask.mask(original_hw)) is not None:
            rle = to_rle(mask, original_hw)
            kept.append({"mask": rle, "box": list(mask.box_xyxy), "defect_type": each.defect_type})
    return kept
