"""Where two JSON-like values differ: what refusals name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def first_difference(found: Any, expected: Any, name: str = "") -> tuple[str, Any, Any]:
    """The first place (dotted name, value found, value expected) at which two JSON-like values differ."""
    return next(differences(found, expected, name), (name, found, expected))


def differences(found: Any, expected: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every place (dotted name, value found, value expected) at which two JSON-like values differ, in order."""
    if found == expected:
        return
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted(set(found) | set(expected)):
            inner = f"{name}.{key}" if name else key
            if key not in found or key not in expected:
                yield inner, found.get(key, "(absent)"), expected.get(key, "(absent)")
            else:
                yield from differences(found[key], expected[key], inner)
    elif isinstance(found, list) and isinstance(expected, list):
        if len(found) != len(expected):
            yield f"number of {name}", len(found), len(expected)
            return
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            yield from differences(a, b, f"{name}[{i}]")
    else:
        yield name, found, expected
