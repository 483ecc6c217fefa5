"""Times the rasterizer stage by stage, beside a floor of the machine and, on CUDA, beside gsplat.

Every measurement is a dict of JSON values. All of a run come from one process, so that ratios hold
on a machine whose speed changes from hour to hour:

- on a CPU the floor is `jnp.exp(x).sum()` over ten million float32 values;
- on an accelerator it is the time that copying the stage's bytes, or doing its arithmetic at the
  rate of a chain of fused multiply-adds, would take, whichever is longer.

A stage's bytes are those of its inputs and outputs; its arithmetic is that of `BLEND_FLOPS`.
"""

import importlib.util
import os
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jwm_kernels.gaussian_rasterizer.api import blend, rasterization
from jwm_kernels.gaussian_rasterizer.binning import bin_tiles
from jwm_kernels.gaussian_rasterizer.capacity import default_tile_size, suggest_capacity
from jwm_kernels.gaussian_rasterizer.cases import CASES, Splats, make_splats
from jwm_kernels.gaussian_rasterizer.projection import project

EXP_VALUES = 10_000_000

BLEND_FLOPS = {"blend": (16, 2), "blend_and_gradient": (60, 6)}
"""Stage -> operations per listed (splat, pixel) pair: constant, and per channel."""

SHORTEST_SAMPLE_S = 5e-3
"""A sample repeats the call until it lasts this long, so that launches do not count."""


def benchmark(
    case: str,
    *,
    channels: int = 3,
    tile_size: int | None = None,
    backend: str = "auto",
    repeats: int = 15,
) -> Iterator[dict]:
    """Measures one case.

    Args:
      case: key of `CASES`.
      channels: colour channels.
      tile_size: side of a tile in pixels; by default that of `rasterization`.
      backend: as in `rasterization`.
      repeats: timed samples after one warm-up.

    Yields:
      for each stage its shapes, device, median_ms, p10_ms, p90_ms, compile_s, and a ratio to the
      floor; last gsplat's times where CUDA and gsplat are there.
    """
    # JAX would otherwise take most of a GPU's memory and leave gsplat none.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    tile_size = default_tile_size() if tile_size is None else tile_size
    splats = make_splats(CASES[case], channels=channels)
    device = jax.devices()[0]
    about = {
        "case": case,
        "gaussians": CASES[case].gaussians,
        "cameras": CASES[case].cameras,
        "width": splats.width,
        "height": splats.height,
        "channels": channels,
        "tile_size": tile_size,
        "backend": backend,
        "device": f"{device.platform}:{device.device_kind}",
        "jax": jax.__version__,
    }
    floors = machine_floors(repeats)
    for name, timing in floors.items():
        yield {**about, "stage": name, **timing}
    ours = {}
    for stage, function, arguments, pairs in _stages(splats, tile_size, backend):
        timing, moved = measure(function, *arguments, repeats=repeats)
        ours[stage] = timing["median_ms"]
        line = {**about, "stage": stage, "pairs": pairs, **timing}
        line.update(_against_floor(floors, stage, timing["median_ms"], moved, pairs, channels))
        yield line
    if device.platform == "gpu" and importlib.util.find_spec("gsplat"):
        for stage, timing in _gsplat(splats, repeats):
            ratio = round(ours[stage] / timing["median_ms"], 3)
            yield {**about, "stage": f"gsplat_{stage}", **timing, "ours_over_gsplat": ratio}


def measure(function: Callable, *arguments, repeats: int) -> tuple[dict[str, float], int]:
    """Compiles and runs `function(*arguments)`.

    Args:
      function: to be compiled.
      *arguments: its arguments.
      repeats: timed samples after one warm-up.

    Returns:
      median_ms, p10_ms, p90_ms, compile_s; and the bytes of its arguments and results.
    """
    arguments = jax.device_put(arguments)
    jax.clear_caches()
    begin = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compile_s = time.perf_counter() - begin
    result = jax.block_until_ready(compiled(*arguments))
    moved = sum(leaf.nbytes for leaf in jax.tree.leaves((arguments, result)))

    def run(calls: int) -> None:
        for _ in range(calls):
            last = compiled(*arguments)
        jax.block_until_ready(last)

    return {**_percentiles(run, repeats), "compile_s": round(compile_s, 2)}, moved


def machine_floors(repeats: int) -> dict[str, dict[str, float]]:
    """What the machine can do: the time of many `exp` on a CPU, else its copy and FMA rates."""
    if jax.default_backend() == "cpu":
        values = jnp.linspace(-5.0, 0.0, EXP_VALUES)
        timing, _ = measure(lambda x: jnp.exp(x).sum(), values, repeats=repeats)
        return {"exp_sum": timing}
    block = jnp.zeros((1 << 26,), jnp.float32)
    copy, moved = measure(lambda x: x + 1, block, repeats=repeats)
    chain, lanes = 4096, 1 << 20

    def multiply_add(x):
        return jax.lax.fori_loop(0, chain, lambda _, y: y * 0.999 + 0.001, x, unroll=64)

    fma, _ = measure(multiply_add, jnp.ones((lanes,), jnp.float32), repeats=repeats)
    copy["gb_per_s"] = round(moved / copy["median_ms"] / 1e6, 1)
    fma["tflops"] = round(2 * chain * lanes / fma["median_ms"] / 1e9, 2)
    return {"copy": copy, "fma": fma}


def _against_floor(floors, stage, median_ms, moved, pairs, channels):
    """Nanoseconds per pair, and the ratio to the floor (CPU) or the share of the roof (others)."""
    values = {}
    if stage.startswith(("blend", "forward")):
        values["ns_per_pair"] = round(1e6 * median_ms / pairs, 4)
    if "exp_sum" in floors:
        values["ratio_to_exp_sum"] = round(median_ms / floors["exp_sum"]["median_ms"], 2)
        return values
    constant, per_channel = BLEND_FLOPS.get(stage, (0, 0))
    copy_ms = moved / floors["copy"]["gb_per_s"] / 1e6
    fma_ms = (constant + per_channel * channels) * pairs / floors["fma"]["tflops"] / 1e9
    values["roof_share"] = round(max(copy_ms, fma_ms) / median_ms, 4)
    return values


def _stages(splats: Splats, tile_size: int, backend: str):
    """Yields (stage, function, arguments, listed pairs)."""
    width, height = splats.width, splats.height
    camera, size = splats.arrays[5:], {"tile_size": tile_size}
    capacity = suggest_capacity(*splats.arrays[:4], *camera, width, height, margin=1.0, **size)

    def to_screen(*arrays):
        return project(*arrays, width, height)

    def to_lists(projection):
        return bin_tiles(projection, width, height, capacity=capacity, **size)

    def to_image(projection, features, lists):
        return blend(projection, features, lists, width, height, backend=backend, **size)

    def loss(projection, features, lists):
        image, alpha = to_image(projection, features, lists)
        return jnp.sum(image**2) + jnp.sum(alpha)

    def gradient(projection, features, lists):
        return jax.grad(loss, argnums=(0, 1), allow_int=True)(projection, features, lists)

    def forward(*arrays):
        return rasterization(*arrays, width, height, capacity=capacity, backend=backend, **size)[0]

    def forward_and_gradient(*arrays):
        return jax.grad(lambda *a: jnp.sum(forward(*a) ** 2), argnums=tuple(range(5)))(*arrays)

    projection = jax.jit(to_screen)(*splats.arrays[:4], *camera)
    lists = jax.jit(to_lists)(projection)
    pairs = int(lists.counts.sum()) * tile_size**2
    features = jnp.broadcast_to(splats.colors, (*projection.depths.shape, splats.colors.shape[-1]))
    yield "project", to_screen, (*splats.arrays[:4], *camera), pairs
    yield "bin", to_lists, (projection,), pairs
    yield "blend", to_image, (projection, features, lists), pairs
    yield "blend_and_gradient", gradient, (projection, features, lists), pairs
    yield "forward", forward, splats.arrays, pairs
    yield "forward_and_gradient", forward_and_gradient, splats.arrays, pairs


def _gsplat(splats: Splats, repeats: int):
    """Yields (stage, timing) of gsplat on the same arrays, the faster of packed and not."""
    import gsplat
    import torch

    arrays = [torch.as_tensor(a, device="cuda") for a in splats.arrays]

    def run(packed, backwards, calls):
        for _ in range(calls):
            learned = [a.detach().requires_grad_(backwards) for a in arrays[:5]]
            image, _, _ = gsplat.rasterization(
                *learned, *arrays[5:], splats.width, splats.height, packed=packed
            )
            if backwards:
                (image**2).sum().backward()
        torch.cuda.synchronize()

    for stage, backwards in (("forward", False), ("forward_and_gradient", True)):
        run(True, backwards, 1)
        timings = [
            _percentiles(lambda n, p=packed, b=backwards: run(p, b, n), repeats)
            for packed in (False, True)
        ]
        yield stage, min(timings, key=lambda t: t["median_ms"])


def _percentiles(run: Callable[[int], None], repeats: int) -> dict[str, float]:
    begin = time.perf_counter()
    run(1)
    calls = max(1, round(SHORTEST_SAMPLE_S / max(time.perf_counter() - begin, 1e-6)))
    samples = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run(calls)
        samples.append(1e3 * (time.perf_counter() - begin) / calls)
    p10, median, p90 = np.percentile(samples, [10, 50, 90])
    return {"median_ms": round(median, 4), "p10_ms": round(p10, 4), "p90_ms": round(p90, 4)}
