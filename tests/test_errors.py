"""The tree in the docstring is the tree in the code, and every error is one line with its remedy."""

from __future__ import annotations

import inspect
import re

import pytest

from sam_inspect import errors
from sam_inspect.errors import SamInspectError

CLASSES = {
    name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, SamInspectError)
}


def drawn() -> dict[str, tuple[str, int, int]]:
    """Name -> (parent, exit code, HTTP status), as the docstring draws it."""
    tree, above = {}, {-1: "Exception"}
    for line in inspect.getdoc(errors).splitlines():  # type: ignore[union-attr]
        match = re.fullmatch(r"([│├└─ ]*)(\w+) +(\d), (\d{3}) .+|(SamInspectError)", line)
        if match:
            indent, name, code, status, root = match.groups()
            depth = len(indent) // 4 if indent else 0
            above[depth] = name or root
            tree[name or root] = (above[depth - 1], int(code or 1), int(status or 500))
    return tree


def test_the_drawn_tree_is_the_tree() -> None:
    real = {name: (kind.__bases__[0].__name__, kind.exit_code, kind.http_status) for name, kind in CLASSES.items()}
    assert drawn() == real


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_an_error_is_one_line_with_its_remedy(name: str) -> None:
    error = CLASSES[name]("a.png: is cut\n(truncated)", "copy it   again")
    assert str(error) == "a.png: is cut (truncated); copy it again"
    assert (error.problem, error.remedy) == ("a.png: is cut\n(truncated)", "copy it   again")
    assert str(CLASSES[name]("a.png: is cut")) == "a.png: is cut"


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_error_has_a_line_that_explains_it(name: str) -> None:
    assert inspect.getdoc(CLASSES[name])


def test_wrong_usage_exits_with_2_and_everything_else_with_1() -> None:
    for kind in CLASSES.values():
        assert kind.exit_code == (2 if issubclass(kind, errors.UsageError) else 1)
        assert 400 <= kind.http_status < 600
