"""The command's surface: help, flags, messages, exit statuses. What it does on images stands in tests/stories."""

from __future__ import annotations

import io
import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from sam_inspect import console, progress
from sam_inspect.errors import ConfigError, ImageError, OutputError, SamInspectError, WeightsMissing

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ["train", "inspect", "evaluate", "demo", "weights list", "weights fetch", "weights add", "weights verify"]
COMMANDS += ["doctor", "bench", "finetune", "compare"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "sam_inspect", *arguments]
    environment = os.environ | {"COLUMNS": "200", "TERMINAL_WIDTH": "200", "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=60)


@pytest.mark.parametrize("command", ["", "inspect", "weights fetch"])
def test_help_answers_in_under_half_a_second(command: str) -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run(*command.split(), "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # The processor's time, and the best of a few: what counts is the work that it does, not what else the machine does.
    assert min(seconds() for _ in range(5)) < 0.5


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, sam_inspect.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"torch", "cv2", "numpy", "timm", "sklearn", "scipy", "anomalib", "faiss", "PIL", "onnx", "jinja2"}
    assert heavy.isdisjoint(loaded)


def test_a_recipe_that_cannot_be_used_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    program = "import sys; from sam_inspect.cli import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    words = ["inspect", tmp_path, "--recipe", tmp_path / "none", "--out", tmp_path / "out"]
    (tmp_path / "part.png").touch()
    done = subprocess.run([sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "False\n"), done.stderr
    assert "none: does not exist" in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_the_same_three_flags(command: str) -> None:
    text = run(*command.split(), "--help").stdout
    assert all(flag in text for flag in ("--quiet", "--json-logs", "--device", "auto|cpu|cuda"))


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("train", ["--recipe", "--config", "--false-reject-rate"]),
        (
            "inspect",
            ["--recipe", "--out", "--boxes", "--threshold", "--false-reject-rate", "--min-area", "--save", "--jobs"],
        ),
        ("inspect", ["--fail-on-defect"]),
        ("evaluate", ["--recipe", "--json", "--out", "--groups"]),
        ("demo", ["--out"]),
        ("weights fetch", ["--source"]),
    ],
)
def test_the_flags_that_others_script_against(command: str, flags: list[str]) -> None:
    text = run(*command.split(), "--help").stdout
    assert [flag for flag in flags if flag not in text] == []


def test_the_page_of_commands_says_what_help_says() -> None:
    answer = subprocess.run([sys.executable, ROOT / "tools" / "cli_docs.py", "--check"], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize(
    "line",
    [
        ["inspect"],
        ["inspect", "x.png", "--recipe", "r"],
        ["train", "data", "--recipe", "r", "--device", "tpu"],
        ["train", "data", "--recipe", "r", "--false-reject-rate", "2"],
        ["no-such-command"],
        ["weights", "no-such-command"],
    ],
)
def test_wrong_usage_exits_with_2(line: list[str]) -> None:
    answer = run(*line)
    assert answer.returncode == 2
    assert "Traceback" not in answer.stderr


def test_from_a_checkout_cli_py_is_the_same_command() -> None:
    answer = subprocess.run([sys.executable, ROOT / "cli.py", "--help"], capture_output=True, text=True)
    assert answer.returncode == 0
    assert "inspect" in answer.stdout


def fails(error: BaseException, json_logs: bool = False) -> int:
    with pytest.raises(typer.Exit) as caught, console.session(False, json_logs):
        raise error
    return caught.value.exit_code


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    before = logging.root.handlers[:]
    yield
    logging.root.handlers[:] = before
    logging.getLogger("sam_inspect").setLevel(logging.NOTSET)
    logging.captureWarnings(False)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("a.yaml: unknown key 'tresh'", "did you mean 'threshold'?"), 2),
        (ImageError("a.png: is cut", "copy it again"), 1),
        (WeightsMissing("mobile_sam: not here", "run: sam-inspect weights fetch mobile_sam"), 1),
        (OutputError("out: cannot be written", "free space"), 1),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("division by zero"), 1),
    ],
)
def test_every_error_is_one_line_and_its_own_status(
    error: BaseException, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails(error) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    if isinstance(error, SamInspectError):
        assert str(error) in said.err


def test_what_nobody_foresaw_says_how_to_see_more(capsys: pytest.CaptureFixture[str]) -> None:
    fails(ZeroDivisionError("division\nby zero"))
    assert "ZeroDivisionError: division by zero; set SAM_INSPECT_DEBUG=1" in capsys.readouterr().err


def test_with_debug_set_the_error_itself_comes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM_INSPECT_DEBUG", "1")
    with pytest.raises(ImageError), console.session(False, False):
        raise ImageError("a.png: is cut")


def test_json_logs_are_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    import warnings

    with pytest.raises(typer.Exit), console.session(False, True):
        console.say("first\nmessage")
        logging.getLogger("some.library").warning("odd %s", "thing")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("an old\nfunction", FutureWarning, stacklevel=1)
        raise ImageError("ä.png: is cut", "copy it again")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["level"] for line in lines] == ["info", "warning", "warning", "error"]
    assert lines[0]["message"] == "first message"
    assert lines[3]["message"] == "ä.png: is cut; copy it again"
    assert (lines[3]["error"], lines[3]["exit_status"]) == ("ImageError", 1)


def test_quiet_keeps_warnings_and_results(capsys: pytest.CaptureFixture[str]) -> None:
    with console.session(True, False) as shown:
        console.say("not said")
        logging.getLogger("sam_inspect.batch").warning("a.png: is cut")
        console.table("Result", ["what", "count"], [["pass", "3"]])
        assert list(shown([1, 2], "counting", 2)) == [1, 2]
    said = capsys.readouterr()
    assert said.err == "warning: a.png: is cut\n"
    assert "pass" in said.out


def test_a_path_that_a_terminal_cannot_show_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(shown, encoding="ascii"))
    with console.session(True, False):
        print("Gehäuse", flush=True)
    assert shown.getvalue() == b"Geh\\xe4use\n"


def test_a_table_in_a_pipe_is_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    console.table("", ["name", "value"], [["n" * 90, "v" * 90]])
    assert "n" * 90 in capsys.readouterr().out


def test_without_a_terminal_progress_is_a_line_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with caplog.at_level(logging.INFO, logger="sam_inspect"):
        assert list(progress.spoken("abcdefgh", "inspect", 8)) == list("abcdefgh")
    assert caplog.messages == ["inspect: 2 of 8, 0.2/s, 36 s left", "inspect: 5 of 8, 0.2/s, 14 s left"]


def test_a_bar_passes_everything_on_and_short_work_draws_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.bar(range(100), "inspect", 100)) == list(range(100))
    assert capsys.readouterr().err == ""


def test_a_bar_is_taken_down_when_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "BAR_AFTER_SECONDS", 0.0)

    def work() -> Iterator[int]:
        yield 1
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        list(progress.bar(work(), "inspect", 2))
    assert list(progress.bar(progress.bar(range(3), "inner", 3), "outer", 3)) == [0, 1, 2]
