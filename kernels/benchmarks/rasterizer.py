"""Times the rasterizer stage by stage and prints one JSON line per measurement.

    python kernels/benchmarks/rasterizer.py --cases tiny small --channels 3

Every line has the shapes, the device, median, p10 and p90 in milliseconds, and the compile time.
Blend lines also give nanoseconds per listed (splat, pixel) pair and the ratio to the floor: the
time of one float32 `exp` per pair, measured in the same run, which no blend in XLA can beat.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jwm_kernels import bin_tiles, blend, project, rasterization, suggest_capacity
from jwm_kernels.gaussian_rasterizer.api import default_tile_size
from jwm_kernels.gaussian_rasterizer.cases import CASES, Splats, make_splats


def measure(function: Callable, *arguments, repeats: int) -> dict[str, float]:
    """Compiles and runs `function(*arguments)`.

    Args:
      function: to be compiled.
      *arguments: its arguments.
      repeats: timed runs after one warm-up.

    Returns:
      median_ms, p10_ms, p90_ms, compile_s.
    """
    jax.clear_caches()
    begin = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compile_s = time.perf_counter() - begin
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(1e3 * (time.perf_counter() - begin))
    p10, median, p90 = np.percentile(times, [10, 50, 90])
    return {
        "median_ms": round(median, 3),
        "p10_ms": round(p10, 3),
        "p90_ms": round(p90, 3),
        "compile_s": round(compile_s, 2),
    }


def exp_floor(pairs: int, repeats: int) -> dict[str, float]:
    """Time of one float32 `exp` for each of `pairs` values that stay in the cache."""
    block = jnp.linspace(-5.0, 0.0, 65_536)
    rounds = max(1, pairs // block.size)

    def many(x):
        def step(_, values):
            return jnp.exp(-values)

        return jax.lax.fori_loop(0, rounds, step, x)

    return measure(many, block, repeats=repeats)


def stages(
    splats: Splats, tile_size: int, repeats: int
) -> Iterator[tuple[str, dict[str, float], int]]:
    """Yields (stage, timing, listed pairs) for each stage of one case."""
    width, height = splats.width, splats.height
    camera = splats.arrays[5:]
    size = {"tile_size": tile_size}
    capacity = suggest_capacity(*splats.arrays[:4], *camera, width, height, margin=1.0, **size)

    def to_screen(*arrays):
        return project(*arrays, width, height)

    def to_lists(projection):
        return bin_tiles(projection, width, height, capacity=capacity, **size)

    projection = jax.jit(to_screen)(*splats.arrays[:4], *camera)
    lists = jax.jit(to_lists)(projection)
    pairs = int(lists.counts.sum()) * tile_size**2
    features = jnp.broadcast_to(splats.colors, (*projection.depths.shape, splats.colors.shape[-1]))

    def to_image(projection, features, lists):
        return blend(projection, features, lists, width, height, **size)

    def loss(projection, features, lists):
        image, alpha = to_image(projection, features, lists)
        return jnp.sum(image**2) + jnp.sum(alpha)

    def whole(*arrays):
        return rasterization(*arrays, width, height, capacity=capacity, **size)[0]

    def whole_gradient(*arrays):
        return jax.grad(lambda *a: jnp.sum(whole(*a) ** 2), argnums=tuple(range(5)))(*arrays)

    def gradient(projection, features, lists):
        return jax.grad(loss, argnums=(0, 1), allow_int=True)(projection, features, lists)

    runs = (
        ("exp_floor", None, ()),
        ("project", to_screen, (*splats.arrays[:4], *camera)),
        ("bin", to_lists, (projection,)),
        ("blend", to_image, (projection, features, lists)),
        ("blend_and_gradient", gradient, (projection, features, lists)),
        ("rasterization", whole, splats.arrays),
        ("rasterization_and_gradient", whole_gradient, splats.arrays),
    )
    for stage, function, arguments in runs:
        if function is None:
            yield stage, exp_floor(pairs, repeats), pairs
        else:
            yield stage, measure(function, *arguments, repeats=repeats), pairs


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["tiny", "small"])
    parser.add_argument("--channels", nargs="+", type=int, default=[3])
    parser.add_argument("--tile-sizes", nargs="+", type=int, default=[default_tile_size()])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    device = jax.devices()[0]
    for name in options.cases:
        for channels in options.channels:
            splats = make_splats(CASES[name], channels=channels)
            for tile_size in options.tile_sizes:
                floor = None
                for stage, timing, pairs in stages(splats, tile_size, options.repeats):
                    line = {
                        "case": name,
                        "stage": stage,
                        "gaussians": CASES[name].gaussians,
                        "cameras": CASES[name].cameras,
                        "width": splats.width,
                        "height": splats.height,
                        "channels": channels,
                        "tile_size": tile_size,
                        "pairs": pairs,
                        "device": f"{device.platform}:{device.device_kind}",
                        "jax": jax.__version__,
                        **timing,
                    }
                    if stage == "exp_floor":
                        floor = timing["median_ms"]
                    elif stage.startswith(("blend", "rasterization")):
                        line["ns_per_pair"] = round(1e6 * timing["median_ms"] / pairs, 3)
                        line["ratio_to_floor"] = round(timing["median_ms"] / floor, 2)
                    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
