"""Our SAMs answer what the published implementation answers: MobileSAM with its weights, the larger ones by shape."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import ImageEncoderViT, TwoWayTransformer
from torch import nn

from sam_inspect.errors import WeightsError
from sam_inspect.images import read_image
from sam_inspect.masks import on_crop
from sam_inspect.networks import runtime
from sam_inspect.networks.graphs import Runtime, graph
from sam_inspect.networks.mask_decoder import two_way
from sam_inspect.networks.runtime import exported
from sam_inspect.networks.sam import build_sam
from sam_inspect.networks.vit_encoder import VitEncoder
from sam_inspect.records import Candidates, Prompt, View
from sam_inspect.segment.sam import MobileSam, SamVitB
from sam_inspect.weights import LoadedWeights
from sam_inspect.weights.convert import read_tensors


@pytest.fixture(scope="module")
def sam(weights: Callable[[str], LoadedWeights]) -> MobileSam:
    weights("mobile_sam")
    return MobileSam.from_config({}, device="cpu")


@pytest.mark.parametrize("name", ["bottle", "tile"])
def test_the_whole_image_path_is_the_published_one(sam: MobileSam, shared: Path, name: str) -> None:
    reference = np.load(shared / "reference" / "mobile_sam.npz")
    image = read_image(shared / "data" / str(reference[f"{name}_image"]))
    height, width = (int(side) for side in reference[f"{name}_original_hw"])
    assert image.shape[:2] == (height, width)
    box = Prompt(box_xyxy=tuple(float(value) for value in np.ravel(reference[f"{name}_box_xyxy"])))
    xy = np.reshape(reference[f"{name}_point_xy"], (1, 2)).astype(np.float32)
    point = Prompt(points_xy=xy, point_labels=np.ones(1, np.int64))
    by_box, by_point = sam.segment(image, [View((0, 0, width, height), 1024, (box, point))])
    same(by_box, [0], reference, f"{name}_box", (height, width))
    same(by_point, [1, 2, 3], reference, f"{name}_point", (height, width))


def same(found: Candidates, indices: list[int], reference, key: str, hw: tuple[int, int]) -> None:
    logits = np.reshape(reference[f"{key}_low_res_logits"], (-1, 256, 256)).astype(np.float32)
    mine = found.low_res_logits[indices]
    assert np.abs(mine - logits).mean() / np.abs(logits).mean() < 1e-3
    np.testing.assert_allclose(found.predicted_iou[indices], np.ravel(reference[f"{key}_iou_predictions"]), atol=1e-3)
    count = len(indices) * hw[0] * hw[1]
    masks = np.unpackbits(reference[f"{key}_masks"].ravel())[:count].reshape(-1, *hw).astype(bool)
    for index, mask in zip(indices, masks, strict=True):
        own = on_crop(found.view, found.low_res_logits[index]) > 0
        assert (own & mask).sum() / (own | mask).sum() > 0.995


def test_further_rounds_with_the_last_mask_are_the_official_predictors(sam: MobileSam, shared: Path) -> None:
    image = read_image(shared / "data" / "mvtec_bottle" / "test" / "broken_small" / "000.png")[:600, :800]
    network = copy.deepcopy(sam.network)
    official = sam_model_registry["vit_b"]()
    official.image_encoder = network.image_encoder
    official.image_encoder.img_size = 1024
    official.prompt_encoder.load_state_dict(network.prompt_encoder.state_dict())
    official.mask_decoder.load_state_dict(network.mask_decoder.state_dict())
    predictor = SamPredictor(official.eval())
    predictor.set_image(image)
    view = View((0, 0, 800, 600), 1024, ())
    (encoded,) = sam.encode(image, [view])
    box, xy = (200.0, 100.0, 500.0, 400.0), np.array([[300, 200]], np.float32)
    logits = None
    for labels in (np.ones(1, np.int64), np.zeros(1, np.int64)):
        for multimask_output, indices in ((True, [1, 2, 3]), (False, [0])):
            _, iou, theirs = predictor.predict(xy, labels, np.array(box), logits, multimask_output)
            last = None if logits is None else logits[0]
            (answer,) = sam.decode(encoded, [Prompt(box, xy, labels, mask_logits=last)])
            np.testing.assert_allclose(answer.low_res_logits[indices], theirs, atol=2e-3)
            np.testing.assert_allclose(answer.predicted_iou[indices], iou, atol=1e-4)
        logits = theirs


def test_prompts_together_are_answered_as_one_by_one(sam: MobileSam) -> None:
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    prompts = (Prompt(box_xyxy=(10, 10, 60, 50)), Prompt(box_xyxy=(70, 30, 150, 110)))
    together = sam.segment(image, [View((0, 0, 160, 120), 512, prompts)])
    for prompt, answer in zip(prompts, together, strict=True):
        (alone,) = sam.segment(image, [View((0, 0, 160, 120), 512, (prompt,))])
        np.testing.assert_allclose(answer.low_res_logits, alone.low_res_logits, atol=1e-3)


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_the_larger_sams_take_the_official_keys_and_shapes(name: str) -> None:
    key = "image_encoder.blocks.7.attn.rel_pos_h"
    with torch.device("meta"):
        official = sam_model_registry[name]().state_dict()
        build_sam(f"sam_{name}", official, device="meta")
        del official[key]
        with pytest.raises(WeightsError, match=f"{key} is absent"):
            build_sam(f"sam_{name}", official, device="meta")


@pytest.mark.slow
def test_a_larger_sam_answers_what_the_official_predictor_answers() -> None:
    """With random weights; a view of another size is seen at 1024 pixels all the same."""
    torch.manual_seed(0)
    official = sam_model_registry["vit_b"]().eval()
    own = SamVitB.from_tensors("sam_vit_b", official.state_dict())
    image = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)
    predictor = SamPredictor(official)
    predictor.set_image(image)
    _, iou, logits = predictor.predict(box=np.array([20, 30, 100, 80]), multimask_output=True)
    prompt = Prompt(box_xyxy=(20, 30, 100, 80))
    (answer,) = own.segment(image, [View((0, 0, 160, 90), 512, (prompt,))])
    assert answer.view.input_px == 1024
    np.testing.assert_allclose(answer.low_res_logits[1:], logits, atol=1e-4)
    np.testing.assert_allclose(answer.predicted_iou[1:], iou, atol=1e-4)


TRANSFORMERS_NAMES = {
    "vision_encoder.pos_embed": "image_encoder.pos_embed",
    "vision_encoder.patch_embed.projection.weight": "image_encoder.patch_embed.proj.weight",
    "vision_encoder.layers.11.layer_norm2.bias": "image_encoder.blocks.11.norm2.bias",
    "vision_encoder.layers.0.attn.rel_pos_w": "image_encoder.blocks.0.attn.rel_pos_w",
    "vision_encoder.layers.3.mlp.lin1.weight": "image_encoder.blocks.3.mlp.lin1.weight",
    "vision_encoder.neck.conv2.weight": "image_encoder.neck.2.weight",
    "vision_encoder.neck.layer_norm2.weight": "image_encoder.neck.3.weight",
    "prompt_encoder.shared_embedding.positional_embedding": (
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    ),
    "prompt_encoder.point_embed.3.weight": "prompt_encoder.point_embeddings.3.weight",
    "prompt_encoder.not_a_point_embed.weight": "prompt_encoder.not_a_point_embed.weight",
    "prompt_encoder.mask_embed.conv3.bias": "prompt_encoder.mask_downscaling.6.bias",
    "prompt_encoder.mask_embed.layer_norm2.bias": "prompt_encoder.mask_downscaling.4.bias",
    "mask_decoder.iou_token.weight": "mask_decoder.iou_token.weight",
    "mask_decoder.transformer.layers.1.layer_norm4.weight": "mask_decoder.transformer.layers.1.norm4.weight",
    "mask_decoder.transformer.layers.0.self_attn.q_proj.bias": (
        "mask_decoder.transformer.layers.0.self_attn.q_proj.bias"
    ),
    "mask_decoder.transformer.layer_norm_final_attn.bias": "mask_decoder.transformer.norm_final_attn.bias",
    "mask_decoder.upscale_layer_norm.weight": "mask_decoder.output_upscaling.1.weight",
    "mask_decoder.upscale_conv2.weight": "mask_decoder.output_upscaling.3.weight",
    "mask_decoder.iou_prediction_head.proj_in.weight": "mask_decoder.iou_prediction_head.layers.0.weight",
    "mask_decoder.iou_prediction_head.layers.0.weight": "mask_decoder.iou_prediction_head.layers.1.weight",
    "mask_decoder.output_hypernetworks_mlps.2.layers.0.bias": (
        "mask_decoder.output_hypernetworks_mlps.2.layers.1.bias"
    ),
    "mask_decoder.output_hypernetworks_mlps.2.proj_out.bias": "mask_decoder.output_hypernetworks_mlps.2.layers.2.bias",
}


@pytest.mark.parametrize("table", ["prompt_encoder.shared_embedding", "shared_image_embedding"])
def test_a_sam_saved_by_transformers_is_read_under_the_official_names(table: str, tmp_path: Path) -> None:
    """`save_pretrained` writes one of two names that share a tensor."""
    with torch.device("meta"):
        official = sam_model_registry["vit_b"]().state_dict()
    assert set(TRANSFORMERS_NAMES.values()) <= official.keys()
    theirs = {
        name.replace("prompt_encoder.shared_embedding", table): torch.full((1,), float(place))
        for place, name in enumerate(TRANSFORMERS_NAMES)
    }
    save_file(theirs, tmp_path / "model.safetensors")
    read = read_tensors(tmp_path / "model.safetensors")
    assert {name: value.item() for name, value in read.items()} == {
        ours: float(place) for place, ours in enumerate(TRANSFORMERS_NAMES.values())
    }


def test_views_in_one_batch_have_the_features_that_each_has_alone(
    sam: MobileSam, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (200, 260, 3), np.uint8)
    views = [View((left, 20, left + 120, 140), 128, ()) for left in (0, 40, 90, 130, 140)]
    alone = [embedding.features for embedding in sam.encode(image, views)]
    monkeypatch.setitem(runtime.IMAGES_AT_ONCE, "cpu", 2)
    for view, embedding, features in zip(views, sam.encode(image, views), alone, strict=True):
        assert embedding.view == view
        torch.testing.assert_close(embedding.features, features, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_the_two_way_transformer_answers_and_learns_as_segment_anythings_own(tokens: int) -> None:
    torch.manual_seed(0)
    transformer = TwoWayTransformer(depth=2, embedding_dim=64, mlp_dim=96, num_heads=4)
    embeddings, pe, asked = torch.randn(3, 64, 6, 9), torch.randn(1, 64, 6, 9), torch.randn(3, tokens, 64)
    gradients = []
    for run in (two_way, lambda own, image, pe, asked: own(image, pe.expand(3, -1, -1, -1), asked)):
        transformer.zero_grad()
        answers, cells = run(transformer, embeddings, pe, asked)
        (answers.square().mean() + cells.pow(3).mean()).backward()
        gradients.append((answers, cells, [p.grad for p in transformer.parameters()]))
    (answers, cells, own), (expected_answers, expected_cells, expected) = gradients
    torch.testing.assert_close(answers, expected_answers, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(cells, expected_cells, atol=1e-5, rtol=1e-4)
    for (name, _), found, wanted in zip(transformer.named_parameters(), own, expected, strict=True):
        if name.endswith("token_to_image.k_proj.bias"):
            assert wanted.abs().max() < 1e-6, name  # it moves all scores of a token alike: nothing to learn
        else:
            torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-3)


def test_fused_attention_is_segment_anythings_with_its_positions() -> None:
    """Windows that do not fill the image, global attention, gradients; positions are not the zeros they begin with."""
    sizes: dict[str, Any] = {"img_size": 160, "embed_dim": 32, "depth": 2, "num_heads": 2, "out_chans": 8}
    ways = {"use_rel_pos": True, "window_size": 7, "global_attn_indexes": (1,)}
    torch.manual_seed(0)
    official, own = ImageEncoderViT(**sizes, **ways), VitEncoder(**sizes, **ways)
    for name, parameter in official.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:
            nn.init.normal_(parameter)
    own.load_state_dict(official.state_dict())
    images, direction = torch.randn(2, 3, 160, 160, requires_grad=True), torch.randn(2, 8, 10, 10)
    answers, gradients = [], []
    for encoder in (official, own):
        answers.append(encoder(images))
        (gradient,) = torch.autograd.grad((answers[-1] * direction).sum(), images)
        gradients.append(gradient)
    torch.testing.assert_close(answers[1], answers[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-3)
    for name in ("onnx", "openvino"):
        (found,) = graph(exported(own, [images]), Runtime(name))([images.detach().numpy()])
        np.testing.assert_allclose(found, answers[0].detach().numpy(), atol=1e-4)
