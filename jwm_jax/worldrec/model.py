"""`WorldRec`: a reconstruction model with its parameters, from a clip to a scene."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jwm_jax.checkpoint.model_dir import (
    check_params,
    load_config,
    load_params,
    read_header,
    resolve_model,
    save_model,
)
from jwm_jax.distributed import unbox
from jwm_jax.scene.clip import Clip
from jwm_jax.scene.scene import Scene
from jwm_jax.worldrec.config import WorldRecConfig
from jwm_jax.worldrec.depth import DepthSource
from jwm_jax.worldrec.network import Reconstruction, WorldRecNetwork
from jwm_jax.worldrec.pictures import Pictures, make_pictures, nearest_tracks, resized_for


@dataclass(frozen=True)
class WorldRec:
    """A feed-forward reconstruction model.

    scene = WorldRec.from_pretrained("tiny")(clip)

    Attributes:
        config: Shape of the model.
        params: Nested dict of float32 arrays.
        size: Name of the size.
    """

    config: WorldRecConfig
    params: Any
    size: str = "tiny"

    @staticmethod
    def from_pretrained(name_or_dir: str | os.PathLike[str]) -> "WorldRec":
        """Load a model shipped with the package ("tiny") or a model directory.

        Raises:
            UsageError: There is no such model.
            DataError: The directory is broken or holds another model.
        """
        config = load_config(name_or_dir, "worldrec", WorldRecConfig)
        params = load_params(name_or_dir, "worldrec")
        size = read_header(resolve_model(name_or_dir, "worldrec"), "worldrec")["size"]
        expected = jax.eval_shape(functools.partial(initial_params, config), jax.random.key(0))
        check_params(params, expected, str(name_or_dir))
        return WorldRec(config, params, size)

    @staticmethod
    def initialize(config: WorldRecConfig, key: jax.Array, size: str = "tiny") -> "WorldRec":
        """A model without training: it shows its pictures at a rough depth."""
        return WorldRec(config, jax.jit(initial_params, static_argnums=0)(config, key), size)

    def save_pretrained(
        self, directory: str | os.PathLike[str], card: str = "", *, half: bool = True
    ) -> Path:
        """Write a model directory.

        Args:
            directory: Folder to write.
            card: Markdown: what the model is and what it was trained on.
            half: Store float16; else the weights as they are.

        Returns:
            The folder.
        """
        card = card or f"# WorldRec {self.size}\n\nSaved without a description."
        return save_model(
            directory, "worldrec", self.size, self.config, self.params, card, half=half
        )

    def __call__(self, clip: Clip, depth_source: DepthSource | None = None) -> Scene:
        """Reconstruct a scene from every frame and view of a clip.

        Pictures are resized to the model's size. Tracks are used where there are any; lidar, map,
        style and depth maps are not needed.

        Args:
            clip: At least one picture.
            depth_source: Where measured depth comes from (`LidarDepth()`, `GivenDepth()`); by
                default the network's own depth head.

        Returns:
            The scene; its time 0 is the clip's start, its tracks are those of the clip.

        Raises:
            DataError: Several instants of a clip whose poses are unknown.
        """
        if clip.num_frames > 1:
            clip.require_poses("a reconstruction from several instants")
        clip = resized_for(self.config, clip)
        tracks = nearest_tracks(self.config, clip)
        pictures = make_pictures(self.config, clip, tracks, depth_source=depth_source)
        result = self.reconstruct(pictures)
        return Scene(
            gaussians=result.gaussians,
            tracks=None if tracks is None else tracks.on_device(clip.start, self.config.max_tracks),
            sky=result.sky,
            start=clip.start,
            tau=self.config.tau,
        )

    def reconstruct(self, pictures: Pictures) -> Reconstruction:
        """Run the network on pictures without leading axes."""
        return _compiled(self.config)(self.params, pictures)


def initial_params(config: WorldRecConfig, key: jax.Array) -> Any:
    """Unboxed parameters of an untrained network."""
    return unbox(boxed_params(config, key))


def boxed_params(config: WorldRecConfig, key: jax.Array) -> Any:
    """Parameters in flax boxes that carry their logical axis names."""
    return WorldRecNetwork(config).init(key, example_pictures(config))["params"]


def example_pictures(config: WorldRecConfig) -> Pictures:
    """Blank pictures; parameters do not depend on how many or how large they are."""
    height, width = 16 * config.cell[0], 16 * config.cell[1]
    return jax.tree.map(jnp.asarray, blank_pictures(config, 1, height, width))


def blank_pictures(config: WorldRecConfig, count: int, height: int, width: int) -> Pictures:
    """Pictures that are all padding, as host arrays."""
    eye = np.eye(4, dtype=np.float32)
    K = np.float32([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]])
    boxes = config.max_tracks
    return Pictures(
        images=np.zeros((count, height, width, 3), np.float32),
        K=np.tile(K, (count, 1, 1)),
        world_from_camera=np.tile(eye, (count, 1, 1)),
        ego_from_camera=np.tile(eye, (count, 1, 1)),
        times=np.zeros(count, np.float32),
        mask=np.zeros(count, bool),
        world_from_box=np.tile(eye, (count, boxes, 1, 1)),
        box_there=np.zeros((count, boxes), bool),
        box_sizes=np.ones((boxes, 3), np.float32),
        depth=np.zeros((count, height, width), np.float32),
    )


@functools.lru_cache(maxsize=8)
def _compiled(config: WorldRecConfig):
    network = WorldRecNetwork(config)

    @jax.jit
    def run(params, pictures):
        pictures = jax.tree.map(jnp.asarray, pictures)
        return network.apply({"params": params}, pictures)

    return run
