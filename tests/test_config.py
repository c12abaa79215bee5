"""What a recipe can say: ready configs by name, a user's own YAML, and a clear line for each slip of the pen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sam_inspect.config import PromptConfig, RecipeConfig, find_config, ready_configs, validated
from sam_inspect.errors import ConfigError
from sam_inspect.localize.memory_bank import MemoryBankArgs
from sam_inspect.plugins import load_plugin
from sam_inspect.segment.sam import SamArgs


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """Writes a config file and gives its path."""

    def write(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize("name", ready_configs())
def test_every_ready_config_is_valid_down_to_its_plugins_arguments(name: str) -> None:
    config = find_config(name)
    assert load_plugin("localizers", config.localizer.name)
    assert load_plugin("segmenters", config.segmenter.name)
    validated(SamArgs, config.segmenter.args, name)
    if config.localizer.name == "memory_bank":
        validated(MemoryBankArgs, config.localizer.args, name)


def test_the_default_config_says_what_the_schema_defaults_to() -> None:
    assert find_config("default") == RecipeConfig()


def test_a_users_own_file_changes_what_it_names_and_nothing_else(written: Any) -> None:
    config = find_config(written("prompt: {context: 3}\njudge: {pixel_size_mm: 0.05}\n"))
    assert config.prompt == PromptConfig(context=3)
    assert config.judge.pixel_size_mm == 0.05
    assert config.choose == RecipeConfig().choose


def test_an_empty_file_is_all_defaults(written: Any) -> None:
    assert find_config(written("")) == RecipeConfig()


def test_a_misspelt_ready_config_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"defualt: no ready config and no file; did you mean default\?"):
        find_config("defualt")


def test_a_name_like_no_other_is_answered_with_all_there_are() -> None:
    with pytest.raises(ConfigError, match=r"ready are .*default"):
        find_config("xyz")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prompt: {contxt: 3}", r"unknown key 'prompt.contxt'; did you mean 'context'\?"),
        ("judge: {false_reject: 0.1}", r"did you mean 'false_reject_rate'\?"),
        ("segmentr: {name: mobile_sam}", r"unknown key 'segmentr'; did you mean 'segmenter'\?"),
        ("localizer: {name: memory_bank, nmae: 1}", r"did you mean 'name'\?"),
        ("choose: {zzz: 1}", r"valid keys are .*duplicate_iou"),
        ("prompt: {context: 0.5}", r"prompt.context: .*; got 0.5"),
        ("prompt: {input_px: 500}", r"prompt.input_px: .*multiple of 64"),
        ("prompt: {view: far}", r"prompt.view: .*'zoom' or 'image'"),
        ("judge: {false_reject_rate: 1}", r"less than 1"),
        ("judge: {min_area_px: many}", r"judge.min_area_px: .*got 'many'"),
        ("localizer: {args: {}}", r"localizer.name: Field required"),
        ("- a list", r"holds list where keys are expected"),
        ("a: [1", r"is not YAML"),
        ("0", r"holds int where keys are expected"),
        ("prompt: null", r"prompt: "),
    ],
)
def test_each_slip_is_one_line_that_names_the_file_the_key_and_what_to_do(written: Any, text: str, says: str) -> None:
    path = written(text)
    with pytest.raises(ConfigError, match=says) as caught:
        find_config(path)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


def test_a_binary_file_is_no_yaml(tmp_path: Path) -> None:
    path = tmp_path / "image.yaml"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    with pytest.raises(ConfigError, match="is not YAML"):
        find_config(str(path))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"bank_patchs": 500}, r"did you mean 'bank_patches'\?"),
        ({"backbones": [{"nam": "mobile_sam"}]}, r"unknown key 'backbones.0.nam'; did you mean 'name'\?"),
        ({"backbones": []}, r"backbones: .*at least 1"),
        ({"backbones": [{"draws": False}]}, r"backbones: .*none of them draws the map"),
        ({"backbones": [{"layers": []}]}, r"backbones.0.layers: .*at least 1"),
    ],
)
def test_a_plugins_arguments_are_checked_by_its_own_schema(args: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        validated(MemoryBankArgs, args, "localizer.args")
    assert str(caught.value).startswith("localizer.args")


def test_a_config_cannot_be_changed_by_accident() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RecipeConfig().prompt.context = 3  # type: ignore[misc]
