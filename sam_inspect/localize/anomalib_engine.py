"""anomalib as we use it: a model by name with our known weights in its backbone, trained by anomalib's own `Engine`.

Every import of anomalib stands here, inside functions: it takes ten seconds.
"""

from __future__ import annotations

import difflib
import logging
import re
import shutil
import tempfile
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from torch import Tensor, nn

from sam_inspect.errors import ConfigError, WeightsError
from sam_inspect.networks.backbone import TIMM_NAMES
from sam_inspect.plugins import not_installed
from sam_inspect.progress import Progress
from sam_inspect.weights import load_weights

OURS = {timm_name.split(".")[0]: name for name, timm_name in TIMM_NAMES.items()}
HEADS = ("head.", "classifier.", "fc.")
PARTS = ("pre_processor", "post_processor", "evaluator", "visualizer")
LOGGERS = (
    "anomalib",
    "lightning",
    "lightning.pytorch",
    "lightning.fabric",
    "lightning_fabric",
    "huggingface_hub",
)
BATCH = 8
VALIDATION_STEP = 10
Weights = dict[str, dict[str, str]]


def build(name: str, args: Mapping[str, Any], size_px: int | None, found: Weights | None, seed: int = 0) -> Any:
    """An anomalib model (`AnomalibModule`), untrained, without evaluator, visualizer and post-processor.

    Args:
        name: as anomalib lists it: `padim`, `patchcore`, `anomaly_dino`, ...
        args: of its class.
        size_px: side of the square to which it scales images; its own where None.
        found: takes name, sha256 and source of known weights that were put into its backbones; None where weights
            will be loaded anyway, and no pretrained ones are wanted.
        seed: of what begins at random.

    Raises:
        ConfigError: anomalib knows no such model or argument.
        ExtraMissing: it is not installed.
        WeightsError: it wants weights that are neither known here nor reachable.
    """
    model_class = _class_of(name)
    from lightning import seed_everything

    with _quiet(), known_weights(found):
        seed_everything(seed, verbose=False)
        try:
            sized = _sized(model_class, size_px)
            return model_class(**args, **sized, evaluator=False, visualizer=False, post_processor=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"localizer.args.args: {name}: {error}", f"see anomalib's {model_class.__name__}"
            ) from None


def _sized(model_class: Any, size_px: int | None) -> dict[str, Any]:
    """The pre-processor for that size. A model that looks only at the middle of an image then sees all of it."""
    if size_px is None:
        return {}
    whole = {"crop_size": size_px} if "crop_size" in signature(model_class.configure_pre_processor).parameters else {}
    return {"pre_processor": model_class.configure_pre_processor((size_px, size_px), **whole)}


def read_checkpoint(name: str, file: Path, trust: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Arguments and network of an anomalib checkpoint or torch export.

    Args:
        name: the model's.
        file: model.ckpt or model.pt.
        trust: load it even if that can run code that is in it, which every torch export needs.

    Raises:
        ConfigError: anomalib knows no such model.
        ExtraMissing: it is not installed.
        WeightsError: it cannot be read, is of another model, or holds more than tensors and plain data.
    """
    model_class = _class_of(name)
    from anomalib.utils.serialization import anomalib_safe_globals

    try:
        with _quiet(), anomalib_safe_globals(extra=model_class.checkpoint_safe_globals()):
            content = torch.load(file, map_location="cpu", weights_only=not trust)
        args, tensors = _parts_of(content)
    except UnpicklingError as error:
        problem = f"{file}: holds objects that can run code when they are loaded ({_unsafe(error)})"
        raise WeightsError(problem, "where you know who made it: --trust; else export it as ONNX or OpenVINO") from None
    except Exception as error:  # a cut or foreign file raises anything
        problem = f"{file}: is not a checkpoint of anomalib ({type(error).__name__})"
        raise WeightsError(problem, "give the model.ckpt that its Engine wrote") from None
    network = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
    return {key: value for key, value in args.items() if key not in PARTS}, network


def _unsafe(error: UnpicklingError) -> str:
    """What torch names as unsafe, where it names it."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    return named[1] if named else str(error).splitlines()[0]


def _parts_of(content: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    """Arguments and tensors: a torch export is the whole model as an object."""
    if "model" in content:
        return content["model"].hparams, content["model"].state_dict()
    return content["hyper_parameters"], content["state_dict"]


def train(
    model: Any, images: Sequence[Path], trainer: Mapping[str, Any], seed: int, device: str, progress: Progress
) -> None:
    """Fits the model to good images by anomalib's `Engine` and `Folder`.

    Raises:
        WeightsError: it wants a file that cannot be fetched.
    """
    from anomalib.engine import Engine
    from lightning import seed_everything

    with tempfile.TemporaryDirectory() as folder, _quiet(), _shown(progress), _named_downloads():
        seed_everything(seed, verbose=False)
        engine = Engine(
            callbacks=[_bar(progress, type(model).__name__)],
            default_root_dir=Path(folder) / "results",
            logger=False,
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            **trainer,
        )
        engine.fit(model, datamodule=_folder(images, Path(folder), 1 if isinstance(model, _one_by_one()) else BATCH))


def _folder(images: Sequence[Path], root: Path, batch: int) -> Any:
    """anomalib's `Folder` over links to the images.

    A tenth stands in as validation, without which Engine does not run; EfficientAd scales its maps by it, and no
    threshold is taken from it.
    """
    from anomalib.data import Folder

    for number, image in enumerate(images):
        _put(image, root / "good" / f"{number:06d}{image.suffix}")
    for number, image in enumerate(images[::VALIDATION_STEP]):
        _put(image, root / "held" / f"{number:06d}{image.suffix}")
    return Folder(
        name="good parts",
        root=root,
        normal_dir="good",
        normal_test_dir="held",
        val_split_mode="same_as_test",
        train_batch_size=batch,
        eval_batch_size=1,
        num_workers=0,
    )


def _one_by_one() -> type:
    """The model that refuses larger batches."""
    from anomalib.models import EfficientAd

    return EfficientAd


def _put(image: Path, place: Path) -> None:
    place.parent.mkdir(exist_ok=True)
    try:
        place.symlink_to(image.absolute())
    except OSError:  # not every file system has links
        shutil.copyfile(image, place)


def _class_of(name: str) -> Any:
    """By any spelling that anomalib knows, and of any package that was imported: the direct subclasses of its base."""
    try:
        import anomalib.models
    except ImportError:
        raise not_installed("localizer anomalib: anomalib", "anomalib") from None
    classes = anomalib.models.components.AnomalibModule.__subclasses__()
    known = {model_class.__name__.lower(): model_class for model_class in classes}
    wanted = one_spelling(name)
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=3) or sorted(known)
        raise ConfigError(f"anomalib has no model {name!r}", f"name one of {', '.join(near)}")
    return known[wanted]


def one_spelling(name: str) -> str:
    """`EfficientAd` and `efficient_ad` are one model."""
    return name.replace("_", "").lower()


@contextmanager
def known_weights(found: Weights | None) -> Iterator[None]:
    """Within it, timm's networks come with the weights that are known here, so that anomalib's backbones do.

    Others are fetched as timm fetches them. Where `found` is None none comes with any.

    Args:
        found: takes name, sha256 and source of what was put into a network.

    Raises:
        WeightsError: weights are neither known here nor reachable.
        WeightsMissing: they are known here, and not fetched yet.
    """
    make = timm.create_model

    def made(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        ours = OURS.get(name.split(".")[0])
        network: nn.Module
        if not pretrained or found is None:
            network = make(name, pretrained=False, **options)
        elif ours is not None:
            network = make(name, pretrained=False, **options)
            found[ours] = _put_weights(network, ours)
        else:
            network = _fetched(make, name, options)
            found[name] = {"name": name, "sha256": "", "source": "timm"}
        return network

    with _replaced(timm, "create_model", made):
        yield


def _put_weights(network: nn.Module, name: str) -> dict[str, str]:
    loaded = load_weights(name)
    answer = network.load_state_dict(dict(loaded.tensors), strict=False)
    missing = [key for key in answer.missing_keys if not key.startswith(HEADS)]
    if missing:
        raise WeightsError(f"weights {name}: lack {missing[0]}, which anomalib's backbone has", "name another backbone")
    return {"name": name, "sha256": loaded.sha256, "source": loaded.source}


def _fetched(make: Any, name: str, options: Mapping[str, Any]) -> nn.Module:
    try:
        network: nn.Module = make(name, pretrained=True, **options)
        return network
    except Exception as error:  # of whatever the hub's client is built on
        source = timm.get_pretrained_cfg(name)
        where = (source.hf_hub_id or source.url) if source else "timm's hub"
        raise WeightsError(
            f"backbone {name}: its weights ({where}) cannot be fetched ({type(error).__name__})",
            f"put them into the Hugging Face cache, or name one that is known here: {', '.join(OURS)}",
        ) from error


def _bar(progress: Progress, what: str) -> Any:
    """A Lightning callback that moves our progress on."""
    from lightning.pytorch import Callback

    class Bar(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            total = max(1, int(trainer.estimated_stepping_batches))
            self.steps = progress(range(total), f"anomalib trains {what}", total)

        def on_train_batch_end(self, *_: Any) -> None:
            next(self.steps, None)

        def on_train_end(self, *_: Any) -> None:
            deque(self.steps, 0)

    return Bar()


@contextmanager
def _shown(progress: Progress) -> Iterator[None]:
    """Within it, the coreset's own bar is ours: it cannot be switched off otherwise."""
    from anomalib.models.components.sampling import k_center_greedy

    def shown(items: Iterable[int], desc: str) -> Iterator[int]:
        every = list(items)
        return progress(every, desc.rstrip(".").lower(), len(every))

    with _replaced(k_center_greedy, "tqdm", shown):
        yield


@contextmanager
def _named_downloads() -> Iterator[None]:
    """Within it, a file that anomalib cannot download is named: which, from where, and where to put it."""
    from anomalib.data.utils import download

    fetch = download.urlretrieve

    def fetched(url: str, filename: Any, **options: Any) -> Any:
        try:
            return fetch(url, filename=filename, **options)
        except OSError as error:
            remedy = f"put that file there yourself: {Path(filename).absolute()}"
            raise WeightsError(f"{url} cannot be fetched ({error})", remedy) from None

    with _replaced(download, "urlretrieve", fetched):
        yield


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what anomalib, Lightning and their libraries tell developers."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
