"""Tuning moves the decoder and nothing else, learns from no part that it is scored on, and never ships a worse one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT
from torchvision.ops import sigmoid_focal_loss

from sam_inspect.config import ChooseConfig, PromptConfig
from sam_inspect.datasets import Sample
from sam_inspect.errors import DatasetError, UsageError, WeightsError
from sam_inspect.finetune import Plan, _guarded, _unless_worse, losses
from sam_inspect.finetune.compare import names_of
from sam_inspect.finetune.embeddings import CachedEncoder
from sam_inspect.finetune.labels import Fold, Label, draw_shots, parted, read_labels, read_split, split, write_split
from sam_inspect.finetune.loop import Trained, fit_decoder, marks_of, rate
from sam_inspect.finetune.page import curve_data, write_compare
from sam_inspect.finetune.probes import Probe, Question, box_errors
from sam_inspect.finetune.scores import COLUMNS, figures_of, named, scored_masks
from sam_inspect.finetune.settings import PRESETS, Settings, parse_curve, settings_of
from sam_inspect.finetune.tuner import Point, Tuned, Tuner, best_point, worst_gain
from sam_inspect.finetune.unfrozen import moved, unfrozen
from sam_inspect.finetune.views import Sizes, TrainingView, Turn, ViewMaker, jittered
from sam_inspect.localize.boxes import GivenBox, GivenBoxes
from sam_inspect.masks import filled_box
from sam_inspect.metrics import mask_iou
from sam_inspect.mirror import AS_IT_IS, MIRRORS
from sam_inspect.networks.mask_decoder import decode_each
from sam_inspect.progress import silent
from sam_inspect.prompt import plan_views
from sam_inspect.records import Prompt, View
from sam_inspect.segment.sam import MobileSam, SamVitB
from sam_inspect.weights import LoadedWeights

SIZES = Sizes(context=1.5, least_view_px=64, input_px=128)
QUICK = Settings(steps=8, batch=2, views=2, empty=0)
NO_ERRORS = np.zeros((0, 4), np.float32)


@pytest.fixture(scope="module")
def sam(weights: Callable[[str], LoadedWeights]) -> MobileSam:
    weights("mobile_sam")
    return MobileSam.from_config({}, device="cpu")


def label(name: str, kind: str = "hole", group: str | None = None, boxes: Iterable[Any] = ((30, 40, 60, 60),)) -> Label:
    sample = Sample(Path(name), kind, Path(f"{name}_mask.png"))
    return Label(sample, name, group or name, (120, 160), tuple(filled_box(box) for box in boxes))


@pytest.fixture
def views(sam: MobileSam, tmp_path: Path) -> list[TrainingView]:
    """Four views of a dark rectangle on a noisy plate."""
    return drawn_views(sam, tmp_path)


def drawn_views(sam: MobileSam, tmp_path: Path, frozen: bool = True) -> list[TrainingView]:
    pixels = np.random.default_rng(0).integers(120, 180, (120, 160, 3), np.uint8)
    pixels[40:60, 30:60] //= 4
    file = tmp_path / "part.png"
    Image.fromarray(pixels).save(file)
    named = replace(label("part.png"), sample=Sample(file, "hole", None))  # its views are drawn from its name
    return ViewMaker(CachedEncoder(sam, tmp_path / "cache"), SIZES, frozen).labelled(named, 4)


# What is learned from and what is scored


kinds_and_groups = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 6)), min_size=1, max_size=30)


@given(kinds_and_groups, st.integers(1, 5), st.integers(0, 3))
def test_no_part_is_learned_from_and_scored(drawn: list[tuple[str, int]], folds: int, seed: int) -> None:
    labels = [label(f"{i}.png", kind, f"part {group}") for i, (kind, group) in enumerate(drawn)]
    for fold in split(labels, folds, seed):
        groups = [{labels[index].group for index in part} for part in (fold.train, fold.test)]
        assert fold.train
        assert not groups[0] & groups[1]
        assert sorted(fold.train + fold.test) == list(range(len(labels)))


@given(kinds_and_groups, st.integers(0, 3))
def test_folds_score_every_label_once(drawn: list[tuple[str, int]], seed: int) -> None:
    labels = [label(f"{i}.png", kind, f"part {group}") for i, (kind, group) in enumerate(drawn)]
    found = split(labels, 3, seed)
    if len({each.group for each in labels}) > 1:
        assert sorted(index for fold in found for index in fold.test) == list(range(len(labels)))


def test_shots_take_types_in_turn_and_each_part_once() -> None:
    labels = [label(f"{kind}{i}", kind, f"{kind}{i // 2}") for kind in "ab" for i in range(6)]
    chosen = [labels[index] for index in draw_shots(labels, range(12), 6, 0)]
    assert sorted(each.sample.defect_type for each in chosen) == ["a"] * 3 + ["b"] * 3
    assert len({each.group for each in chosen}) == 6
    assert draw_shots(labels, range(12), None, 0) == tuple(range(12))
    assert len(set(draw_shots(labels, range(12), 11, 0))) == 11


def test_no_more_labels_are_said_to_be_learned_from_than_there_are(caplog: pytest.LogCaptureFixture) -> None:
    folds = [Fold(tuple(range(6)), (6, 7)), Fold(tuple(range(2, 9)), (0, 1))]
    plan = Plan(shots=99, folds=5, curve=(1, 6, 100)).within(folds)
    assert (plan.shots, plan.folds, plan.curve) == (None, 2, (1, 6, 6))
    assert "99, 100 labels were asked for; there are 6 to learn from" in caplog.text
    assert "5 folds were asked for" in caplog.text
    caplog.clear()
    assert Plan(shots=6, folds=2, curve=(2,)).within(folds) == Plan(shots=6, folds=2, curve=(2,))
    assert not caplog.text


def test_a_split_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    labels = [label(f"test/a/{i}, x.png", "a") for i in range(5)]
    fold = Fold((0, 2), (1, 4))
    write_split(tmp_path / "split.csv", labels, [fold])
    assert read_split(tmp_path / "split.csv", labels) == [fold]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,part\na,train\nb,test\n", "group g is in train and in test"),
        ("image,part\nc,train\n", "line 2: c is not a labelled image"),
        ("image,part\na,test\n./a, train\n", "line 3: a stands there a second time"),
        ("image,part\na,learn\n", "line 2: its part is 'learn'"),
        ("image,part\na,test\n", "nothing is in train"),
        ("file,part\n", "its columns are"),
    ],
)
def test_a_split_that_cannot_be_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(DatasetError, match=said):
        read_split(tmp_path / "s.csv", [label("a", group="g"), label("b", group="g")])


def test_one_picture_under_two_types_is_one_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for place, kind in enumerate(["chip", "dent", "dent"]):
        name = f"{place // 2}.png"
        for folder, value in (("test", 90 + place // 2), ("ground_truth", 255)):
            (tmp_path / folder / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / folder / kind / name), np.full((20, 20), value, np.uint8))
    labels = {each.name: each.group for each in read_labels(tmp_path)}
    assert labels["test/chip/0.png"] == labels["test/dent/0.png"] != labels["test/dent/1.png"]
    assert "test/dent/0.png: is the same picture as test/chip/0.png" in caplog.text


def test_a_single_part_is_learned_from_and_nothing_is_scored() -> None:
    labels = [label("a", group="one"), label("b", group="one")]
    assert split(labels, 3, 0) == [Fold((0, 1), ())]
    assert len(parted([*labels, label("c")], (0, 1, 2), 2, 0)) == 2


# Views


@given(
    st.tuples(st.floats(0, 50), st.floats(0, 50), st.floats(1, 50), st.floats(1, 50)),
    st.lists(st.tuples(*[st.floats(-1, 1)] * 4), max_size=4),
    st.floats(0, 2),
    st.integers(0, 99),
)
def test_a_jittered_box_stays_a_box(corner: Any, errors: Any, jitter: float, seed: int) -> None:
    x, y, width, height = corner
    box = np.array([x, y, x + width, y + height], np.float32)
    moved = jittered(box, np.array(errors, np.float32).reshape(-1, 4), jitter, np.random.default_rng(seed))
    assert moved[2] - moved[0] >= 0.24 * width
    assert moved[3] - moved[1] >= 0.24 * height
    if not errors or not jitter:
        np.testing.assert_array_equal(moved, box)


@given(st.integers(0, 3), st.booleans(), st.integers(0, 9))
def test_picture_and_truth_are_laid_alike(turns: int, mirrored: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random((12, 12)) > 0.5
    image = np.where(truth, 200, 50).astype(np.uint8)[..., None].repeat(3, 2)
    turn = Turn(turns, mirrored)
    np.testing.assert_array_equal(turn.relit(image)[..., 0] > 100, turn.turned(truth))


def test_a_view_shows_its_defect_where_its_box_says(views: list[TrainingView]) -> None:
    for view in views:
        assert view.own == 0
        truth = view.truths[0] > 0.5
        rows, columns = np.flatnonzero(truth.any(1)), np.flatnonzero(truth.any(0))
        bounds = 4 * np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        np.testing.assert_allclose(view.boxes[0], bounds, atol=4.1)


def test_each_view_is_encoded_once(sam: MobileSam, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    encoder = CachedEncoder(sam, tmp_path)
    first = encoder.embed(pixels, 64).load().copy()
    again = CachedEncoder(sam, tmp_path)
    np.testing.assert_array_equal(again.embed(pixels, 64).load(), first)
    assert (again.found, again.encoded) == (1, 0)
    (exact,) = sam.encode(pixels, [View((0, 0, 60, 40), 64, ())])
    np.testing.assert_allclose(first, exact.features[0].numpy(), atol=2e-3)


def test_a_stale_or_cut_embedding_is_never_used(sam: MobileSam, tmp_path: Path) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    kept = CachedEncoder(sam, tmp_path).embed(pixels, 64)
    other = MobileSam(sam.network, "of other weights")
    for encoder, changed, input_px in [(other, pixels, 64), (sam, pixels + 1, 64), (sam, pixels, 96)]:
        fresh = CachedEncoder(encoder, tmp_path)
        fresh.embed(changed, input_px)
        assert (fresh.found, fresh.encoded) == (0, 1)
    kept.path.write_bytes(kept.path.read_bytes()[:500])
    mended = CachedEncoder(sam, tmp_path)
    assert mended.embed(pixels, 64).load().shape == (256, 4, 4)
    assert mended.encoded == 1


# Losses, against independent ones


@pytest.fixture
def masks() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, 2, 8, 8), (torch.rand(3, 1, 8, 8) > 0.6).float(), torch.ones(3, 1, 8, 8)


def test_the_losses_are_what_their_papers_say(masks: tuple[torch.Tensor, ...]) -> None:
    logits, truth, valid = masks
    wide = truth.expand_as(logits)
    focal = sigmoid_focal_loss(logits, wide, alpha=0.25, gamma=2, reduction="none").mean((2, 3))
    torch.testing.assert_close(losses.focal(logits, truth, valid), focal)
    torch.testing.assert_close(losses.mse(logits, truth, valid), ((logits.sigmoid() - wide) ** 2).mean((2, 3)))
    p = logits.sigmoid().numpy()
    for b in range(3):
        for m in range(2):
            t = truth[b, 0].numpy()
            expected = 1 - (2 * (p[b, m] * t).sum() + 1) / (p[b, m].sum() + t.sum() + 1)
            assert float(losses.dice(logits, truth, valid)[b, m]) == pytest.approx(expected, abs=1e-5)
            bce = -(t * np.log(p[b, m]) + (1 - t) * np.log(1 - p[b, m]))
            halves = (bce[t > 0].mean() + bce[t == 0].mean()) / 2
            assert float(losses.balanced_bce(logits, truth, valid)[b, m]) == pytest.approx(halves, abs=1e-5)
            iou = mask_iou(logits[b, m].numpy() > 0, t > 0)
            assert float(losses.true_iou(logits, truth, valid)[b, m]) == pytest.approx(iou, abs=1e-6)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_no_loss_sees_the_padding_and_each_is_least_at_the_truth(name: str, masks: tuple[torch.Tensor, ...]) -> None:
    logits, truth, valid = masks
    valid = valid.clone()
    valid[..., 6:] = 0
    loss = losses.LOSSES[name]
    inside = truth * valid
    other = logits.clone()
    other[..., 6:] += 5
    torch.testing.assert_close(loss(logits, inside, valid), loss(other, inside, valid))
    right = (40 * inside - 20).expand_as(logits)
    assert (loss(right, inside, valid) < 0.01).all()
    assert (loss(right, inside, valid) < loss(logits, inside, valid)).all()
    empty = torch.zeros_like(truth)
    assert (loss(torch.full_like(logits, -20.0), empty, valid) < 0.01).all()


def test_only_what_the_untuned_had_right_can_be_forgotten(masks: tuple[torch.Tensor, ...]) -> None:
    logits, truth, valid = masks
    right = (8 * truth - 4).expand_as(logits)
    assert (losses.forgotten(logits, -right, truth, valid) == 0).all()
    assert (losses.forgotten(right, right, truth, valid) == 0).all()
    assert (losses.forgotten(-right, right, truth, valid) > 1).all()
    for b in range(3):
        t = truth[b, 0].numpy() > 0
        squares = (logits[b, 1].sigmoid() - right[b, 1].sigmoid()).numpy() ** 2
        expected = squares[t].mean() + squares[~t].mean()
        assert float(losses.forgotten(logits, right, truth, valid)[b, 1]) == pytest.approx(expected, abs=1e-5)


# The loop


def test_each_prompt_about_its_own_image_is_answered_as_alone(sam: MobileSam) -> None:
    torch.manual_seed(0)
    decoder, encoder = sam.network.mask_decoder, sam.network.prompt_encoder_for(128)
    embeddings = torch.randn(2, 256, 8, 8)
    sparse, dense = encoder(None, torch.tensor([[10.0, 10, 60, 70], [30, 5, 100, 90]]), None)
    pe = encoder.get_dense_pe()
    logits, iou = decode_each(decoder, embeddings, pe, sparse, dense)
    for i in range(2):
        alone = decoder.predict_masks(embeddings[i : i + 1], pe, sparse[i : i + 1], dense[i : i + 1])
        torch.testing.assert_close(logits[i : i + 1], alone[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(iou[i : i + 1], alone[1], atol=1e-4, rtol=1e-4)


def states(sam: MobileSam) -> dict[str, torch.Tensor]:
    modules = {"encoder": sam.network.image_encoder, "prompt": sam.network.prompt_encoder}
    modules["decoder"] = sam.network.mask_decoder
    return {f"{part}.{name}": v.clone() for part, m in modules.items() for name, v in m.state_dict().items()}


@pytest.mark.parametrize("prompt", ["box", "points", "both"])
def test_only_the_decoder_moves(sam: MobileSam, views: list[TrainingView], prompt: Any) -> None:
    before = states(sam)
    settings = QUICK.model_copy(update={"prompt": prompt, "iou_head": prompt != "points"})
    trained = fit_decoder(sam.network, views, [], NO_ERRORS, settings, progress=silent)
    for name, value in states(sam).items():
        assert torch.equal(value, before[name]), name
    tuned = trained.snapshots[QUICK.steps]
    changed = {name for name, value in tuned.items() if not torch.equal(value, before[f"decoder.{name}"])}
    assert "output_upscaling.0.weight" in changed
    assert any("iou_prediction_head" in name for name in changed) == settings.iou_head


def test_a_view_learned_by_heart_is_outlined_better(sam: MobileSam, views: list[TrainingView]) -> None:
    settings = QUICK.model_copy(update={"steps": 30})
    trained = fit_decoder(sam.network, views, [], NO_ERRORS, settings, progress=silent)
    assert np.mean(trained.losses[-5:]) < 0.7 * np.mean(trained.losses[:5])


@pytest.mark.parametrize("how", ["encoder-lora", "encoder"])
def test_an_encoder_that_may_move_does_and_is_put_into_the_network(sam: MobileSam, tmp_path: Path, how: Any) -> None:
    pixels, before = drawn_views(sam, tmp_path, frozen=False), states(sam)
    settings = QUICK.model_copy(update={"unfreeze": how, "steps": 3, "keep": 1.0})
    state = fit_decoder(sam.network, pixels, [], NO_ERRORS, settings, progress=silent).snapshots[3]
    assert all(torch.equal(value, before[name]) for name, value in states(sam).items())
    names = {name for name in state if name.startswith("image_encoder.")}
    assert ("image_encoder.neck.0.weight" in names) == (how == "encoder")
    assert "image_encoder.stages.2.blocks.0.attn.qkv.weight" in names
    changes = [state[name] - sam.tunable_tensors()[name] for name in names]
    assert all(bool(change.abs().max() > 0) for change in changes)
    if how == "encoder-lora":
        assert max(int(torch.linalg.matrix_rank(change, rtol=1e-3)) for change in changes) <= 4
    tuned = sam.with_tuned(state, sam.sha256)
    image = np.random.default_rng(1).integers(0, 255, (100, 120, 3), np.uint8)
    shown = [View((0, 0, 120, 100), 128, ())]
    (old,), (new,) = (list(each.encode(image, shown)) for each in (sam, tuned))
    assert (old.features - new.features).abs().max() > 1e-4
    whole = sam.with_tuned(sam.tunable_tensors(), sam.sha256)
    torch.testing.assert_close(next(iter(whole.encode(image, shown))).features, old.features)


@pytest.mark.parametrize("name", ["mobile_sam", "a small ViT"])
def test_a_low_rank_change_is_none_at_first_and_alone_takes_gradients(sam: MobileSam, name: str) -> None:
    small = ImageEncoderViT(img_size=64, embed_dim=32, depth=2, num_heads=2, out_chans=8, use_rel_pos=True)
    encoder = small.requires_grad_(False) if name == "a small ViT" else sam.network.image_encoder
    pixels, moving = torch.randn(1, 3, 64, 64), unfrozen(encoder, "encoder-lora", 0)
    torch.testing.assert_close(moving(pixels), encoder(pixels))
    moving(pixels).square().mean().backward()
    with_gradient = {key for key, value in moving.named_parameters() if value.grad is not None}
    assert with_gradient == {key for key, _ in moving.named_parameters() if ".weight.0." in key}
    layers = {key for key, module in encoder.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(moved(moving)) == {f"image_encoder.{key}.weight" for key in layers}


def test_no_learning_rate_takes_the_decoder_further_than_its_leash(sam: MobileSam, views: list[TrainingView]) -> None:
    settings = QUICK.model_copy(update={"lr": 0.08, "steps": 3, "leash": 0.05})
    tuned = fit_decoder(sam.network, views, [], NO_ERRORS, settings, progress=silent).snapshots[3]
    base = sam.network.mask_decoder.state_dict()
    moves = np.array([float((value - base[name]).norm() / base[name].norm()) for name, value in tuned.items()])
    assert moves.max() == pytest.approx(0.05, rel=1e-3)


class Interrupted:
    """Progress during which somebody presses Ctrl-C."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, items: Iterable[Any], description: str, total: int) -> Iterator[Any]:
        for number, item in enumerate(items):
            if number == self.after:
                raise KeyboardInterrupt
            yield item


def test_an_interrupted_fit_goes_on_to_the_same_decoder(
    sam: MobileSam, views: list[TrainingView], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sam_inspect.finetune.loop.CHECKPOINT_SECONDS", -1.0)
    fit: Callable[..., Any] = lambda **more: fit_decoder(sam.network, views, views[:1], NO_ERRORS, QUICK, **more)  # noqa: E731
    whole = fit(progress=silent)
    file = tmp_path / "fit.pt"
    with pytest.raises(KeyboardInterrupt):
        fit(progress=Interrupted(5), checkpoint=file)
    resumed = fit(progress=silent, checkpoint=file)
    assert resumed.losses == whole.losses
    assert all(torch.equal(value, resumed.snapshots[8][name]) for name, value in whole.snapshots[8].items())
    state = torch.load(file, weights_only=True)
    torch.save(state | {"optimizer": {}}, file)
    assert fit(progress=silent, checkpoint=file).losses == whole.losses, "it begins from the untuned decoder"
    file.write_bytes(file.read_bytes()[:999])
    assert fit(progress=silent, checkpoint=file).losses == whole.losses


def test_a_loss_that_is_no_number_stops_the_fit(sam: MobileSam, views: list[TrainingView]) -> None:
    broken = [replace(view, truths=np.full_like(view.truths, np.nan)) for view in views]
    trained = fit_decoder(sam.network, broken, [], NO_ERRORS, QUICK, progress=silent)
    assert (trained.stopped, trained.snapshots) == (0, {})


@given(st.sampled_from(sorted(PRESETS)), st.integers(1, 400))
def test_learning_rates_warm_up_and_never_rise_again(preset: str, steps: int) -> None:
    settings = PRESETS[preset].model_copy(update={"steps": steps})
    rates = np.array([rate(step, settings) for step in range(steps)])
    assert (rates >= 0).all()
    assert rates.max() == pytest.approx(1.0)
    assert (np.diff(rates[int(rates.argmax()) :]) <= 1e-12).all()
    assert marks_of(settings)[-1] == steps


def test_a_preset_is_what_the_study_says() -> None:
    study, own = PRESETS["study"], PRESETS["sam"]
    assert (study.optimizer, study.lr, study.loss, study.masks, study.prompt) == ("adam", 1e-6, "mse", "single", "box")
    assert (own.optimizer, own.lr, own.loss, own.schedule) == ("adamw", 8e-4, "focal_dice", "steps")
    assert settings_of("study", {"lr": 0.1, "loss": None}).lr == 0.1
    with pytest.raises(UsageError, match="lr"):
        settings_of("study", {"lr": -1})


def test_a_curve_is_numbers() -> None:
    assert parse_curve("5, 1,5") == (1, 5)
    assert parse_curve("") == ()
    with pytest.raises(UsageError, match="'x' is not a number"):
        parse_curve("1,x")


# What ships


def point(share: float, iou: float, worst: float) -> Point:
    return Point(10, share, iou, iou, worst)


def test_what_makes_a_type_worse_never_ships() -> None:
    untuned = point(0, 0.6, 0.02)
    assert best_point([untuned, point(1, 0.9, -0.01), point(0.5, 0.7, 0.0)]).share == 0.5
    assert best_point([untuned, point(1, 0.9, -0.01), point(0.5, 0.59, 0.1)]) is untuned
    assert best_point([untuned, Point(5, 1.0, 0.606, 0.606, 0.1), point(0.3, 0.599, 0.1)]).share == 1


def test_of_decoders_alike_the_one_of_all_steps_ships() -> None:
    early = Point(5, 1.0, 0.7, 0.7, 0)
    assert best_point([point(0, 0.6, 0), early, point(0.5, 0.692, 0), point(1, 0.695, 0)]).share == 1
    assert best_point([point(0, 0.6, 0), early, point(0.5, 0.68, 0)]) is early


def test_noise_is_two_standard_errors_over_parts() -> None:
    alone = [label("a"), label("b")]
    assert worst_gain([-0.03, -0.03], alone, 0.02) == (pytest.approx(-0.01), "hole")
    parts = [label(f"{i}") for i in range(4)]
    gains = [-0.01, 0.0, -0.02, 0.01]
    assert worst_gain(gains, parts, 0)[0] == pytest.approx(-0.005 + np.std(gains, ddof=1))
    pictures = [label(f"{i}{j}", group=f"{i}") for i in range(4) for j in range(3)]
    assert worst_gain(np.repeat(gains, 3).tolist(), pictures, 0)[0] == pytest.approx(worst_gain(gains, parts, 0)[0])
    assert worst_gain([0.5, -0.5], [label("a", "crack"), label("b", "hole")], 0)[1] == "hole"
    assert worst_gain([-0.9, 0, 0, 0], parts, 0.05)[0] < 0, "a ruined part makes the error as large as the loss"


def test_a_tuned_decoder_belongs_to_its_base(sam: MobileSam) -> None:
    decoder = {name: value + 0.01 for name, value in sam.network.mask_decoder.state_dict().items()}
    tuned = sam.with_tuned(decoder, sam.sha256)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    view = View((0, 0, 64, 64), 64, (Prompt(box_xyxy=(5, 5, 40, 40)),))
    one, other = (each.segment(image, [view])[0].low_res_logits for each in (sam, tuned))
    assert not np.allclose(one, other)
    with pytest.raises(WeightsError, match="belongs to weights 0123"):
        sam.with_tuned(decoder, "0123")
    del decoder["iou_token.weight"]
    with pytest.raises(WeightsError, match="iou_token"):
        sam.with_tuned(decoder, sam.sha256)


def test_a_larger_sam_is_tuned_in_its_decoder_alone(tmp_path: Path) -> None:
    """With random weights, whole views at its only size; the first three of its encoder's blocks are enough."""
    torch.manual_seed(0)
    large = SamVitB.from_tensors("sam_vit_b", sam_model_registry["vit_b"]().eval().state_dict())
    large.network.image_encoder.blocks = large.network.image_encoder.blocks[:3]
    pixels = np.random.default_rng(0).integers(120, 180, (120, 160, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "part.png")
    maker = ViewMaker(CachedEncoder(large, tmp_path / "cache"), Sizes.of(PromptConfig(), large))
    shown = maker.labelled(label(str(tmp_path / "part.png")), 1)
    assert shown[0].kept.load().shape == (256, 64, 64)
    before = states(large)
    settings = QUICK.model_copy(update={"steps": 1, "batch": 1})
    tuned = fit_decoder(large.network, shown, [], NO_ERRORS, settings, progress=silent).snapshots[1]
    assert all(torch.equal(value, before[name]) for name, value in states(large).items())
    assert any(not torch.equal(value, before[f"decoder.{name}"]) for name, value in tuned.items())
    again = large.with_tuned(tuned, large.sha256)
    assert again.network.image_encoder is large.network.image_encoder


@pytest.fixture
def tuner(sam: MobileSam, tmp_path: Path) -> Tuner:
    """Four labelled plates, each with a dark rectangle; the localizer is taken to find it exactly."""
    encoder = CachedEncoder(sam, tmp_path / "cache")
    probes = []
    for number in range(4):
        rng = np.random.default_rng(number)
        pixels = rng.integers(120, 180, (120, 160, 3), np.uint8)
        x, y = (int(v) for v in rng.integers(20, 60, 2))
        pixels[y : y + 20, x : x + 30] //= 4
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / f"{number}.png_mask.png")
        part = label(str(tmp_path / f"{number}.png"), boxes=[(x, y, x + 30, y + 20)])
        given = GivenBoxes([GivenBox(part.defects[0].box_xyxy, None)]).localize(pixels)
        config = PromptConfig(input_px=256, least_input_px=256, least_view_px=64)
        views = plan_views(given.regions, (120, 160), config)
        question = Question.of(tmp_path / f"{number}.png", pixels, given, views, encoder)
        probes.append(Probe(part, question, question, detected=True))
    return Tuner(sam, probes, ViewMaker(encoder, SIZES), [], ChooseConfig(), QUICK, tmp_path / "fits")


def test_a_tuned_decoder_is_validated_on_parts_that_it_did_not_see(
    tuner: Tuner, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    whole = tuner.fit
    monkeypatch.setattr(tuner, "fit", lambda train, *rest: (seen.append(len(train)), whole(train, *rest))[1])
    tuned = tuner.tune((0, 1, 2, 3), "all", silent)
    assert seen[:4] == [3, 3, 3, 3]
    assert tuned.points[0].share == 0
    assert {point.share for point in tuned.points[1:]} == {0.3, 0.5, 0.7, 1.0}
    assert tuned.chosen is not None
    assert tuned.chosen.iou >= tuned.points[0].iou
    assert tuned.choose.mirrored == bool(tuned.decoder)


def test_what_is_validated_is_better_than_what_would_stay(tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The untuned network as the recipe asks it, and not in mirror images."""
    asked: list[bool] = []
    own = tuner.ious
    monkeypatch.setattr(
        tuner,
        "ious",
        lambda index, sam, choose=None: (asked.append((choose or tuner.choose).mirrored), own(index, sam, choose))[1],
    )
    points, _ = tuner._validated((0, 1), "all", QUICK, silent)
    assert asked[:2] == [False, False]
    assert all(asked[2:])
    untuned = np.mean([own(index, tuner.sam, tuner.untuned_choose) for index in (0, 1)], axis=0)
    assert (points[0].boxes, points[0].found) == pytest.approx(tuple(untuned))


def test_other_good_parts_make_another_fit(tuner: Tuner) -> None:
    keys = set()
    for value in (0, 1):
        tuner.good = [("good.png", np.full((9, 9, 3), value, np.uint8))]
        keys.add(tuner._key((0, 1), QUICK, None))
    assert len(keys) == 2


def test_a_fit_that_broke_down_on_the_way_says_so(tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    some = {name: value.clone() for name, value in tuner.sam.network.mask_decoder.state_dict().items()}
    monkeypatch.setattr("sam_inspect.finetune.tuner.fit_decoder", lambda *_, **__: Trained({2: some}, [1.0], stopped=3))
    tuner.settings = QUICK.model_copy(update={"guard": False})
    assert tuner.tune((0, 1), "all", silent).word.endswith(
        "stopped at step 3: the loss was no number); this is the decoder of step 2"
    )


def test_where_nothing_is_held_out_every_preset_is_validated(caplog: pytest.LogCaptureFixture) -> None:
    study = PRESETS["study"]
    assert not study.guard
    assert _guarded(study, [Fold((0, 1), (2,))]) is study
    assert _guarded(study, [Fold((0, 1), ())]).guard
    assert "nothing is held out" in caplog.text


def test_what_is_finished_is_not_done_again(tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam_inspect.finetune.tuner.SHARES", (1.0,))
    first = tuner.tune((0, 1), "first", silent)
    monkeypatch.setattr("sam_inspect.finetune.tuner.fit_decoder", None)
    again = tuner.tune((0, 1), "again", silent)
    assert again.points == first.points
    assert all(torch.equal(value, again.decoder[name]) for name, value in first.decoder.items())


def test_where_tuning_spoils_the_masks_the_untuned_decoder_stays(tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(network: Any, *_: Any, **__: Any) -> Trained:
        base = network.mask_decoder.state_dict()
        nothing = ({name: torch.zeros_like(value) for name, value in base.items()} for _ in marks_of(QUICK))
        return Trained(dict(zip(marks_of(QUICK), nothing, strict=True)), [1.0])

    monkeypatch.setattr("sam_inspect.finetune.tuner.fit_decoder", spoilt)
    monkeypatch.setattr("sam_inspect.finetune.tuner.SHARES", (1.0,))
    tuned = tuner.tune((0, 1, 2, 3), "all", silent)
    assert not tuned.decoder
    assert "the untuned decoder stays" in tuned.word
    assert tuned.choose == ChooseConfig()


def test_a_tuned_network_is_asked_about_mirror_images_where_its_preset_says_so(tuner: Tuner, tmp_path: Path) -> None:
    assert [name for name, settings in PRESETS.items() if settings.mirrored] == ["default"]
    assert (tuner.choose.mirrored, tuner.untuned_choose.mirrored) == (True, False)
    alone = QUICK.model_copy(update={"mirrored": False})
    study = Tuner(tuner.sam, tuner.probes, tuner.maker, [], ChooseConfig(), alone, tmp_path / "study")
    assert study.choose == study.untuned_choose == ChooseConfig()


def test_a_fit_that_broke_down_at_once_ships_nothing(tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam_inspect.finetune.tuner.fit_decoder", lambda *_, **__: Trained({}, [], stopped=3))
    for train in [(0, 1, 2, 3), (0,)]:
        tuned = tuner.tune(train, "all", silent)
        assert not tuned.decoder
    assert "step 3" in tuned.word


def test_a_label_is_encoded_once_in_each_mirror_image_that_is_asked_for(tuner: Tuner) -> None:
    question, encoder = tuner.probes[0].found, tuner.probes[0].found.encoder
    question.candidates(tuner.sam, ChooseConfig())
    assert list(question.kept) == [AS_IT_IS]
    for _ in range(2):
        question.candidates(tuner.sam, ChooseConfig(mirrored=True))
        assert tuple(question.kept) == MIRRORS
        assert encoder.encoded == len(tuner.probes) + 3 * len(question.views)


def test_the_localizers_errors_are_shares_of_the_true_box(tuner: Tuner) -> None:
    (x0, y0, x1, y1) = tuner.labels[0].defects[0].box_xyxy
    off = GivenBoxes([GivenBox((x0 - 3, y0, x1 + 6, y1 - 2), None), GivenBox((x0, y0, x0 + 2, y0 + 2), None)])
    found = replace(tuner.probes[0].found, localization=off.localize(np.zeros((120, 160, 3), np.uint8)))
    errors = box_errors([replace(tuner.probes[0], found=found)])
    np.testing.assert_allclose(errors, [[-0.1, 0, 0.2, -0.1]], atol=1e-6)


def test_a_type_that_came_out_worse_keeps_the_untuned_decoder(tuner: Tuner) -> None:
    box = filled_box((30, 40, 60, 60))
    good, bad = [box], [filled_box((100, 40, 130, 60))]
    masks = dict.fromkeys(COLUMNS, good)
    tuned = Tuned({"weight": torch.ones(1)}, None, (), [], "all steps", ChooseConfig(least_share=0.4))

    def shipped(*kinds_and_masks: tuple[str, Any]) -> Tuned:
        scored = [scored_masks(label("x", kind), 0, masks | {"gt_boxes_tuned": m}) for kind, m in kinds_and_masks]
        return _unless_worse(tuned, scored, ChooseConfig())

    assert shipped(("hole", good), ("crack", good)) is tuned
    spoilt = shipped(("hole", good), ("crack", bad))
    assert not spoilt.decoder
    assert spoilt.choose == ChooseConfig()
    assert spoilt.word.startswith("worse on held-out crack")


def test_weights_that_are_no_numbers_are_never_kept(sam: MobileSam, views: list[TrainingView]) -> None:
    settings = QUICK.model_copy(update={"optimizer": "adam", "lr": 1.0, "schedule": "constant", "steps": 30})
    trained = fit_decoder(sam.network, views, [], NO_ERRORS, settings, progress=silent)
    assert trained.snapshots or trained.stopped
    for state in trained.snapshots.values():
        assert all(torch.isfinite(value).all() for value in state.values())


def test_two_recipes_are_called_by_their_names() -> None:
    assert named("gt_boxes_untuned", ("tuned v1", "untuned")) == "gt_boxes tuned v1"
    assert named("refined_tuned", ("tuned v1", "untuned")) == "refined untuned"
    assert named("gt_boxes_otsu", ("a", "b")) == "gt_boxes_otsu"
    assert names_of(Path("a/tuned"), Path("a/untuned")) == ("tuned", "untuned")
    assert names_of(Path("line 1/recipe"), Path("line 2/recipe")) == ("line 1/recipe", "line 2/recipe")
    assert names_of(Path(), Path("recipe"))[0] == Path.cwd().name


def test_the_page_shows_what_was_scored_and_escapes_names(tuner: Tuner, tmp_path: Path) -> None:
    part = replace(tuner.labels[0], name="test/hole/<b>&.png")
    masks = dict.fromkeys(COLUMNS, part.defects) | {"gt_boxes_untuned": []}
    scored = [scored_masks(part, 0, masks)]
    lines = {"boxes": [(0.0, 0.5), (8.0, 0.75)]}
    page = write_compare(tmp_path / "out", scored, figures_of(scored), [("IoU over steps", lines)], None)
    text = page.read_text()
    assert "<b>&.png" not in text
    assert "tuned: IoU 1.000" in text
    assert "untuned: IoU 0.000" in text
    assert 'points="0.0,150.0 320.0,0.0"' in text
    assert len(list((tmp_path / "out" / "pictures").rglob("*.jpg"))) == 1


def test_the_curve_of_fits_that_are_scored_at_different_steps_is_their_mean_everywhere() -> None:
    def fit(level: float, *steps: int) -> Tuned:
        points = [Point(0, 0.0, level, level, 0.0)]
        points += [Point(at, share, level + 0.001 * at * share, level, 0.0) for at in steps for share in (0.5, 1.0)]
        return Tuned({}, None, tuple(points), [], "", ChooseConfig())

    plots = dict(curve_data([fit(0.2, 40, 80), fit(0.8, 50, 100)]))
    steps = plots["Held-out IoU over steps"]["boxes"]
    assert [x for x, _ in steps] == [0, 40, 50, 80]
    np.testing.assert_allclose([y for _, y in steps], [0.5, 0.54, 0.55, 0.58])
    np.testing.assert_allclose([y for _, y in plots["Held-out IoU over the tuned share"]["boxes"]], [0.5, 0.545, 0.59])
