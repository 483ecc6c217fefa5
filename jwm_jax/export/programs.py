"""Exported programs as a folder: a file each, their weights, and how jax alone runs them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jwm_jax.errors import ResourceError
from jwm_jax.files import write_beside, write_whole

PLATFORMS = ("cpu", "tpu", "cuda")
"""That `jax.export` lowers for."""

_README = """# {title}

Programs of `jwm export`, for {platforms}. They need Python with `jax` and `flatbuffers`, and
nothing of jwm_jax:

    import json
    import numpy as np
    from jax import export

    weights = dict(np.load("weights.npz"))
    program = export.deserialize(open("{first}.stablehlo", "rb").read())
    given = json.load(open("signature.json"))["{first}"]["takes"]
    results = program.call(weights, *arrays)    # a dict of arrays for each entry of `given`

`signature.json` has names, types and shapes of everything taken and given; a dimension `b` may be
any number.

{about}
"""


def write_programs(
    folder: Path,
    programs: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    title: str,
    about: str,
) -> list[Path]:
    """Write programs, their weights and what is needed to run them.

    Args:
        folder: It exists.
        programs: Name -> `jax.export.Exported` whose first argument is `weights`.
        weights: Dotted name -> array.
        title: Heading of the folder's README.md.
        about: What the programs do, in Markdown.

    Returns:
        The files.

    Raises:
        ResourceError: A file cannot be written, or flatbuffers is not installed.
    """
    files = []
    for name, program in programs.items():
        try:
            content = program.serialize()
        except ImportError as error:
            raise ResourceError(
                "programs are serialised with flatbuffers, which is not installed; run "
                "`pip install 'jwm_jax[export]'`."
            ) from error
        files.append(write_whole(folder / f"{name}.stablehlo", bytes(content)))
    with write_beside(folder / "weights.npz") as file:
        np.savez(file, **weights)
    signatures = {name: signature(program) for name, program in programs.items()}
    text = json.dumps(signatures, indent=2)
    first = next(iter(programs.values()))
    readme = _README.format(
        title=title,
        platforms=", ".join(first.platforms),
        first=next(iter(programs)),
        about=about.strip(),
    )
    files.append(folder / "weights.npz")
    files.append(write_whole(folder / "signature.json", text + "\n"))
    return [*files, write_whole(folder / "README.md", readme)]


def signature(program: Any) -> dict[str, list[Any]]:
    """What a program takes, its weights left out, and gives: types and shapes by name."""
    (_, *takes), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    gives = jax.tree.unflatten(program.out_tree, program.out_avals)
    gives = gives if isinstance(gives, tuple) else (gives,)
    return {"takes": [_described(x) for x in takes], "gives": [_described(x) for x in gives]}


def _described(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _described(value) for name, value in tree.items()}
    return f"{tree.dtype}[{', '.join(str(n) for n in tree.shape)}]"
