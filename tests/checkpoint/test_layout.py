"""The names under which runs are saved: a renamed parameter must not break old runs silently.

`layout/NAME.json` has, for a training of `configs/`, every array of its checkpoints and how many
axes it has. A change of it breaks resuming every run that began before: if it is meant, say so in
the config's docstring and write the files anew with `python tests/checkpoint/test_layout.py`.
"""

import json
from pathlib import Path

import jax
import pytest

from jwm_jax.distributed import MeshConfig, make_mesh
from jwm_jax.training.config import find_config, override
from jwm_jax.training.start import items, layout

FOLDER = Path(__file__).with_name("layout")
NAMES = ("codec_tiny", "worldrec_tiny", "worldgen_pretrain_tiny", "worldgen_dmd_tiny")


def names_of(config_name: str) -> dict[str, int]:
    """Dotted name -> number of axes of everything that a checkpoint of a training holds."""
    config, _ = find_config(config_name)
    if hasattr(config, "loss"):  # whose frozen judge is no part of a checkpoint
        config = override(config, {"loss.lpips": 0.0})
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    state = layout(config, config.task(), mesh).abstract_state()
    leaves = jax.tree_util.tree_flatten_with_path(items(state))[0]
    return {jax.tree_util.keystr(p, simple=True, separator="."): x.ndim for p, x in leaves}


@pytest.mark.parametrize("name", NAMES)
def test_runs_are_saved_under_the_names_of_old(name):
    assert names_of(name) == json.loads((FOLDER / f"{name}.json").read_text())


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for chosen in NAMES:
        text = json.dumps(names_of(chosen), indent=0, sort_keys=True)
        (FOLDER / f"{chosen}.json").write_text(text + "\n")
