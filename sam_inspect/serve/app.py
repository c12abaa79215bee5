"""The HTTP interface: each route takes its request apart, asks the service, and puts the answer together."""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Header, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import HTTPBearer
from fastapi.sse import EventSourceResponse, ServerSentEvent
from fastapi.staticfiles import StaticFiles
from numpy.typing import NDArray
from pydantic import Field
from starlette.datastructures import FormData, UploadFile

from sam_inspect.errors import ConfigError, NotFound, TooLarge, UsageError
from sam_inspect.files import output_errors
from sam_inspect.images import read_image, read_size
from sam_inspect.report.overlays import draw_heatmap, draw_overlay
from sam_inspect.report.pictures import PNG, encode_rgb
from sam_inspect.serve.guard import Authority, Guard, explain_errors
from sam_inspect.serve.keys import KeyRing
from sam_inspect.serve.labels import write_labels
from sam_inspect.serve.messages import (
    ClickMessage,
    Fields,
    Id,
    MaskAnswer,
    Moment,
    Page,
    Pointing,
    Problem,
    RecipeAnswer,
    Review,
    Stored,
    Word,
)
from sam_inspect.serve.service import Service
from sam_inspect.serve.shelf import Loaded
from sam_inspect.serve.store import Filter
from sam_inspect.serve.tables import InspectionRow

FORM_BYTES = 1 << 20
PAGE = 50
MOST_LABELS = 100_000
LONG_SIDE_PX = 1600
PAGE_FOLDER = Path(__file__).parent / "page"
POLICY = "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"


def _problems(told: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem, "description": what} for status, what in told.items()}


ERRORS = _problems(
    {
        401: "no key, or none that is known",
        404: "no such recipe or inspection",
        422: "a field or an image that cannot be used",
        503: "not ready, stopping, or the store does not answer",
    }
)
TAKING = ERRORS | _problems(
    {
        400: "no such content, or a malformed one",
        409: "that Idempotency-Key was used for another image or other boxes",
        413: "larger than the service takes",
        429: "as much is waiting as may wait; see Retry-After",
        504: "its deadline passed before its turn",
        507: "the disk is full",
    }
)
IMAGES = ("image/png", "image/jpeg", "image/bmp", "image/tiff", "image/webp", "application/octet-stream")
BINARY = {"type": "string", "format": "binary"}
UPLOAD = {
    "required": True,
    "content": {
        **{kind: {"schema": BINARY} for kind in IMAGES},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {
                    "image": BINARY,
                    **{name: {"type": "string"} for name in ("part", "serial", "camera", "triggered_at")},
                    "boxes": {"type": "string", "description": "JSON: [[x0, y0, x1, y1], ...]"},
                },
            }
        },
    },
}
POINTING = {
    "required": True,
    "content": {
        "application/json": {"schema": ClickMessage.model_json_schema()},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image", "clicks"],
                "properties": {
                    "image": BINARY,
                    "clicks": {"type": "string", "description": "JSON: the same without `inspection`"},
                },
            }
        },
    },
}
EXAMPLE = {
    "image": "A-004711.png",
    "verdict": "fail",
    "score": 1.31,
    "threshold": 0.94,
    "defects": [
        {
            "box": [412, 96, 470, 131],
            "area_px": 1207,
            "area_mm2": 3.02,
            "length_px": 61.4,
            "score": 1.31,
            "mask": {"size": [900, 900], "counts": "o12d0j42C4N2N1O001"},
            "source": "sam",
        }
    ],
    "error": None,
    "timings_ms": {"read": 16.1, "localize": 171.0, "prompt": 0.4, "segment": 83.0, "choose": 6.0, "judge": 0.2},
    "size": [900, 900],
}

INSPECTED = TAKING | {
    200: {
        "content": {"application/json": {"example": EXAMPLE}, "image/png": {"schema": BINARY}},
        "description": "The inspection, or its overlay where `Accept` is `image/png`; its id in `X-Inspection-Id`.",
    }
}


def create_app(service: Service, keys: KeyRing | None, only_here: bool) -> Guard:
    """The application, and what stands around it.

    Args:
        service: not started yet.
        keys: of those who may ask; None for everybody.
        only_here: it is bound to loopback.
    """

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(service.start()), asyncio.create_task(service.prune_for_ever())]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.to_thread(service.close)

    most_bytes = service.limits.image_bytes + FORM_BYTES
    app = FastAPI(
        title="sam_inspect",
        summary="Visual inspection: an image in, a verdict with outlined and measured defects out.",
        version="1",
        lifespan=life,
        max_body_size=most_bytes,
        redoc_url=None,
        docs_url=None,
    )
    app.state.service = service
    explain_errors(app)
    guarded = [Depends(Authority(keys)), Depends(HTTPBearer(auto_error=False))]
    app.include_router(api, dependencies=guarded)
    app.include_router(probes)
    app.mount("/page", StaticFiles(directory=PAGE_FOLDER))
    # Around it, not among its middlewares: FastAPI's limit of the body stands before those, and answers in plain text.
    return Guard(app, only_here, most_bytes, service.figures.requested)


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


On = Annotated[Service, Depends(_service)]
api = APIRouter()
probes = APIRouter()


@api.post(
    "/v1/recipes/{recipe}/inspect",
    openapi_extra={"requestBody": UPLOAD},
    responses=INSPECTED,
)
async def inspect(
    recipe: Word,
    request: Request,
    service: On,
    idempotency_key: Annotated[Word | None, Header()] = None,
    x_deadline_ms: Annotated[int | None, Header(ge=1, le=3_600_000)] = None,
) -> Response:
    """Inspects an image: raw as the body (its fields in the query) or in a form.

    The answer is kept before it is sent. A repeat with the same `Idempotency-Key` is answered from the store.
    """
    image, name, given = await _upload(request, service)
    row = await service.inspect(
        recipe,
        image,
        name,
        given,
        key=idempotency_key,
        deadline_s=None if x_deadline_ms is None else x_deadline_ms / 1000,
        gone=request.is_disconnected,
    )
    headers = {"X-Inspection-Id": row.id, "X-Verdict": row.verdict, "Location": f"/v1/inspections/{row.id}"}
    if request.headers.get("accept", "").partition(",")[0].partition(";")[0].strip() == "image/png":
        return Response(await asyncio.to_thread(_overlay, service, row), headers=headers, media_type="image/png")
    return JSONResponse(row.result, headers=headers)


@api.post("/v1/recipes/{recipe}/segment", openapi_extra={"requestBody": POINTING}, responses=TAKING)
async def segment(recipe: Word, request: Request, service: On) -> MaskAnswer:
    """SAM's mask of what is pointed at in a stored image (JSON) or in one that is sent along (a form).

    The first click encodes a view of it, each further one decodes.
    """
    if _is_form(request):
        form = await _form(request)
        image, _ = await _file(form, service)
        pointing = Pointing.model_validate_json(str(form.get("clicks", "{}")))
        key, size = hashlib.sha256(image).hexdigest(), read_size(image, max_pixels=service.limits.image_pixels)
    else:
        message = pointing = ClickMessage.model_validate_json(await request.body())
        row = await asyncio.to_thread(service.store.find, message.inspection)
        key, size, image = row.id, _size(row), await asyncio.to_thread(_bytes, service, row)
    mask, iou, hw = await service.segment(recipe, image, key, pointing.clicks(size))
    return MaskAnswer.of(mask, iou, hw)


@api.get("/v1/inspections", responses=ERRORS)
async def inspections(
    service: On,
    recipe: Word | None = None,
    verdict: Annotated[str | None, Query(pattern="^(pass|fail|error)$")] = None,
    part: Word | None = None,
    serial: Word | None = None,
    camera: Word | None = None,
    reviewed: bool | None = None,
    since: Moment | None = None,
    until: Moment | None = None,
    before: Id | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = PAGE,
) -> Page:
    """What was answered, newest first; `next` is the following page's `before`."""
    which = Filter(recipe, verdict, part, serial, camera, reviewed, since, until, before)
    rows = await asyncio.to_thread(service.store.page, which, limit)
    return Page(inspections=[Stored.of(row) for row in rows], next=rows[-1].id if len(rows) == limit else None)


@api.get("/v1/inspections/{inspection}", responses=ERRORS)
async def one(inspection: Id, service: On) -> Stored:
    """One of them, whole."""
    return Stored.of(await asyncio.to_thread(service.store.find, inspection), whole=True)


@api.get(
    "/v1/inspections/{inspection}/{picture}",
    responses=ERRORS | {200: {"content": {"image/png": {"schema": BINARY}}, "description": "The picture."}},
    response_class=Response,
)
async def picture(
    inspection: Id,
    picture: Annotated[str, Field(pattern="^(image|overlay|heatmap)$")],
    service: On,
    as_png: Annotated[bool, Query(description="The image as PNG, whatever it came as.")] = False,
) -> Response:
    """`image` as it came, `overlay` with its defects outlined, or `heatmap`."""
    row = await asyncio.to_thread(service.store.find, inspection)
    if picture == "image" and not as_png:
        path = service.store.image(row)
        if not path.is_file():
            raise NotFound(f"inspection {row.id}: its image is gone", "it was taken from the folder")
        return FileResponse(path, headers={"Cache-Control": "private, max-age=86400, immutable"})
    draw = {"overlay": _overlay, "heatmap": _heatmap, "image": _png_of}[picture]
    return Response(await asyncio.to_thread(draw, service, row), media_type="image/png")


@api.put("/v1/inspections/{inspection}/review", responses=ERRORS)
async def review(inspection: Id, message: Review, service: On) -> Stored:
    """Confirms or overrules a verdict, with the masks as they really are and the type of each defect."""
    row = await asyncio.to_thread(service.store.find, inspection)
    _size(row)
    try:
        return Stored.of(await service.review(row, message), whole=True)
    except ValueError as error:
        raise ConfigError(f"masks: {error}", "send COCO run lengths of the image's size") from None


@api.get(
    "/v1/labels",
    responses=ERRORS | {200: {"content": {"application/zip": {"schema": BINARY}}, "description": "A zip."}},
    response_class=Response,
)
async def labels(service: On, background: BackgroundTasks, recipe: Word | None = None) -> Response:
    """What was reviewed, as a data set in MVTec layout, from which `sam-inspect finetune` learns."""
    rows = await asyncio.to_thread(service.store.page, Filter(recipe=recipe, reviewed=True), MOST_LABELS)
    with tempfile.NamedTemporaryFile(suffix=".zip", delete=False) as file:
        path = Path(file.name)
    background.add_task(path.unlink, missing_ok=True)
    await asyncio.to_thread(write_labels, service.store, rows, path)
    return FileResponse(path, media_type="application/zip", filename="labels.zip", background=background)


@api.get("/v1/recipes", responses=ERRORS)
async def recipes(service: On) -> list[RecipeAnswer]:
    """Those that are ready."""
    return [_recipe(loaded) for loaded in service.shelf.all()]


@api.post("/v1/recipes/{recipe}/load", responses=ERRORS)
async def load(recipe: Word, service: On) -> RecipeAnswer:
    """Loads what lies in its folder now; requests go to the one before until it is warmed up."""
    async with service.loading:  # the shelf has room for one; others must not fill the threads with waiting
        return _recipe(await asyncio.to_thread(service.shelf.load, recipe))


@api.post("/v1/recipes/{recipe}/rollback", responses=ERRORS)
async def rollback(recipe: Word, service: On) -> RecipeAnswer:
    """The version before takes its place again."""
    async with service.loading:
        return _recipe(await asyncio.to_thread(service.shelf.roll_back, recipe))


@api.get("/v1/events", response_class=EventSourceResponse, responses=ERRORS)
async def events(service: On, last_event_id: Annotated[Id | None, Header()] = None) -> AsyncIterator[ServerSentEvent]:
    """Each `inspection` as it is answered, and each `review`; `Last-Event-ID` brings the inspections since then."""
    async for event, row in service.events(last_event_id):
        yield ServerSentEvent(data=Stored.of(row), event=event, id=row.id if event == "inspection" else None)


@api.get("/metrics", response_class=Response)
async def metrics(service: On) -> Response:
    """For Prometheus."""
    none = dict.fromkeys(service.outbox.names, 0)
    waiting = none | await asyncio.to_thread(service.store.waiting)
    refused = none | await asyncio.to_thread(service.store.waiting, refused=True)
    page = service.figures.page(service.queue.depth, waiting, refused)
    return Response(page, media_type="text/plain; version=0.0.4")


@probes.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """For the person at the station."""
    return FileResponse(PAGE_FOLDER / "index.html", headers={"Content-Security-Policy": POLICY})


@probes.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@probes.get("/readyz", responses={503: {"model": Problem, "description": "still loading, or stopping"}})
async def readyz(service: On) -> Response:
    """Weights are loaded and every recipe was warmed up."""
    ready = service.ready and not service.draining
    return JSONResponse({"status": "ready" if ready else "not ready"}, 200 if ready else 503)


async def _upload(request: Request, service: Service) -> tuple[bytes, str, Fields]:
    """The image's bytes, what it is called, and its fields."""
    if _is_form(request):
        form = await _form(request)
        image, name = await _file(form, service)
        given = {**request.query_params, **{key: value for key, value in form.items() if key != "image"}}
    else:
        image, name, given = await request.body(), "image", dict(request.query_params)
        _check_bytes(image, name, service)
    return image, name, Fields.model_validate(given | {"boxes": _boxes(given.get("boxes"))})


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


async def _form(request: Request) -> FormData:
    with output_errors(Path(tempfile.gettempdir())):  # where large parts wait
        return await request.form(max_files=1, max_fields=10, max_part_size=FORM_BYTES)


async def _file(form: FormData, service: Service) -> tuple[bytes, str]:
    """The bytes of the form's picture, and its name."""
    file = form.get("image")
    if not isinstance(file, UploadFile):
        raise UsageError("the form has no file `image`", "send the picture in the field image")
    image, name = await file.read(), _base_name(file.filename)
    _check_bytes(image, name, service)
    return image, name


def _check_bytes(image: bytes, name: str, service: Service) -> None:
    if len(image) > service.limits.image_bytes:
        raise TooLarge(f"{name}: {len(image):,} bytes", f"send at most {service.limits.image_bytes:,}")


def _base_name(filename: str | None) -> str:
    """Of a file's name nothing of where it lay; it never becomes a path here."""
    base = PureWindowsPath(PurePosixPath(filename or "").name).name
    return "".join(letter for letter in base if letter.isprintable())[:200] or "image"


def _boxes(text: Any) -> Any:
    try:
        return None if text is None else json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise ConfigError("boxes: is not JSON", "send [[x0, y0, x1, y1], ...]") from None


def _recipe(loaded: Loaded) -> RecipeAnswer:
    threshold = loaded.inspector.threshold
    return RecipeAnswer(name=loaded.name, version=loaded.version, threshold=threshold, loaded_at=loaded.loaded_at)


def _size(row: InspectionRow) -> tuple[int, int]:
    """(H, W) of its image. Raises UsageError: it could not be read."""
    if row.result["size"] is None:
        raise UsageError(f"inspection {row.id}: its image could not be read", "there is nothing to outline in it")
    height, width = row.result["size"]
    return height, width


def _bytes(service: Service, row: InspectionRow) -> bytes:
    try:
        return service.store.image(row).read_bytes()
    except OSError:
        raise NotFound(f"inspection {row.id}: its image is gone", "it was taken from the folder") from None


def _pixels(service: Service, row: InspectionRow) -> NDArray[np.uint8]:
    return read_image(_bytes(service, row))


def _overlay(service: Service, row: InspectionRow) -> bytes:
    return encode_rgb(".png", draw_overlay(_pixels(service, row), service.store.inspection(row), LONG_SIDE_PX), PNG)


def _heatmap(service: Service, row: InspectionRow) -> bytes:
    inspection = service.store.inspection(row)
    if inspection.anomaly_map is None:
        raise NotFound(f"inspection {row.id}: has no heatmap", "boxes were given, or its map is gone")
    return encode_rgb(".png", draw_heatmap(_pixels(service, row), inspection, LONG_SIDE_PX), PNG)


def _png_of(service: Service, row: InspectionRow) -> bytes:
    return encode_rgb(".png", _pixels(service, row), PNG)
