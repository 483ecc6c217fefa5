"""Frozen dataclasses to JSON and back, with every key and type checked.

Supported fields: bool, int, float, str, None, tuples, dicts with string keys, nested dataclasses,
and unions of them. Where a field may hold one of several dataclasses, the JSON object carries its
class name under "type". An unknown key is an error: a misspelt setting must not pass silently.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from jwm_jax.errors import UsageError


def _members(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _dataclasses_in(annotation: Any) -> list[Any]:
    return [member for member in _members(annotation) if dataclasses.is_dataclass(member)]


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as a JSON-ready dict.

    Args:
        config: Instance of a dataclass.

    Returns:
        Nested dicts and lists of plain values.
    """
    hints = typing.get_type_hints(type(config))
    return {
        field.name: _plain(getattr(config, field.name), hints[field.name])
        for field in dataclasses.fields(config)
    }


def _plain(value: Any, annotation: Any) -> Any:
    if dataclasses.is_dataclass(value):
        choices = _dataclasses_in(annotation)
        tag = {"type": type(value).__name__} if len(choices) > 1 else {}
        return {**tag, **to_dict(value)}
    if isinstance(value, tuple | list):
        inner = [a for m in _members(annotation) for a in typing.get_args(m) if a is not Ellipsis]
        union = typing.Union[tuple(inner)] if inner else Any  # noqa: UP007
        return [_plain(item, union) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item, Any) for key, item in value.items()}
    return value


def from_dict(cls: Any, data: Mapping[str, Any], where: str = "config") -> Any:
    """Build a dataclass from a dict, rejecting unknown keys and wrong types.

    Args:
        cls: The dataclass.
        data: Nested dicts and lists as `to_dict` makes them; missing keys take the defaults.
        where: Name to use in messages.

    Returns:
        An instance of `cls`.

    Raises:
        UsageError: For an unknown key, a missing value without default, or a wrong type.
    """
    if not isinstance(data, Mapping):
        raise UsageError(f"{where} must be an object with fields of {cls.__name__}, got {data!r}.")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise UsageError(
            f"{where} has the unknown field {unknown[0]!r}; {cls.__name__} knows "
            f"{', '.join(fields)}."
        )
    hints = typing.get_type_hints(cls)
    values = {name: _value(hints[name], value, f"{where}.{name}") for name, value in data.items()}
    missing = [
        name
        for name, field in fields.items()
        if name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UsageError(f"{where} lacks the field {missing[0]!r} of {cls.__name__}.")
    return cls(**values)


def _value(annotation: Any, value: Any, where: str) -> Any:
    for member in _members(annotation):
        if member is Any:
            return value
        if member is type(None) and value is None:
            return None
        origin = typing.get_origin(member)
        if member in (bool, str) and type(value) is member:
            return value
        if member is int and type(value) is int:
            return value
        if member is float and type(value) in (int, float):
            return float(value)
        if origin is typing.Literal and value in typing.get_args(member):
            return value
        if origin is tuple and isinstance(value, list | tuple):
            return _tuple(typing.get_args(member), value, where)
        if origin is dict and isinstance(value, Mapping):
            inner = typing.get_args(member)[1]
            return {key: _value(inner, item, f"{where}.{key}") for key, item in value.items()}
        if member in (tuple, dict) and isinstance(value, list | tuple | Mapping):
            return member(value)
    choices = _dataclasses_in(annotation)
    if choices and isinstance(value, Mapping):
        return _choose(choices, dict(value), where)
    expected = getattr(annotation, "__name__", None) or str(annotation)
    raise UsageError(f"{where} must be {expected}, got {value!r}.")


def _choose(choices: list[Any], value: dict[str, Any], where: str) -> Any:
    if len(choices) == 1:
        return from_dict(choices[0], value, where)
    kind = value.pop("type", None)
    by_name = {choice.__name__: choice for choice in choices}
    if kind not in by_name:
        raise UsageError(f"{where}.type must be one of {', '.join(by_name)}, got {kind!r}.")
    return from_dict(by_name[kind], value, where)


def _tuple(inner: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if len(inner) == 2 and inner[1] is Ellipsis:
        return tuple(_value(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if len(inner) != len(value):
        raise UsageError(f"{where} must have {len(inner)} values, got {list(value)!r}.")
    return tuple(
        _value(kind, item, f"{where}[{i}]")
        for i, (kind, item) in enumerate(zip(inner, value, strict=True))
    )
