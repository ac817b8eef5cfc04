"""The codes of findings are an interface: each that the program can give is listed with its meaning."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import backprop
from backprop.data.example import PROBLEM_CODES


def given(folder: Path) -> Iterator[tuple[str, str]]:
    """(code, file) of every finding that is made with a code written out."""
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "RowError":
                code = node.args[0]
                if isinstance(code, ast.Constant):
                    yield str(code.value), file.name


def test_every_code_that_a_finding_can_have_is_explained() -> None:
    codes = set(given(Path(backprop.__file__).parent))
    assert len(codes) > 30
    assert {item for item in codes if item[0] not in PROBLEM_CODES} == set()
