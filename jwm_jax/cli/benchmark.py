"""`jwm benchmark`: how fast an operation runs here, as JSON lines."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from jwm_jax.cli.options import Common
from jwm_jax.errors import UsageError


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
    even_if_slow: bool = False
    """Take `huge` on a CPU too, where it lasts minutes."""


def run(options: Options) -> None:
    """Run `jwm benchmark`.

    Raises:
        UsageError: A case that takes long on this machine, without --even-if-slow.
    """
    import json

    from jwm_kernels.gaussian_rasterizer.benchmark import benchmarks

    try:
        lines = benchmarks(
            options.cases,
            options.channels,
            options.tile_sizes or (None,),
            backend=options.backend,
            repeats=options.repeats,
            even_if_slow=options.even_if_slow,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    for line in lines:
        print(json.dumps(line), flush=True)
