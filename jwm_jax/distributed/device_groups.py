"""Which devices a collective of an HLO program connects, and along which axes of a mesh.

Three spellings of groups exist:

    {{0,1},{2,3}}                                   members, listed
    [2,2]<=[2,2]T(1,0)                              an iota, reshaped, transposed, reshaped
    mesh['a'=2,'b'=4], device_ids=(iota) {'b'}      axes of a mesh that the compiler made up, each
                                                    perhaps with its part only: 'b':(1)2

A permutation lists pairs of a source and a target. Numbers are places in the flat list of the
devices of the mesh that the program was compiled for.
"""

import itertools
import math
import re

import numpy as np
from jax.sharding import Mesh


def device_groups(attributes: str, mesh: Mesh | None) -> list[tuple[int, ...]]:
    """Which devices exchange data with each other, as indices into the mesh's flat device list.

    Args:
        attributes: Of the instruction.
        mesh: Its size says who takes part where nothing is listed; alone without a mesh.

    Returns:
        Groups; of a permutation the pairs, without those that stay.
    """
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
    if pairs:
        found = [tuple(map(int, p)) for p in re.findall(r"\{(\d+),(\d+)\}", pairs.group(1))]
        return [pair for pair in found if pair[0] != pair[1]]
    listed = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", attributes)
    if listed and listed.group(1):
        return [tuple(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", listed.group(1))]
    iota = re.search(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", attributes)
    if iota:
        return [tuple(map(int, row)) for row in _iota(iota.group(1))]
    made_up = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^ ]*)\))? \{([^}]*)\}", attributes
    )
    if made_up:
        return _groups_of_axes(*made_up.groups())
    count = 1 if mesh is None else mesh.size
    return [tuple(range(count))]


def _iota(text: str) -> np.ndarray:
    shape, source, order = re.fullmatch(
        r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text
    ).groups()
    dims = [int(n) for n in source.split(",")]
    ids = np.arange(math.prod(dims)).reshape(dims)
    if order:
        ids = ids.transpose([int(n) for n in order.split(",")])
    return ids.reshape([int(n) for n in shape.split(",")])


def _groups_of_axes(axes: str, ids: str | None, chosen: str) -> list[tuple[int, ...]]:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    count = math.prod(sizes.values())
    if ids is None:
        order = np.arange(count)
    else:
        order = _iota(ids if "<=" in ids else f"[{count}]<={ids}").reshape(-1)
    parts: list[int] = []
    moved: list[int] = []
    wanted = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen)
    for name, size in sizes.items():
        cuts = {1, size}
        for other, before, part in wanted:
            if other == name and before:
                cuts |= {int(before), int(before) * int(part)}
        edges = sorted(cuts)
        for low, high in itertools.pairwise(edges):
            within = any(
                other == name
                and (not before or int(before) <= low < int(before) * int(part))
                for other, before, part in wanted
            )  # fmt: skip
            if within:
                moved.append(len(parts))
            parts.append(high // low)
    grid = order.reshape(parts or [1])
    kept = [i for i in range(len(parts)) if i not in moved]
    size = math.prod(parts[i] for i in moved)
    return [tuple(map(int, row)) for row in grid.transpose(kept + moved).reshape(-1, size)]


def axes_of(groups: list[tuple[int, ...]], mesh: Mesh) -> tuple[str, ...]:
    """Names of the mesh axes along which the members of the groups differ."""
    shape = tuple(mesh.shape.values())
    varies = np.zeros(len(shape), bool)
    for group in groups:
        places = np.stack(np.unravel_index(np.asarray(group), shape))
        varies |= (places != places[:, :1]).any(1)
    return tuple(name for name, moves in zip(mesh.axis_names, varies, strict=True) if moves)
