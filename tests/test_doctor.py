"""What doctor says about a whole machine, an empty one, and broken ones."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints, version
from pathlib import Path

import pytest
import torch

from sam_inspect import doctor, plugins
from sam_inspect.doctor import Diagnosis, diagnose, weights_table
from sam_inspect.weights.store import store_weights

PLUGIN = EntryPoint("boxes_of_mine", "json:JSONDecoder", "sam_inspect.localizers")
BROKEN = EntryPoint("broken_one", "no_such_module:Thing", "sam_inspect.localizers")


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache and one plugin that loads: no test depends on what this machine has."""
    monkeypatch.setenv("SAM_INSPECT_CACHE", str(tmp_path / "cache"))
    offer(monkeypatch, PLUGIN)


def offer(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    monkeypatch.setattr(plugins, "entry_points", lambda group: EntryPoints(points).select(group=group))


def keep(name: str, terms: str = "Apache-2.0") -> Path:
    return store_weights(name, {"a": torch.zeros(3)}, sha256="0" * 64, source="mine.pt", terms=terms).path


def rows(diagnosis: Diagnosis, title: str) -> dict[str, list[str]]:
    return {row[0]: row[1:] for shown, _, found in diagnosis.tables if shown == title for row in found}


def test_a_new_machine_lacks_the_default_weights_and_hears_the_one_command() -> None:
    diagnosis = diagnose()
    assert not diagnosis.healthy
    needed, remedy = rows(diagnosis, "Missing or broken")["weights mobile_sam"]
    assert (needed, remedy) == ("yes", "run: sam-inspect weights fetch mobile_sam")
    assert rows(diagnosis, "Weights")["mobile_sam"][-1] == "run: sam-inspect weights fetch mobile_sam"


def test_with_the_default_weights_it_is_healthy_and_the_rest_is_an_offer() -> None:
    keep("mobile_sam")
    diagnosis = diagnose("cpu")
    assert diagnosis.healthy
    assert rows(diagnosis, "Weights")["mobile_sam"][-1] == "yes"
    assert rows(diagnosis, "Missing or broken")["weights sam_vit_b"][0] == "if you use it"
    assert {needed for needed, _ in rows(diagnosis, "Missing or broken").values()} == {"if you use it"}


def test_versions_are_the_installed_ones() -> None:
    found = rows(diagnose(), "Versions")
    assert found["torch"] == [version("torch")]
    assert found["opencv-python-headless"] == [version("opencv-python-headless")]
    assert found["python"] == [sys.version.split()[0]]
    assert {"sam-inspect", "torchvision", "timm", "scikit-learn", "anomalib"} <= found.keys()


def test_the_machine_is_described(tmp_path: Path) -> None:
    found = rows(diagnose("cpu"), "Machine")
    assert found["networks run on"] == ["the CPU"]
    assert found["cache"] == [str(tmp_path / "cache")]
    assert found["CPU threads"][0].startswith(f"{torch.get_num_threads()} of ")
    assert found["memory"][0].endswith("GB free")


def test_damaged_weights_are_broken_even_if_they_are_not_the_default() -> None:
    keep("mobile_sam")
    keep("mobilenet_v2").write_bytes(b"cut")
    diagnosis = diagnose()
    assert not diagnosis.healthy
    problem, (needed, remedy) = next(iter(rows(diagnosis, "Missing or broken").items()))
    assert "mobilenet_v2.safetensors: is 3 bytes instead of" in problem
    assert (needed, remedy) == ("yes", "run: sam-inspect weights fetch mobilenet_v2")


def test_a_users_own_weights_are_shown_with_where_they_came_from() -> None:
    keep("resnet18", terms="")
    keep("mobile_sam", terms="")
    shown = {row[0]: row[1:] for row in weights_table()[2]}
    assert shown["resnet18"][:2] == ["your own, from mine.pt", "not said"]
    assert shown["mobile_sam"][0] == "your own, from mine.pt"


def test_a_broken_plugin_is_a_row_and_makes_it_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    keep("mobile_sam")
    offer(monkeypatch, PLUGIN, BROKEN)
    diagnosis = diagnose()
    assert not diagnosis.healthy
    assert rows(diagnosis, "Plugins")["boxes_of_mine"][-1] == "loads"
    assert rows(diagnosis, "Plugins")["broken_one"][-1] == "broken"
    assert any("no_such_module" in problem for problem in rows(diagnosis, "Missing or broken"))


def test_a_library_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep("mobile_sam")
    (tmp_path / "mismatched.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(doctor.EXTRAS, "torchvision", "mismatched")
    diagnosis = diagnose()
    assert not diagnosis.healthy
    assert rows(diagnosis, "Versions")["torchvision"] == ["does not load"]
    (problem,) = [what for what in rows(diagnosis, "Missing or broken") if what.startswith("torchvision")]
    assert "RuntimeError: operator torchvision::nms does not exist" in problem


def test_an_extra_that_is_absent_is_an_offer(monkeypatch: pytest.MonkeyPatch) -> None:
    keep("mobile_sam")
    monkeypatch.setitem(doctor.EXTRAS, "not-a-package", "not_a_package")
    monkeypatch.setitem(doctor.EXTRA_OF, "not_a_package", "serve")
    diagnosis = diagnose("cpu")
    assert diagnosis.healthy
    found = rows(diagnosis, "Missing or broken")["not-a-package (an extra)"]
    assert found == ["if you use it", "pip install 'sam-inspect[serve]'"]


def test_two_opencvs_in_one_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "opencv_python-5.0.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: opencv-python\nVersion: 5.0.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    keep("mobile_sam")
    diagnosis = diagnose()
    assert not diagnosis.healthy
    assert any("opencv-python beside opencv-python-headless" in what for what in rows(diagnosis, "Missing or broken"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_asked_for_and_is_not_there() -> None:
    keep("mobile_sam")
    diagnosis = diagnose("cuda")
    assert not diagnosis.healthy
    assert rows(diagnosis, "Missing or broken")["a GPU that torch can use"][0] == "yes"
