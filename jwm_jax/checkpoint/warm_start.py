"""Starting from the weights of another run or model, which is something else than resuming it.

A warm start copies parameters by name into a freshly initialised model and reports what it copied.
Precedence in training: resume the own run, else warm start, else start from scratch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jwm_jax.checkpoint.model_dir import flatten, unflatten
from jwm_jax.errors import DataError


@dataclass(frozen=True)
class WarmStartReport:
    """What a warm start did, as dotted names.

    Attributes:
        copied: Parameters taken from the source.
        kept: Parameters left as initialised because the source lacks them.
        unused: Parameters of the source without a place in the model.
    """

    copied: tuple[str, ...]
    kept: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"copied {len(self.copied)} tensors, kept {len(self.kept)} as initialised, left "
            f"{len(self.unused)} unused"
        )


def warm_start(
    params: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    renamed: Mapping[str, str] | None = None,
    partial: bool = False,
) -> tuple[dict[str, Any], WarmStartReport]:
    """Replace parameters by those of the same name in `source`.

    Args:
        params: Nested dict of initialised parameters (arrays or ShapeDtypeStructs).
        source: Nested dict of arrays to copy from.
        renamed: Prefix of a name in `params` -> prefix in `source`; the longest match counts.
        partial: Allow parameters that the source lacks, and source tensors without a place.

    Returns:
        The nested dict with source arrays in place, and the report.

    Raises:
        DataError: When a shape differs, or a name has no partner and `partial` is off.
    """
    flat, given = flatten(params), flatten(source)
    prefixes = sorted((renamed or {}).items(), key=lambda pair: -len(pair[0]))
    result, copied, kept, used = {}, [], [], set()
    for name, value in flat.items():
        origin = name
        for mine, theirs in prefixes:
            if name.startswith(mine):
                origin = theirs + name[len(mine) :]
                break
        if origin not in given:
            kept.append(name)
            result[name] = value
            continue
        if tuple(given[origin].shape) != tuple(value.shape):
            raise DataError(
                f"warm start: {name} has shape {tuple(value.shape)} here but "
                f"{tuple(given[origin].shape)} in the source ({origin}); choose a source of this "
                "size."
            )
        used.add(origin)
        copied.append(name)
        result[name] = given[origin]
    unused = tuple(sorted(set(given) - used))
    if not partial and (kept or unused):
        culprit = (
            f"{kept[0]} is missing in the source" if kept else f"{unused[0]} has no place here"
        )
        raise DataError(f"warm start: {culprit}; pass partial=True where that is intended.")
    return unflatten(result), WarmStartReport(tuple(copied), tuple(kept), unused)
