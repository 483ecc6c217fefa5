"""Frozen dataclasses that are JAX pytrees.

`jax.tree_util.register_dataclass` rebuilds a dataclass through its constructor, which then sees
whatever a transformation put in the leaves (shapes, shardings, `None`). Here a rebuilt instance
bypasses the constructor, so that field annotations are checked where a person builds an object and
nowhere else.
"""

import dataclasses
from typing import Any, TypeVar

import jax
import numpy as np
from typing_extensions import dataclass_transform

Array = jax.Array | np.ndarray
"""An array on the host or on a device."""

T = TypeVar("T")


def static_field(**kwargs: Any) -> Any:
    """A dataclass field that is part of the tree's structure (hashable, compared at trace time)."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


def host_field(default: Any) -> Any:
    """A dataclass field that transformations do not see: a rebuilt instance has its default.

    For names and the like, which would otherwise make every object a structure of its own and have
    compiled functions compiled again.
    """
    return dataclasses.field(default=default, metadata={"host": True})


@dataclass_transform(
    frozen_default=True, field_specifiers=(dataclasses.field, static_field, host_field)
)
def pytree_dataclass(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass and a pytree; fields from `static_field` become structure.

    Fields from `host_field` are forgotten by transformations.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)
    host = {f.name: f.default for f in fields if f.metadata.get("host")}
    dynamic = tuple(f.name for f in fields if not f.metadata.get("static") and f.name not in host)
    static = tuple(f.name for f in fields if f.metadata.get("static"))

    def flatten_with_keys(obj):
        children = tuple((jax.tree_util.GetAttrKey(n), getattr(obj, n)) for n in dynamic)
        return children, tuple(getattr(obj, n) for n in static)

    def flatten(obj):
        return tuple(getattr(obj, n) for n in dynamic), tuple(getattr(obj, n) for n in static)

    def unflatten(structure, children):
        obj = object.__new__(cls)
        for name, value in zip(dynamic, children, strict=True):
            object.__setattr__(obj, name, value)
        for name, value in zip(static, structure, strict=True):
            object.__setattr__(obj, name, value)
        for name, value in host.items():
            object.__setattr__(obj, name, value)
        return obj

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
