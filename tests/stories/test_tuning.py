"""A plant has a few labelled defects: the decoder is tuned on some, scored on others, and used by every command."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

QUICK = ("--shots", "2", "--epochs", "5", "--lr", "0.000003")


def test_tuned_scored_used_and_compared(
    plant: Any, labelled: Path, tmp_path: Path, sam_inspect: Callable[..., Any], results: Callable[[Path], Any]
) -> None:
    recipe = tmp_path / "recipe"
    answer = sam_inspect("finetune", labelled, "--recipe", recipe, "--preset", "study", *QUICK)
    assert answer.status == 0, answer.err
    assert "refined tuned" in answer.out
    page = recipe / "finetune" / "compare.html"
    assert answer.out.splitlines()[-1] == str(page)
    assert page.read_text().count("<article>") == len(held_out(recipe)) > 0
    figures = json.loads((recipe / "finetune" / "figures.json").read_text())
    assert set(figures["masks"]) >= {"gt_boxes_untuned", "gt_boxes_tuned", "refined_tuned", "gt_boxes_grabcut"}
    assert figures["count"]["images"] == len(held_out(recipe))
    (decoder,) = recipe.glob("decoder-*.safetensors")

    images = sorted((labelled / "test").glob("*/*"))[:2]
    for name, used in (("tuned", recipe), ("untuned", plant.recipe)):
        assert sam_inspect("inspect", *images, "--recipe", used, "--out", tmp_path / name).status == 0
    one, other = results(tmp_path / "tuned"), results(tmp_path / "untuned")
    assert [row["score"] for row in one.values()] == [row["score"] for row in other.values()]
    assert [row["defects"] for row in one.values()] != [row["defects"] for row in other.values()]

    out = tmp_path / "side by side"
    answer = sam_inspect("compare", plant.recipe, recipe, labelled, "--out", out)
    assert answer.status == 0, answer.err
    assert len(list((out / "pictures").rglob("*.jpg"))) == len(list((labelled / "ground_truth").glob("*/*"))) + 1

    document = yaml.safe_load((recipe / "recipe.yaml").read_text())
    document["decoder_facts"]["base_sha256"] = "0" * 64
    (recipe / "recipe.yaml").write_text(yaml.safe_dump(document))
    assert (
        "belongs to weights 000000000000" in sam_inspect("inspect", *images, "--recipe", recipe, "--out", out).error()
    )
    decoder.write_bytes(decoder.read_bytes()[:1000])
    assert f"{decoder.name}: is cut or was changed" in sam_inspect("evaluate", labelled, "--recipe", recipe).error()


def held_out(recipe: Path) -> list[str]:
    with (recipe / "finetune" / "split.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert len({row["image"] for row in rows}) == len(rows)
    assert [row["part"] for row in rows].count("train") == 2
    return [row["image"] for row in rows if row["part"] == "test"]


def test_nothing_to_learn_is_said_in_one_line(labelled: Path, tmp_path: Path, sam_inspect: Callable[..., Any]) -> None:
    recipe = tmp_path / "recipe"
    before = (recipe / "recipe.yaml").read_bytes()

    def refused(*more: Any) -> str:
        """Before any network is loaded: none is here."""
        line = ["finetune", labelled, "--recipe", recipe, *QUICK, *more]
        answer = sam_inspect(*line, env={"SAM_INSPECT_CACHE": str(tmp_path / "empty")})
        assert answer.status == 2, answer.err
        assert (recipe / "recipe.yaml").read_bytes() == before
        return str(answer.error())

    assert "no such" in refused("--split", tmp_path / "none.csv").lower()
    assert "'a' is not a number of labelled images" in refused("--curve", "a")
    assert "lr" in refused("--lr", "7")
    assert "--epochs and --minutes" in refused("--minutes", "1")
    assert "--split and --folds" in refused("--split", labelled / "groups.csv", "--folds", "2")
    for too_much in (("--seed", str(2**32)), ("--minutes", "inf")):
        answer = sam_inspect("finetune", labelled, "--recipe", recipe, *too_much)
        assert answer.status == 2
        assert "less than or equal to" in answer.err
    masks = sorted((labelled / "ground_truth").glob("*/*"))
    small = cv2.imread(str(masks[0]), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(masks[0]), small[:-1])
    assert f"{masks[0].name}: is" in refused()
    for mask in masks:
        cv2.imwrite(str(mask), np.zeros_like(small))
    assert "labelled images can be used" in refused()
    shutil.rmtree(labelled / "ground_truth")
    assert "ground_truth: is not there" in refused()


def test_one_labelled_image_is_learned_from_and_nothing_is_claimed(
    labelled: Path, tmp_path: Path, sam_inspect: Callable[..., Any]
) -> None:
    for image in sorted((labelled / "test").glob("*/*"))[1:]:
        image.unlink()
    for folder in (labelled / "test").iterdir():
        if not any(folder.iterdir()):
            folder.rmdir()
    answer = sam_inspect("finetune", labelled, "--recipe", tmp_path / "recipe", "--epochs", "0.2")
    assert answer.status == 0, answer.err
    assert "one part alone cannot be validated" in answer.err
    assert "Masks of" not in answer.out
