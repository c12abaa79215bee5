"""What the embedding cache saves in tuning: a step on views read from it against a step on views encoded anew."""

from __future__ import annotations

import tempfile
from pathlib import Path

import cv2
import numpy as np
import typer
from measuring import JsonFile, Repeats, hardware, show, side_by_side, versions, write_rows

from sam_inspect.config import PromptConfig
from sam_inspect.console import session
from sam_inspect.datasets import Sample
from sam_inspect.finetune.embeddings import CachedEncoder
from sam_inspect.finetune.labels import Label
from sam_inspect.finetune.loop import fit_decoder
from sam_inspect.finetune.settings import Settings
from sam_inspect.finetune.views import Sizes, ViewMaker
from sam_inspect.masks import components
from sam_inspect.progress import silent
from sam_inspect.segment.sam import MobileSam
from sam_inspect.synth_bottle import draw_bottle

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
NO_ERRORS = np.zeros((0, 4), np.float32)
BATCH = 8


@app.command()
def main(repeats: Repeats = 5, json_file: JsonFile = None) -> None:
    """Times one step of tuning on eight views of a drawn broken bottle, 512 pixels each, and the ratio of both ways."""
    with session(quiet=False, json_logs=False) as progress, tempfile.TemporaryDirectory() as folder:
        sam = MobileSam.from_config({}, device="cpu")
        label, sizes = drawn(Path(folder)), Sizes.of(PromptConfig(), sam)

        def step(cache: Path) -> None:
            views = ViewMaker(CachedEncoder(sam, cache), sizes).labelled(label, BATCH)
            settings = Settings(steps=1, epochs=0, empty=0, batch=BATCH)
            fit_decoder(sam.network, views, [], NO_ERRORS, settings, progress=silent)

        step(Path(folder) / "kept")
        ways = {
            "from the cache": lambda _: step(Path(folder) / "kept"),
            "encoded anew": lambda _: step(Path(tempfile.mkdtemp(dir=folder))),
        }
        timed = side_by_side(ways, repeats, progress, "a step")
        kept, anew = timed.values()
        ratio = {"best": anew.best / kept.best, "median": anew.median / kept.median}
        row = {"kept": kept.as_json(), "anew": anew.as_json(), "ratio": ratio, "versions": versions("torch", "timm")}
        columns = {
            "from the cache: median s": "kept.median:.2f",
            "encoded anew: median s": "anew.median:.2f",
            "ratio of bests": "ratio.best:.1f",
            "of medians": "ratio.median:.1f",
            "versions": "versions",
        }
        show(f"A step of tuning on {BATCH} views, {repeats} runs", hardware(), [row], columns)
        write_rows(json_file, hardware(), [row])


def drawn(folder: Path) -> Label:
    """A broken bottle with its ground truth."""
    part = draw_bottle(0, 2, "broken_large")
    file = folder / "bottle.png"
    cv2.imwrite(str(file), part.image[..., ::-1])
    largest = max(components(part.mask), key=lambda mask: mask.area_px)
    return Label(Sample(file, "broken_large", None), file.name, file.name, part.mask.shape[:2], (largest,))


if __name__ == "__main__":
    app()
