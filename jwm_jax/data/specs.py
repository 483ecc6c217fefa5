"""Options of things that are named in text: "NAME?key=value&key=value"."""

import math
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from jwm_jax.errors import UsageError

Reader = Callable[[str], Any]
"""The text of a value -> the value; a ValueError says what it must be ("must be ...")."""


def split_options(
    what: str, spec: str, readers: Mapping[str, Reader]
) -> tuple[str, dict[str, Any]]:
    """The name before the question mark, and the value of every option that follows it.

    Args:
      what: what is named, for messages: "clip" or "generator".
      spec: the whole text.
      readers: option -> how its value is read.

    Raises:
      UsageError: an option that is not known, or a value that its reader refuses.
    """
    name, _, query = spec.partition("?")
    values = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key not in readers:
            known = ", ".join(readers)
            raise UsageError(f"{what} {spec!r}: unknown option {key!r}; known: {known}.")
        try:
            values[key] = readers[key](text)
        except ValueError as error:
            raise UsageError(f"{what} {spec!r}: {key} {error}, got {text!r}.") from None
    return name, values


def number(low: float, high: float = math.inf) -> Reader:
    """A reader of numbers from `low` to `high`."""
    return _bounded(float, "a number", low, high)


def whole_number(low: int, high: float | int = math.inf) -> Reader:
    """A reader of whole numbers from `low` to `high`."""
    return _bounded(int, "a whole number", low, high)


def switch(text: str) -> bool:
    """Reads 0 or 1."""
    return bool(whole_number(0, 1)(text))


def _bounded(kind: type, noun: str, low: float | int, high: float | int) -> Reader:
    bounds = f"from {low:g} on" if high == math.inf else f"from {low:g} to {high:g}"

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or value == math.inf:
            raise ValueError(f"must be {noun} {bounds}")
        return value

    return read
