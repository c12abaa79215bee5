"""Plugins as an installed package offers them: a folder with a module and its dist-info on the path."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sam_inspect.errors import PluginError
from sam_inspect.plugins import list_plugins, load_plugin

Install = Callable[[str, str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package of one module: its name, its code, the lines of its entry_points.txt."""
    monkeypatch.syspath_prepend(str(tmp_path))
    installed = []

    def put(name: str, code: str, points: str) -> None:
        (tmp_path / f"{name}.py").write_text(code)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(points)
        installed.append(name)

    yield put
    for name in installed:
        sys.modules.pop(name, None)


def test_our_own_localizers_and_segmenters_come_through_the_same_door() -> None:
    assert load_plugin("localizers", "memory_bank").__name__ == "MemoryBank"
    assert load_plugin("segmenters", "mobile_sam").__module__ == "sam_inspect.segment.sam"


def test_a_package_that_is_installed_is_found_by_the_name_in_its_entry_point(install: Install) -> None:
    install("plant_a", "class Edge: pass", "[sam_inspect.localizers]\nedge = plant_a:Edge\n")
    assert load_plugin("localizers", "edge").__name__ == "Edge"


def test_only_the_plugin_that_is_named_is_imported(install: Install) -> None:
    points = "[sam_inspect.localizers]\nnamed = plant_b:Named\n"
    install("plant_b", "class Named: pass", points)
    install("plant_c", "raise RuntimeError('never imported')", "[sam_inspect.localizers]\nother = plant_c:Other\n")
    load_plugin("localizers", "named")
    assert "plant_b" in sys.modules
    assert "plant_c" not in sys.modules


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("def Broken(:", "SyntaxError"),
        ("raise OSError('no camera driver')", "OSError: no camera driver"),
        ("Other = 1", "AttributeError"),
        ("Broken = 1", "is not a class"),
    ],
)
def test_a_broken_plugin_breaks_only_who_names_it(install: Install, code: str, reason: str) -> None:
    install("plant_d", code, "[sam_inspect.outputs]\nbroken = plant_d:Broken\n")
    assert load_plugin("localizers", "memory_bank")
    with pytest.raises(PluginError, match="broken") as caught:
        load_plugin("outputs", "broken")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    rows = {(row.kind, row.name): row for row in list_plugins()}
    assert reason in (rows["outputs", "broken"].error or "")
    assert rows["outputs", "broken"].package == "plant_d 1.0"
    assert rows["localizers", "memory_bank"].error is None


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(PluginError, match="did you mean memory_bank"):
        load_plugin("localizers", "memory_bnak")


def test_a_name_like_no_other_is_answered_with_all_there_are() -> None:
    with pytest.raises(PluginError, match=r"known are .*mobile_sam, sam_vit_b"):
        load_plugin("segmenters", "xyz")


def test_two_packages_that_offer_one_name_are_both_named(install: Install) -> None:
    install("plant_e", "class E: pass", "[sam_inspect.outputs]\nmqtt = plant_e:E\n")
    install("plant_f", "class F: pass", "[sam_inspect.outputs]\nmqtt = plant_f:F\n")
    with pytest.raises(PluginError, match=r"plant_e 1\.0 and plant_f 1\.0"):
        load_plugin("outputs", "mqtt")
