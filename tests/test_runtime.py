"""One network in each runtime: the same answers, graphs that are kept, and a choice that is measured once."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from sam_inspect import bench
from sam_inspect.errors import ConfigError, ExtraMissing, RecipeError, SamInspectError, UsageError
from sam_inspect.networks import fastest, recorded, runtime, sam
from sam_inspect.networks.backbone import SamTrunk, build_backbone
from sam_inspect.networks.graphs import PACKAGES, Runtime
from sam_inspect.networks.runtime import run, running_on
from sam_inspect.networks.sam import TinyVitEncoder
from sam_inspect.records import Prompt, View
from sam_inspect.segment.sam import Sam

CPU = torch.device("cpu")
EXACT = [Runtime("openvino"), Runtime("onnx")]
names = str


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAM_INSPECT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def encoder() -> Iterator[TinyVitEncoder]:
    torch.manual_seed(0)
    made = TinyVitEncoder().eval().requires_grad_(False)
    made.fuse()
    yield made


class Brighter(nn.Module):
    """The least network."""

    def __init__(self, by: float = 2.0) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.by


def in_(chosen: Runtime, module: nn.Module) -> runtime.Running:
    with running_on(chosen):
        return run(module, CPU)


@pytest.mark.parametrize("chosen", EXACT, ids=names)
def test_sams_encoder_and_trunk_answer_as_in_torch(chosen: Runtime, encoder: TinyVitEncoder) -> None:
    images = torch.randn(1, 3, 128, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = encoder(images)
    (found,) = in_(chosen, encoder)(images)
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
    pixels = images.clamp(0, 1) * 255
    own = SamTrunk(encoder, [0, 2]).features(pixels)
    with running_on(chosen):
        trunk = SamTrunk(encoder, [0, 2])
    for one, other in zip(trunk.features(pixels), own, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4 * float(other.abs().max()), rtol=0)


@pytest.mark.parametrize("chosen", EXACT, ids=names)
def test_sams_decoder_answers_any_prompts_as_in_torch(
    chosen: Runtime, encoder: TinyVitEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    parts = [part.eval().requires_grad_(False) for part in (sam._prompt_encoder(), sam._mask_decoder())]
    network = sam.SamNetwork(encoder, *parts)
    own = Sam(network)
    with running_on(chosen):
        named = Sam(network)
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    (embedding,) = own.encode(image, [View((0, 0, 64, 64), 64, ())])
    boxes = [Prompt(box_xyxy=(5.0, 6.0, 30.0 + x, 40.0)) for x in range(4)]
    point = Prompt(points_xy=np.array([[20, 20]], np.float32), point_labels=np.array([1]))
    made = []
    export = runtime.exported
    monkeypatch.setattr(runtime, "exported", lambda *args: made.append(1) or export(*args))
    for prompts in (boxes, boxes[:1], [point]):
        for a, b in zip(own.decode(embedding, prompts), named.decode(embedding, prompts), strict=True):
            np.testing.assert_allclose(b.low_res_logits, a.low_res_logits, atol=1e-4)
            np.testing.assert_allclose(b.predicted_iou, a.predicted_iou, atol=1e-4)
    assert len(made) == 1, "one graph for any number of prompts and points"


def test_a_vit_answers_as_in_torch_at_another_size_than_its_own() -> None:
    name = "vit_tiny_patch16_224"
    torch.manual_seed(0)
    tensors = timm.create_model(name, num_classes=0).state_dict()
    images = torch.rand(1, 3, 96, 64) * 255
    (expected,) = build_backbone(name, [3], tensors).features(images)
    with running_on(Runtime("openvino")):
        (found,) = build_backbone(name, [3], tensors).features(images)
    torch.testing.assert_close(found, expected, atol=1e-3 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("chosen", [*EXACT, Runtime("onnx", patient=True)], ids=names)
def test_a_network_with_batch_norms_answers_as_in_torch_at_every_further_size(chosen: Runtime) -> None:
    """Making a graph must not teach them the picture that it is made with."""
    torch.manual_seed(0)
    tensors = timm.create_model("mobilenetv2_100", num_classes=0).eval().state_dict()
    plain = build_backbone("mobilenet_v2", [1, 2], tensors)
    with running_on(chosen):
        backbone = build_backbone("mobilenet_v2", [1, 2], tensors)
    for width in (32, 64, 96, 64, 32):
        images = 255 * torch.rand(1, 3, 32, width)
        for found, expected in zip(backbone.features(images), plain.features(images), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("chosen", EXACT, ids=names)
def test_pictures_of_all_sizes_share_two_graphs_of_sams_encoder(
    chosen: Runtime, encoder: TinyVitEncoder, cache: Path
) -> None:
    """One for the size that comes first, which a camera keeps to, one for all others; its windows fit some of them."""
    running = in_(chosen, encoder)
    for hw in ((160, 96), (224, 448), (32, 64), (224, 224), (112, 112), (160, 96), (448, 224)):
        images = torch.randn(1, 3, *hw, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = encoder(images)
        (found,) = running(images)
        torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
    assert isinstance(running, runtime._InGraphs)
    assert list(running.graphs) == ["1x3x160x96", "1x3xnxn"]
    assert len(list((cache / "graphs").glob("*.onnx"))) == 1, "made once: the one size is a case of all sizes"


def test_a_patient_runtime_counts_what_all_sizes_take_that_a_graph_would_serve(
    encoder: TinyVitEncoder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "MAKING_SECONDS", 1e-6)
    running = in_(Runtime("onnx", patient=True), encoder)
    running(torch.zeros(1, 3, 64, 64))
    assert not (cache / "graphs").exists()
    running(torch.zeros(1, 3, 64, 96))
    assert isinstance(running, runtime._InGraphs)
    assert list(running.graphs) == ["1x3xnxn"]


def test_bf16_is_near(encoder: TinyVitEncoder) -> None:
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    (expected,) = in_(Runtime(), encoder)(images)
    for chosen in (Runtime("torch", "bf16"), Runtime("openvino", "bf16")):
        (found,) = in_(chosen, encoder)(images)
        assert found.dtype == torch.float32
        assert (found - expected).norm() < 0.05 * expected.norm(), chosen


def test_a_graph_is_made_once_for_a_size_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    export = runtime.exported
    monkeypatch.setattr(runtime, "exported", lambda *args: made.append(1) or export(*args))
    for _ in range(2):  # the second is a later process
        running = in_(Runtime("onnx"), Brighter())
        for side in (8, 16, 8):
            assert torch.equal(running(torch.ones(1, 3, side, side))[0], torch.full((1, 3, side, side), 2.0))
    assert len(made) == len(list((cache / "graphs").glob("*.onnx"))) == 2
    assert torch.equal(in_(Runtime("onnx"), Brighter(3.0))(torch.ones(1, 3, 8, 8))[0], torch.full((1, 3, 8, 8), 3.0))


def test_graphs_on_disk_have_a_limit_and_what_is_used_stays(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cache / "graphs"

    def ask(*sides: int) -> None:
        running = in_(Runtime("onnx"), Brighter())
        for side in sides:
            running(torch.ones(1, 3, side, side))

    ask(8, 16)
    for age, file in enumerate(sorted(folder.glob("*.onnx")), 1):
        os.utime(file, (1000 - age, 1000 - age))
        size = file.stat().st_size
    ask(16)  # the older one; it is used
    monkeypatch.setattr(runtime, "MOST_BYTES", int(2.5 * size))
    ask(24)
    assert sorted(path.stem.rpartition("x")[2] for path in folder.glob("*.onnx")) == ["16", "24"]


class Slow(Brighter):
    def forward(self, images: Tensor) -> Tensor:
        if not torch.jit.is_tracing():
            time.sleep(0.05)
        return super().forward(images)


def test_pictures_of_many_sizes_are_left_to_torch(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "MAKING_SECONDS", 0.06)
    running = in_(Runtime("onnx", patient=True), Slow())
    for side in range(8, 14):
        running(torch.ones(1, 3, side, side))
    assert not (cache / "graphs").exists(), "no size came back"
    for _ in range(3):
        assert running(torch.ones(1, 3, 8, 8))[0].eq(2).all()
    assert len(list((cache / "graphs").glob("*.onnx"))) == 1, "the one that did has paid for its graph"


@pytest.mark.parametrize("chosen", EXACT, ids=names)
def test_a_damaged_graph_is_made_again(chosen: Runtime, cache: Path) -> None:
    in_(chosen, Brighter())(torch.ones(1, 3, 8, 8))
    (file,) = (cache / "graphs").glob("*.onnx")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    for compiled in (cache / "graphs/openvino").glob("*"):
        compiled.write_bytes(b"junk")
    assert in_(chosen, Brighter())(torch.ones(1, 3, 8, 8))[0].eq(2).all()
    assert file.read_bytes() == whole


class Graphless(Brighter):
    def forward(self, images: Tensor) -> Tensor:
        if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
            raise RuntimeError("no such operator")
        return super().forward(images)


def test_a_network_without_a_graph_runs_in_torch_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    running = in_(Runtime("openvino"), Graphless())
    with caplog.at_level(logging.WARNING, "sam_inspect"):
        assert running(torch.ones(1, 3, 8, 8))[0].eq(2).all()
    assert "Graphless has no graph (RuntimeError); torch runs it" in caplog.text


class Interrupted(Brighter):
    def forward(self, images: Tensor) -> Tensor:
        raise ImportError("initialization failed") from KeyboardInterrupt()


def test_ctrl_c_while_a_graph_is_made_is_no_missing_graph() -> None:
    with pytest.raises(KeyboardInterrupt):
        in_(Runtime("openvino"), Interrupted())(torch.ones(1, 3, 8, 8))


def test_what_cannot_run_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    with pytest.raises(ConfigError, match="onnx: knows no bf16"):
        fastest.pick_runtime("onnx", "bf16", "cpu", None)
    with pytest.raises(ConfigError, match="tensorrt: is not known; name one of auto, torch"):
        fastest.pick_runtime("tensorrt", "auto", "cpu", None)
    with pytest.raises(UsageError, match="--runtime openvino: runs on the CPU only"):
        fastest.pick_runtime("openvino", "auto", "cuda", None)
    with pytest.raises(UsageError, match="--runtime compiled: runs on a GPU only; name one of auto, torch, openvino"):
        fastest.pick_runtime("compiled", "auto", "cpu", None)
    assert fastest.pick_runtime("auto", "bf16", "cuda", None) == Runtime("torch", "bf16")
    assert fastest.pick_runtime("compiled", "auto", "cuda", None) == Runtime("compiled")
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert fastest.pick_runtime("openvino", "bf16", "cpu", None) == Runtime("openvino", "f32")
    assert "this processor computes none" in caplog.text
    with pytest.raises(ConfigError, match="onnx: knows no bf16"):
        fastest.pick_runtime("onnx", "bf16", "cpu", None)
    monkeypatch.setitem(PACKAGES, "openvino", "no_such_package")
    with pytest.raises(ExtraMissing, match=r"openvino is not installed; pip install 'sam-inspect\[openvino\]'"):
        fastest.pick_runtime("openvino", "auto", "cpu", None)


def test_a_gpu_records_what_comes_again_and_forgets_what_does_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """How a recording is made needs a GPU (tests/test_gpu.py); when one is made does not."""
    ran = list[str]()

    class Recording:
        def __init__(self, work: Callable[..., list[Tensor]], inputs: Sequence[Tensor]) -> None:
            ran.append("recorded")
            self.work = work
            work(*inputs)

        def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
            ran.append("replayed")
            return self.work(*inputs)

    def no_compiler(*_: Tensor) -> list[Tensor]:
        raise RuntimeError("Failed to find C compiler\nsee the documentation")

    monkeypatch.setattr(recorded, "_Recording", Recording)
    monkeypatch.setattr(recorded, "MOST_RECORDINGS", 2)
    running = recorded.Recorded(lambda images: [images * 2], no_compiler, "Doubled")

    def asked(length: int) -> list[str]:
        ran.clear()
        assert running(torch.ones(length))[0].eq(2).all()
        return list(ran)

    assert [asked(1) for _ in range(3)] == [[], ["recorded", "recorded", "replayed"], ["replayed"]]
    assert "Doubled cannot be compiled (Failed to find C compiler); it runs slower" in caplog.text
    assert [asked(2), asked(1), asked(3), asked(1), asked(2)] == [[], ["replayed"], [], ["replayed"], []]


def test_nothing_is_told_to_openvinos_makers(tmp_path: Path) -> None:
    """Imported plainly, it leaves an identifier in the home folder and sends it, with the event, from a new process."""
    code = "from sam_inspect.networks.graphs import openvino_has_bf16; openvino_has_bf16(); import openvino, nncf"
    home = {"HOME": str(tmp_path), "CI": "false"}
    subprocess.run([sys.executable, "-c", code], env=os.environ | home, check=True)
    assert list(tmp_path.iterdir()) == []


def test_the_fastest_is_measured_once_and_remembered(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def seconds(chosen: Runtime, encoder: nn.Module) -> float:
        asked.append(chosen)
        return 1.0 if chosen.name == "onnx" else 2.0

    monkeypatch.setattr(fastest, "_seconds", seconds)
    for _ in range(2):
        assert fastest.pick_runtime("auto", "auto", "cpu", Brighter(), "abc") == Runtime("onnx", patient=True)
    assert len(asked) == 3
    (cache / "runtimes.json").write_text("{cut")
    assert fastest.pick_runtime("auto", "auto", "cpu", Brighter(), "abc") == Runtime("onnx", patient=True)
    assert len(asked) == 6
    fastest.pick_runtime("auto", "auto", "cpu", Brighter(), "other weights")
    assert len(asked) == 9
    assert len(json.loads((cache / "runtimes.json").read_text())) == 2


def result(image: str, verdict: str, milliseconds: float, box: tuple[int, int] | None = None) -> dict[str, Any]:
    """As a line of results.jsonl: a defect of 10 x 10 pixels where `box` begins."""
    defects = []
    if box is not None:
        x, y = box
        runs = [x * 40 + y, *[10, 30] * 9, 10]
        defects = [{"mask": {"size": [40, 40], "counts": [*runs, 1600 - sum(runs)]}}]
    timings = {"localize": milliseconds, "segment": 100.0 if defects else 0.0}
    return {"image": image, "verdict": verdict, "defects": defects, "timings_ms": timings, "size": [40, 40]}


def test_a_row_of_the_bench_says_how_fast_and_how_alike(tmp_path: Path) -> None:
    reference = bench.Run(
        [result("a", "pass", 900), result("b", "pass", 50), result("c", "fail", 60, (0, 0))], 2.0, 500.0
    )
    moved = bench.Run([result("a", "pass", 9), result("b", "pass", 5), result("c", "fail", 6, (0, 5))], 1.0, 400.0)
    first = bench._row(Runtime(), 1, reference, reference)
    other = bench._row(Runtime("openvino", "bf16"), 1, moved, reference)
    assert first["good"] == {"p50": 50.0, "p95": 50.0}
    assert first["first_s"] == pytest.approx(2.0 - 0.05 - 0.16)
    assert first["mask_iou"] == {"mean": 1.0, "least": 1.0, "masks": 1}
    assert other["verdicts_kept"] == 3
    assert other["mask_iou"]["least"] == pytest.approx(50 / 150)
    ((_, _, cells),) = bench.as_tables([], [first, other], {"processor": "this"})
    assert cells[1][0] == "openvino bf16"
    with pytest.raises(RecipeError, match="does not exist"):
        bench.record(tmp_path / "none", [first, other])
    whole = json.loads(bench.as_json([], [first, other], {"processor": "this"}))
    assert whole["inspect"][0]["good"]["p50"] == 50
    for row in (first, other):
        row["mask_iou"]["masks"] = 0
    with pytest.raises(UsageError, match="none of the images shows a defect"):
        bench.record(tmp_path, [first, other])


def test_where_every_image_is_defective_the_fastest_is_found_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was timed of good ones: no number, and null in the file."""
    slow, fast = (
        bench.Run([result("c", "fail", 9, (0, 0)), result("d", "fail", ms, (0, 0))], 2.0, 500.0) for ms in (900, 300)
    )
    rows = [bench._row(runtime, 1, run, slow) for runtime, run in ((Runtime(), slow), (Runtime("openvino"), fast))]
    chosen: list[str] = []
    monkeypatch.setattr(bench, "save_runtime", lambda _, best: chosen.append(best["runtime"]))
    bench.record(Path("recipe"), rows)
    assert chosen == ["openvino"]
    assert json.loads(bench.as_json([], rows, {}))["inspect"][0]["good"] == {"p50": None, "p95": None}


def test_a_run_of_the_bench_that_fails_says_why(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8), np.uint8))
    with pytest.raises(SamInspectError, match=r"bench with torch f32: error: .*none: does not exist"):
        bench._run(tmp_path / "none", [str(tmp_path / "a.png")], "cpu", Runtime(), 1)


def test_a_gpu_is_shown_the_images_again_under_other_names(tmp_path: Path) -> None:
    """Its first rounds are not timed; `inspect` would take one file once."""
    images = [str(tmp_path / name) for name in ("a.png", "b.jpg")]
    for image in images:
        Path(image).write_text(image)
    assert bench._repeated(images, 0, tmp_path / "absent") == images, "a processor's lie where they are"
    (tmp_path / "copies").mkdir()
    every = bench._repeated(images, 5, tmp_path / "copies")
    assert every[:2] == images and len(set(every)) == 5
    assert [Path(image).read_text() for image in every] == [*images, *images, images[0]]


@pytest.mark.parametrize("text", ["0", "1,x", "-2"])
def test_threads_are_numbers(text: str) -> None:
    with pytest.raises(UsageError, match="--threads"):
        bench.parse_threads(text)
    assert bench.parse_threads("1,2") == [1, 2]
