"""What a GPU answers is what the processor answers; where there is none these tests are skipped."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from segment_anything.build_sam import sam_model_registry
from torch import Tensor, nn

from sam_inspect.bench import bench_networks
from sam_inspect.config import RecipeConfig
from sam_inspect.finetune import Plan, finetune
from sam_inspect.finetune.settings import Settings
from sam_inspect.masks import union
from sam_inspect.metrics import mask_iou
from sam_inspect.networks.graphs import Runtime
from sam_inspect.networks.recorded import Recorded
from sam_inspect.networks.runtime import run, running_on
from sam_inspect.networks.sam import build_sam
from sam_inspect.pipeline import Inspector
from sam_inspect.progress import silent
from sam_inspect.records import Inspection, Prompt, View
from sam_inspect.segment.sam import MobileSam, SamVitB
from sam_inspect.training import train_recipe
from sam_inspect.weights import LoadedWeights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: torch sees no CUDA device")
GPU = torch.device("cuda")


def sams(weights: Callable[[str], LoadedWeights]) -> dict[str, MobileSam]:
    loaded = weights("mobile_sam")
    return {device: MobileSam(build_sam("mobile_sam", loaded.tensors, device)) for device in ("cpu", "cuda")}


def test_masks_are_those_of_the_processor_in_each_round(weights: Callable[[str], LoadedWeights]) -> None:
    """The first views of a size run as they are, the second are recorded, from the third on the recording answers."""
    network = sams(weights)
    for seed in range(4):
        image = np.random.default_rng(seed).integers(0, 256, (300, 400, 3), np.uint8)
        image[60 + 20 * seed : 140, 90:200] = 30
        boxes = tuple(Prompt(box_xyxy=(85.0 + 9 * place, 55, 205, 150)) for place in range(3))
        views = [View((10 * left, 20, 10 * left + 250, 270), 512, boxes) for left in range(3)]
        found = {device: sam.segment(image, views) for device, sam in network.items()}
        for ours, theirs in zip(found["cuda"], found["cpu"], strict=True):
            assert mask_iou(ours.low_res_logits[0] > 0, theirs.low_res_logits[0] > 0) >= 0.99
            np.testing.assert_allclose(ours.predicted_iou, theirs.predicted_iou, atol=5e-3)


def test_a_recording_answers_for_what_it_is_given_now() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 4, 3)).eval().to(GPU)
    running, kept = run(network, GPU), []
    for scale in range(1, 6):
        pixels = torch.randn(2, 3, 24, 24, device=GPU) * scale
        kept.append((running(pixels)[0], network(pixels)))
    for ours, plain in kept:  # earlier answers are not overwritten by later ones
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)
    assert isinstance(running, Recorded)
    assert [recording is not None for recording in running.recordings.values()] == [True]


class Waits(nn.Module):
    """Asks the GPU for a number, which no recording can do."""

    def forward(self, images: Tensor) -> Tensor:
        return images * float(images.max())


def test_a_network_that_cannot_be_recorded_runs_as_it_is_and_others_still_record(
    caplog: pytest.LogCaptureFixture,
) -> None:
    waits, pixels = run(Waits(), GPU), torch.rand(1, 3, 8, 8, device=GPU)
    for _ in range(3):
        torch.testing.assert_close(waits(pixels)[0], pixels * pixels.max())
    assert "Waits cannot be recorded" in caplog.text
    test_a_recording_answers_for_what_it_is_given_now()


def test_threads_that_share_a_gpu_do_not_disturb_each_other(weights: Callable[[str], LoadedWeights]) -> None:
    network = sams(weights)

    def many(seed: int) -> float:
        image = np.random.default_rng(seed).integers(0, 256, (200, 200, 3), np.uint8)
        image[50:120, 60:150] = 255 - 40 * seed
        own = MobileSam(network["cuda"].network)
        view = View((0, 0, 200, 200), 256 + 32 * seed, (Prompt(box_xyxy=(55, 45, 155, 125)),))
        (wanted,) = network["cpu"].segment(image, [view])
        found = [own.segment(image, [view])[0] for _ in range(12)]
        return min(float(mask_iou(each.low_res_logits[0] > 0, wanted.low_res_logits[0] > 0)) for each in found)

    with ThreadPoolExecutor(4) as pool:
        assert min(pool.map(many, range(4))) >= 0.99


@pytest.mark.parametrize(
    "runtime", [Runtime("torch", "bf16"), Runtime("compiled"), Runtime("compiled", "bf16")], ids=str
)
def test_every_other_way_comes_near(runtime: Runtime) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 32, 3), nn.GELU(), nn.Conv2d(32, 8, 3)).eval().to(GPU)
    with running_on(runtime):
        running = run(network, GPU)
    for _ in range(3):
        pixels = torch.randn(1, 3, 40, 40, device=GPU)
        torch.testing.assert_close(running(pixels)[0], network(pixels), atol=0.05, rtol=0.05)
    assert isinstance(running, Recorded)
    assert len(running.recordable) == (2 if runtime.name == "compiled" else 1), "a way was given up"


def test_without_a_compiler_the_network_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(*_: Tensor) -> list[Tensor]:
        raise RuntimeError("Failed to find C compiler")

    running, pixels = Recorded(lambda images: [images * 2], no_compiler, "Doubled"), torch.rand(3, device=GPU)
    for _ in range(3):
        torch.testing.assert_close(running(pixels)[0], pixels * 2)
    assert "Doubled cannot be compiled (Failed to find C compiler); it runs slower" in caplog.text
    assert all(running.recordings.values()), "it was recorded nevertheless"


def test_the_larger_sams_are_segment_anythings_own() -> None:
    torch.manual_seed(0)
    official = sam_model_registry["vit_b"]().eval()
    for name, parameter in official.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:
            nn.init.normal_(parameter, std=0.3)
    own = SamVitB.from_tensors("sam_vit_b", official.state_dict(), "cuda")
    image = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), np.uint8)
    for _ in range(3):
        (embedding,) = own.encode(image, [View((0, 0, 1024, 1024), 1024, ())])
    with torch.inference_mode():
        wanted = official.to(GPU).image_encoder(
            official.preprocess(torch.tensor(image, device=GPU).permute(2, 0, 1))[None]
        )
    assert float((embedding.features - wanted).norm() / wanted.norm()) < 2e-3


def union_of(found: Inspection) -> NDArray[np.bool_]:
    assert found.original_hw
    return union([defect.mask for defect in found.defects], found.original_hw)


def test_a_recipe_made_on_a_gpu_serves_the_processor_and_the_other_way_round(
    plates: Path, tmp_path: Path, weights: Callable[[str], LoadedWeights]
) -> None:
    weights("mobile_sam")
    made = {device: tmp_path / device for device in ("cpu", "cuda")}
    for device, folder in made.items():
        train_recipe(plates, folder, RecipeConfig(), device=device, progress=silent)
    holes = sorted((plates / "test/hole").iterdir())
    for folder in made.values():
        found = {device: list(Inspector.from_recipe(folder, device).inspect_many(holes)) for device in made}
        for ours, theirs in zip(found["cuda"], found["cpu"], strict=True):
            assert ours.verdict == theirs.verdict == "fail"
            assert mask_iou(union_of(ours), union_of(theirs)) >= 0.97


def test_a_decoder_tuned_on_a_gpu_serves_both(
    plates: Path, tmp_path: Path, weights: Callable[[str], LoadedWeights]
) -> None:
    weights("mobile_sam")
    train_recipe(plates, tmp_path, RecipeConfig(), device="cuda", progress=silent)
    quick = Settings(steps=8, batch=2, views=2, empty=0, guard=False)
    figures, page = finetune(plates, tmp_path, Plan(), quick, device="cuda", progress=silent)
    assert page.is_file() and figures
    hole = sorted((plates / "test/hole").iterdir())[0]
    ours, theirs = (Inspector.from_recipe(tmp_path, device).inspect(hole) for device in ("cuda", "cpu"))
    assert mask_iou(union_of(ours), union_of(theirs)) >= 0.97


def test_the_bench_times_the_networks_on_the_gpu(weights: Callable[[str], LoadedWeights]) -> None:
    weights("mobile_sam")
    rows = bench_networks("cuda", [torch.get_num_threads()], silent)
    assert [(row["device"], row["runtime"], row["precision"]) for row in rows] == [
        ("cuda", "torch", "f32"),
        ("cuda", "torch", "bf16"),
        ("cuda", "compiled", "f32"),
        ("cuda", "compiled", "bf16"),
    ]
    assert all(row["off"] < (0.05 if row["precision"] == "bf16" else 1e-3) for row in rows)
