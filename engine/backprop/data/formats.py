"""Rows of data → turns: which format a row has, and what it says."""

from __future__ import annotations

from backprop.data.turns import Example, Format, Role, RowError, Turn

__all__ = ["Example", "Format", "Role", "RowError", "Turn"]
