"""A recipe folder on its way to another machine: whole, or one clear line about what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from sam_inspect import recipe as recipe_module
from sam_inspect.config import SCHEMA_VERSION, PromptConfig, RecipeConfig, StageConfig
from sam_inspect.errors import ConfigError, OutputError, RecipeError
from sam_inspect.recipe import (
    CALIBRATION,
    LOCALIZER,
    METRICS,
    PROVENANCE,
    RECIPE,
    Recipe,
    load_recipe,
    save_decoder,
    save_recipe,
)

FILES = (CALIBRATION, LOCALIZER, METRICS, PROVENANCE)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A small recipe, saved."""
    config = RecipeConfig(
        localizer=StageConfig(name="memory_bank", args={"bank_patches": 100}), prompt=PromptConfig(context=3)
    )
    saved = Recipe(
        folder=tmp_path / "recipe",
        config=config,
        tensors={"0.1.rows": torch.rand(3, 4).half(), "0.1.turned": torch.rand(5, 4).T},
        facts={"banks": [{"scale": 0.5, "offsets_yx": [[1.0, -2.5]]}]},
        calibration_scores=np.array([0.5, 1.5, 1.25], np.float32),
        calibration_pixels=np.linspace(0, 1, 1001, dtype=np.float32),
        metrics={"threshold": 1.75, "good_images": 3},
        provenance={"data": "/plant/Gehäuse/gut", "packages": {"numpy": "2"}},
    )
    save_recipe(saved)
    return saved


def test_what_was_tuned_goes_with_the_recipe_it_was_tuned_for(recipe: Recipe, caplog: pytest.LogCaptureFixture) -> None:
    (recipe.folder / "finetune").mkdir()
    (recipe.folder / "finetune" / "compare.html").write_text("of a decoder that is gone")
    save_recipe(recipe)
    assert not (recipe.folder / "finetune").exists()
    assert "was tuned for the recipe that stood there" in caplog.text


def test_a_recipe_comes_back_as_it_was(recipe: Recipe) -> None:
    back = load_recipe(recipe.folder)
    assert back.config == recipe.config
    assert back.facts == recipe.facts
    assert back.metrics == recipe.metrics
    assert back.provenance == recipe.provenance
    assert back.tensors.keys() == recipe.tensors.keys()
    assert all(torch.equal(back.tensors[name], tensor) for name, tensor in recipe.tensors.items())
    assert all(back.tensors[name].dtype == tensor.dtype for name, tensor in recipe.tensors.items())
    np.testing.assert_array_equal(back.calibration_scores, recipe.calibration_scores)
    np.testing.assert_array_equal(back.calibration_pixels, recipe.calibration_pixels)


def test_it_is_the_same_recipe_in_another_folder(recipe: Recipe, tmp_path: Path) -> None:
    moved = recipe.folder.rename(tmp_path / "station 7")
    assert load_recipe(moved).facts == recipe.facts


def test_the_yaml_can_be_read_by_a_person_and_says_every_choice(recipe: Recipe) -> None:
    document = yaml.safe_load((recipe.folder / RECIPE).read_text())
    assert document["schema_version"] == SCHEMA_VERSION
    assert document["config"]["prompt"]["context"] == 3
    assert document["config"]["judge"].keys() == RecipeConfig().judge.model_dump().keys()
    assert sorted(document["files"]) == sorted(FILES)
    assert json.loads((recipe.folder / PROVENANCE).read_text(encoding="utf-8"))["data"] == "/plant/Gehäuse/gut"


def test_a_choice_may_be_changed_by_hand(recipe: Recipe) -> None:
    text = (recipe.folder / RECIPE).read_text()
    (recipe.folder / RECIPE).write_text(text.replace("context: 3", "context: 4"))
    assert load_recipe(recipe.folder).config.prompt.context == 4


def test_a_choice_that_cannot_be_is_named(recipe: Recipe) -> None:
    text = (recipe.folder / RECIPE).read_text()
    (recipe.folder / RECIPE).write_text(text.replace("context:", "contxt:"))
    with pytest.raises(ConfigError, match=r"recipe.yaml: unknown key 'prompt.contxt'; did you mean 'context'\?"):
        load_recipe(recipe.folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is cut or was changed"),
        (lambda path: path.write_bytes(b""), "is cut or was changed"),
        (
            lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
            "is cut or was changed",
        ),
        (lambda path: path.unlink(), "cannot be read (No such file or directory)"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read (Is a directory)"),
    ],
    ids=["cut", "empty", "changed", "missing", "a folder"],
)
def test_a_damaged_file_is_named(recipe: Recipe, name: str, damage: Callable[[Path], object], says: str) -> None:
    damage(recipe.folder / name)
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe.folder)
    assert str(caught.value).startswith(f"{recipe.folder / name}: {says}")
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no schema_version"),
        ("[1, 2]", "has no schema_version"),
        ("schema_version: one", "has no schema_version"),
        ("a: [1", "cannot be read"),
        (f"schema_version: {SCHEMA_VERSION}\n", "lacks 'config'"),
        (f"schema_version: {SCHEMA_VERSION}\nconfig: {{}}\nlocalizer_facts: {{}}\nfiles: [a]\n", "lacks 'files'"),
        (
            f"schema_version: {SCHEMA_VERSION}\nconfig: {{}}\nlocalizer_facts: {{}}\nfiles: {{}}\nwhole: true\n",
            "is cut or was changed",
        ),
        (f"schema_version: {SCHEMA_VERSION + 1}\n", f"its schema is {SCHEMA_VERSION + 1}, this program's is"),
        ("schema_version: 1\n", "train it again"),
    ],
)
def test_a_damaged_yaml_is_one_line(recipe: Recipe, text: str, says: str) -> None:
    (recipe.folder / RECIPE).write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe.folder)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_yaml_that_is_cut_anywhere_never_loads_as_less(recipe: Recipe) -> None:
    save_decoder(recipe.folder, {"weight": torch.ones(2)}, {"base_sha256": "ab"}, recipe.config)
    whole = (recipe.folder / RECIPE).read_bytes()
    lines = [place for place, byte in enumerate(whole[:-1], start=1) if byte == ord("\n")]
    for length in [*range(0, len(whole) - 2, 7), *lines]:
        (recipe.folder / RECIPE).write_bytes(whole[:length])
        with pytest.raises((RecipeError, ConfigError)):
            load_recipe(recipe.folder)


def test_bytes_that_are_no_text_are_refused(recipe: Recipe) -> None:
    (recipe.folder / RECIPE).write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(recipe.folder)


def test_nothing_in_the_yaml_is_run(recipe: Recipe, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (recipe.folder / RECIPE).write_text(f"schema_version: !!python/object/apply:pathlib.Path.touch [{mark}]\n")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(recipe.folder)
    assert not mark.exists()


def test_a_folder_without_a_recipe_and_no_folder_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"holds no recipe.yaml; train a recipe: sam-inspect train DATA --recipe "):
        load_recipe(tmp_path)
    with pytest.raises(RecipeError, match="does not exist"):
        load_recipe(tmp_path / "nowhere")


def test_training_again_into_the_same_folder_replaces_it(recipe: Recipe) -> None:
    save_recipe(replace(recipe, metrics={"threshold": 2.0}))
    assert load_recipe(recipe.folder).metrics == {"threshold": 2.0}


def test_names_that_are_no_unicode_are_kept(recipe: Recipe) -> None:
    save_recipe(replace(recipe, provenance={"data": "/plant/Geh\udce4use"}))
    assert load_recipe(recipe.folder).provenance == {"data": "/plant/Geh\udce4use"}


def test_a_full_disk_in_training_leaves_the_recipe_that_was_there(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = recipe_module.write_bytes

    def full_disk(path: Path, content: bytes) -> None:
        if path.name == METRICS:
            raise OutputError(f"{path}: cannot be written (No space left on device)", "free space")
        written(path, content)

    monkeypatch.setattr(recipe_module, "write_bytes", full_disk)
    with pytest.raises(OutputError):
        save_recipe(replace(recipe, metrics={"threshold": 2.0}))
    assert load_recipe(recipe.folder).metrics == recipe.metrics
    assert not list(recipe.folder.glob(".part-*"))


def test_a_tuned_decoder_goes_in_and_out_of_a_recipe(recipe: Recipe) -> None:
    whole = recipe.folder
    before = load_recipe(whole)
    tensors = {"weight": torch.arange(6.0).reshape(2, 3)}
    changed = before.config.model_copy(update={"choose": before.config.choose.model_copy(update={"least_share": 0.4})})
    facts = {"base_sha256": "ab" * 32, "untuned_choose": before.config.choose.model_dump()}
    save_decoder(whole, tensors, facts, changed)
    tuned = load_recipe(whole)
    assert torch.equal(tuned.decoder["weight"], tensors["weight"])
    assert tuned.config.choose.least_share == 0.4
    assert tuned.decoder_facts == facts
    assert tuned.untuned().config == before.config
    assert not tuned.untuned().decoder
    np.testing.assert_array_equal(tuned.calibration_scores, before.calibration_scores)
    save_decoder(whole, {"weight": tensors["weight"] + 1}, facts, changed)
    assert len(list(whole.glob("decoder-*"))) == 1
    save_decoder(whole, {}, facts, before.config)
    assert not list(whole.glob("decoder-*"))
    assert not load_recipe(whole).decoder


def test_a_full_disk_leaves_the_recipe_as_it_was(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = recipe.folder

    def full(path: Path, text: str) -> None:
        raise OutputError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr("sam_inspect.recipe.write_text", full)
    before = load_recipe(whole)
    with pytest.raises(OutputError):
        save_decoder(whole, {"weight": torch.ones(2)}, {"base_sha256": "ab"}, before.config)
    assert not load_recipe(whole).decoder


def test_a_recipe_of_the_schema_before_tuned_decoders_is_read(recipe: Recipe) -> None:
    document = yaml.safe_load((recipe.folder / RECIPE).read_text())
    (recipe.folder / RECIPE).write_text(yaml.safe_dump(document | {"schema_version": 2}))
    assert load_recipe(recipe.folder).config == recipe.config
