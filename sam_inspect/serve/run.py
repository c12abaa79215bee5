"""Puts a service together and runs it until it is told to stop; then it finishes what it accepted."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType

import uvicorn

from sam_inspect.errors import UsageError
from sam_inspect.pipeline import Inspector
from sam_inspect.serve.app import create_app
from sam_inspect.serve.guard import is_loopback
from sam_inspect.serve.keys import KeyRing, read_keys
from sam_inspect.serve.outputs import Outbox, Output, output_of, read_outputs, without_user
from sam_inspect.serve.service import Limits, Service
from sam_inspect.serve.shelf import Shelf
from sam_inspect.serve.store import Store
from sam_inspect.serve.watch import camera_shots, folder_shots, inspect_shots
from sam_inspect.serve.work import WorkQueue

LOOK_S = 0.1
HALF_SENT_S = 10  # as long a stopping service waits for who has not sent all
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asks for.

    Attributes:
        recipes: folders of recipes, of exports, or of several of them.
        data: folder of images and, where no URL is given, of the database.
        host, port: what to listen on; 0 for any free port.
        queue: images that may wait.
        store: the database's URL.
        outputs: a file of outputs.
        keys: file of API keys; on loopback everybody may ask where none is named.
        device, runtime, precision: of the networks.
        limits: of uploads and of the store.
    """

    recipes: Sequence[Path]
    data: Path
    host: str = "127.0.0.1"
    port: int = 8000
    queue: int = 16
    store: str | None = None
    outputs: Path | None = None
    keys: Path | None = None
    device: str = "auto"
    runtime: str = "auto"
    precision: str = "auto"
    limits: Limits = field(default_factory=Limits)


def serve(wanted: Wanted) -> None:
    """Serves until SIGTERM or Ctrl-C.

    Raises:
        UsageError: the port is taken, or others could ask without a key.
        RecipeError, ConfigError, PluginError, OutputError, ServiceError: what it is made of cannot be used.
    """
    keys = _keys(wanted)
    bound = _bound(wanted.host, wanted.port)
    service = _service(wanted)
    app = create_app(service, keys, only_here=keys is None)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=HALF_SENT_S,
    )
    _Server(config, service).run([bound])
    if service.failure is not None:
        raise service.failure


def watch(source: str, wanted: Wanted, to: Sequence[str], every_s: float, camera: str | None) -> int:
    """Inspects what comes into a folder or from a camera until SIGTERM or Ctrl-C. How many images it kept.

    Args:
        source: a folder, a stream's address, or a camera's number.
        wanted: one recipe, the store, outputs and networks.
        to: further outputs, as `sam_inspect.serve.outputs.output_of` takes them.
        every_s: seconds between two frames of a camera.
        camera: what records call the source.

    Raises:
        UsageError, RecipeError, ConfigError, PluginError, OutputError, ServiceError: it cannot begin.
    """
    shelf = Shelf(wanted.recipes, partial(_open, wanted))
    names = list(shelf.places())
    if len(names) != 1:
        raise UsageError(f"--recipe: there are {len(names)} recipes", "name the folder of one")
    stop = threading.Event()
    is_camera = "://" in source or source.isdecimal()
    shots = camera_shots(source, every_s, stop) if is_camera else folder_shots(Path(source), stop)
    store = Store(wanted.data, wanted.store)
    outbox = Outbox(store, _outputs(wanted) | dict(output_of(word) for word in to))
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_: stop.set())
    loaded = shelf.load(names[0])
    outbox.start()
    log.info("watching %s", without_user(source))
    try:
        return inspect_shots(shots, loaded, store, outbox, camera, stop)
    finally:
        outbox.close()
        store.close()


class _Server(uvicorn.Server):
    """Told to stop, it takes nothing new and goes when the last image is answered; told twice, at once."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self.loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)
        for host, port, *_ in (bound.getsockname() for bound in sockets or []):
            log.info("serving on http://%s:%d", f"[{host}]" if ":" in host else host, port)

    async def on_tick(self, counter: int) -> bool:
        """See uvicorn."""
        return self.service.failure is not None or await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See uvicorn."""
        if self.service.draining or self.loop is None:
            super().handle_exit(sig, frame)
            return
        log.info("stopping: finishing what was accepted")
        self.service.draining = True
        self.service.queue.close()
        self.loop.call_soon_threadsafe(self._begin_to_drain)

    def _begin_to_drain(self) -> None:
        self.service.announce()
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        while self.service.queue.depth:
            await asyncio.sleep(LOOK_S)
        self.should_exit = True


def _service(wanted: Wanted) -> Service:
    shelf = Shelf(wanted.recipes, partial(_open, wanted))
    outputs = _outputs(wanted)
    store = Store(wanted.data, wanted.store)
    return Service(shelf, WorkQueue(wanted.queue), store, Outbox(store, outputs), wanted.limits)


def _open(wanted: Wanted, folder: Path) -> Inspector:
    return Inspector.from_recipe(folder, wanted.device, runtime=wanted.runtime, precision=wanted.precision)


def _outputs(wanted: Wanted) -> dict[str, Output]:
    return read_outputs(wanted.outputs) if wanted.outputs else {}


def _keys(wanted: Wanted) -> KeyRing | None:
    """None where everybody who reaches the port may ask."""
    if wanted.keys is None and is_loopback(wanted.host):
        return None
    file = wanted.keys or wanted.data / "keys.json"
    if not read_keys(file):
        problem, remedy = f"{file}: holds no API key", f"make one: sam-inspect keys add NAME --keys {file}"
        if is_loopback(wanted.host):
            raise UsageError(problem, remedy)
        raise UsageError(
            f"{problem}, and {wanted.host} can be reached from elsewhere", f"{remedy}; or bind to 127.0.0.1"
        )
    return KeyRing(file)


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise UsageError(f"{host}:{port}: cannot be listened on ({error.strerror})", "give another --port") from None
    bound.set_inheritable(True)
    return bound
