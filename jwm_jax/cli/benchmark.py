"""`jwm benchmark`: how fast an operation runs here, as JSON lines."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from jwm_jax.cli.options import Common


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Time an operation stage by stage, beside a floor of this machine.

    One JSON line a stage: shapes, device, median, p10 and p90 in milliseconds, compile time, and
    the ratio to the floor; where CUDA and gsplat are there, gsplat on the same scenes.

    Example: jwm benchmark rasterizer --cases small
    """

    what: Annotated[Literal["rasterizer"], tyro.conf.Positional]
    """The operation."""
    cases: tuple[Literal["tiny", "rig", "small", "big", "surround", "huge"], ...] = (
        "tiny",
        "small",
    )
    """Scenes: up to 20 thousand Gaussians (tiny, rig, small), 200 thousand, a million (huge)."""
    channels: tuple[int, ...] = (3,)
    """Colour channels."""
    tile_sizes: tuple[int, ...] = ()
    """Sides of a tile in pixels; the platform's default if none is given."""
    backend: str = "auto"
    """As in `jwm_kernels.rasterization`."""
    repeats: int = 15
    """Timed samples of each stage."""


def run(options: Options) -> None:
    """Run `jwm benchmark`."""
    import itertools
    import json

    from jwm_kernels.gaussian_rasterizer.benchmark import benchmark

    for case, channels, tile_size in itertools.product(
        options.cases, options.channels, options.tile_sizes or (None,)
    ):
        for line in benchmark(
            case,
            channels=channels,
            tile_size=tile_size,
            backend=options.backend,
            repeats=options.repeats,
        ):
            print(json.dumps(line), flush=True)
