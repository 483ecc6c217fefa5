"""What a WorldRec is made of, as frozen dataclasses."""

from dataclasses import dataclass

from jwm_jax.scene.clip import fitted_size

WIDTH_MULTIPLE = 16
"""Columns of a picture are a multiple of this: the backbone's coarsest map has stride 16."""


@dataclass(frozen=True)
class StageConfig:
    """One stage of the backbone: blocks of one kind at one resolution.

    Attributes:
        features: Output channels.
        blocks: How many; the first one strides.
        stride: 1 or 2.
        expansion: Hidden channels as a multiple of the input's.
        fused: Whether a block expands with a full 3x3 convolution (fused MBConv) or with a 1x1, a
            depthwise 3x3 and squeeze-and-excitation (MBConv).
    """

    features: int
    blocks: int
    stride: int
    expansion: int
    fused: bool


@dataclass(frozen=True)
class WorldRecConfig:
    """Shape of a WorldRec. The defaults are `tiny`.

    Attributes:
        height: Rows of the pictures; the width follows the aspect, see `picture_size`.
        cell: Rows and columns of pixels that one query covers.
        children: Rows and columns of Gaussians that a query decodes to, spread over its cell.
        width: Channels of queries.
        hidden: Channels of the query perceptrons.
        weight_hidden: Channels of the perceptron that weighs the views.
        stem: Channels of the first convolution, at stride 2.
        stages: The backbone after the stem.
        pyramid: Channels of every level of the feature pyramid.
        levels: How many of the finest pyramid levels queries read.
        norm_group: Channels that share a group norm.
        pixel_aligned: Decode each query from its own picture's features alone, as pixel-aligned
            Gaussian heads do, without looking into the other views. A baseline.
        min_depth: Metres; nearest surface the depth head can express.
        max_depth: Metres; farthest.
        camera_height: Metres above a flat ground from which the depth head starts.
        depth_reach: Part of its depth by which a Gaussian may leave its query along the ray.
        side_reach: Pixels by which it may leave it sideways.
        scale_reach: A Gaussian's size is the pixel footprint times e^-reach .. e^reach.
        box_margin: Part by which boxes are enlarged before they claim queries.
        box_slack: Part of the depth by which an estimate may miss a box that its ray hits.
        ground: Metres above a box's bottom that stay static (road between the wheels).
        max_tracks: Things a scene can hold; the nearest ones are kept.
        sky: Rows and columns of the sky texture.
        tau: Seconds; shortest life of a Gaussian.
        buckets: Numbers of pictures a compiled network is made for.
    """

    height: int = 96
    cell: tuple[int, int] = (2, 4)
    children: tuple[int, int] = (2, 2)
    width: int = 64
    hidden: int = 128
    weight_hidden: int = 32
    stem: int = 16
    stages: tuple[StageConfig, ...] = (
        StageConfig(16, 1, 1, 1, True),
        StageConfig(24, 2, 2, 4, True),
        StageConfig(40, 2, 2, 4, True),
        StageConfig(64, 3, 2, 4, False),
    )
    pyramid: int = 32
    levels: int = 3
    norm_group: int = 8
    pixel_aligned: bool = False
    min_depth: float = 1.5
    max_depth: float = 150.0
    camera_height: float = 1.6
    depth_reach: float = 0.15
    side_reach: float = 1.5
    scale_reach: float = 1.6
    box_margin: float = 0.1
    box_slack: float = 0.1
    ground: float = 0.15
    max_tracks: int = 24
    sky: tuple[int, int] = (24, 96)
    tau: float = 1.0
    buckets: tuple[int, ...] = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)

    @property
    def num_children(self) -> int:
        """Gaussians a query."""
        return self.children[0] * self.children[1]

    def picture_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns to which a picture of `height` x `width` pixels is resized."""
        return fitted_size(height, width, self.height, WIDTH_MULTIPLE)

    def bucket(self, pictures: int) -> int:
        """Smallest bucket that holds a number of pictures; beyond the last, multiples of it."""
        for size in self.buckets:
            if pictures <= size:
                return size
        last = self.buckets[-1]
        return last * -(-pictures // last)

    def capacity(self, pictures: int, height: int, width: int) -> int:
        """Gaussians, padding included, of a scene made from pictures of this size in pixels."""
        queries = (height // self.cell[0]) * (width // self.cell[1])
        return self.bucket(pictures) * queries * self.num_children
