"""The commands around the service: `serve`, `watch`, `keys`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sam_inspect.console import session, table
from sam_inspect.options import Data, Device, JsonLogs, Precision, Quiet, Runtime, StoreUrl

keys_app = typer.Typer(no_args_is_help=True, help="API keys of the service: shown once, kept as hashes.")
KeysFile = Annotated[Path, typer.Option("--keys", metavar="FILE", help="File of the keys.")]
KEYS = Path("station") / "keys.json"


def serve(
    recipe: Annotated[
        list[Path],
        typer.Option(metavar="DIR", show_default=False, help="Recipe, export, or a folder of them; may be repeated."),
    ],
    data: Data = Path("station"),
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="What to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 for any that is free.")] = 8000,
    queue: Annotated[int, typer.Option(metavar="N", min=1, help="Images that may wait; further ones get 429.")] = 16,
    store: StoreUrl = None,
    outputs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where results go besides: webhook, MQTT, JSON lines."),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", show_default="needed unless bound to loopback", help="API keys, made by sam-inspect keys."
        ),
    ] = None,
    keep_days: Annotated[
        float | None, typer.Option(metavar="N", min=0, max=36_500, help="Older ones are forgotten.")
    ] = None,
    keep_gb: Annotated[
        float | None, typer.Option(metavar="N", min=0, max=1e9, help="So are the oldest beyond this.")
    ] = None,
    max_mb: Annotated[int, typer.Option(metavar="N", min=1, help="Of one upload.")] = 64,
    max_megapixels: Annotated[int, typer.Option(metavar="N", min=1, help="Of one image.")] = 100,
    device: Device = "auto",
    runtime: Runtime = "auto",
    precision: Precision = "auto",
    quiet: Quiet = False,
    json_logs: JsonLogs = False,
) -> None:
    """Inspects what line cameras and controllers send over HTTP, keeps every answer, and shows them on a page."""
    with session(quiet, json_logs):
        from sam_inspect.serve.run import Wanted
        from sam_inspect.serve.run import serve as run
        from sam_inspect.serve.service import Limits

        keep_bytes = None if keep_gb is None else int(keep_gb * 1e9)
        limits = Limits(max_mb << 20, max_megapixels * 1_000_000, keep_days, keep_bytes)
        run(Wanted(recipe, data, host, port, queue, store, outputs, keys, device, runtime, precision, limits))


def watch(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A drop folder, a stream such as rtsp://..., or a camera's number.")
    ],
    recipe: Annotated[Path, typer.Option(metavar="DIR", show_default=False, help="Recipe or export.")],
    to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHERE",
            show_default=False,
            help="results.jsonl, https://... or mqtts://user:password@host/topic; may be repeated.",
        ),
    ] = None,
    data: Data = Path("station"),
    store: StoreUrl = None,
    outputs: Annotated[Path | None, typer.Option(metavar="FILE", help="Further outputs.")] = None,
    every: Annotated[float, typer.Option(metavar="S", min=0, help="Seconds between two frames of a camera.")] = 1.0,
    camera: Annotated[
        str | None, typer.Option(metavar="NAME", show_default=False, help="What records call the source.")
    ] = None,
    device: Device = "auto",
    runtime: Runtime = "auto",
    precision: Precision = "auto",
    quiet: Quiet = False,
    json_logs: JsonLogs = False,
) -> None:
    """Inspects new files of a folder, or a camera's frames, and tells the results to a file, a webhook or a broker.

    Each is kept in the store with its image first, so that nothing is lost while the other side is away. Ends with
    Ctrl-C or SIGTERM after the image in hand; begun again, it goes on with what it has not inspected.
    """
    with session(quiet, json_logs):
        from sam_inspect.serve.run import Wanted
        from sam_inspect.serve.run import watch as run

        wanted = Wanted(
            [recipe], data, store=store, outputs=outputs, device=device, runtime=runtime, precision=precision
        )
        print(run(source, wanted, to or [], every, camera))


@keys_app.command("add")
def add_key(name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is.")], keys: KeysFile = KEYS) -> None:
    """Makes a key and shows it, once."""
    with session(False, False):
        from sam_inspect.serve import keys as ring

        print(ring.add_key(keys, name))


@keys_app.command("list")
def list_keys(keys: KeysFile = KEYS) -> None:
    """Whose keys there are."""
    with session(False, False):
        from sam_inspect.serve import keys as ring

        table("Keys", ["name", "made"], [[key.name, key.made_at] for key in ring.read_keys(keys)])


@keys_app.command("remove")
def remove_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is.")], keys: KeysFile = KEYS
) -> None:
    """Takes a key away; a running service refuses it from now on."""
    with session(False, False):
        from sam_inspect.serve import keys as ring

        ring.remove_key(keys, name)
