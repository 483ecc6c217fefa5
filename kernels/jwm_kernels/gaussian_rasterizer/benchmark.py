"""Times the rasterizer stage by stage, beside a floor of the machine and, on CUDA, beside gsplat.

Every measurement is a dict of JSON values. All of a run come from one process, so that ratios hold
on a machine whose speed changes from hour to hour:

- on a CPU the floor is `jnp.exp(x).sum()` over ten million float32 values;
- on an accelerator it is the time that copying the stage's bytes, or doing its arithmetic at the
  rate of many fused multiply-adds, would take, whichever is longer.

A stage's bytes are those of its inputs and outputs, its arithmetic is that of `FLOPS`.
"""

import importlib.util
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jwm_kernels.gaussian_rasterizer import validation
from jwm_kernels.gaussian_rasterizer.api import blend, rasterization
from jwm_kernels.gaussian_rasterizer.binning.tile_lists import (
    bin_tiles,
    count_tiles,
    default_host_sort,
)
from jwm_kernels.gaussian_rasterizer.blending.backends import check_backend
from jwm_kernels.gaussian_rasterizer.capacity import default_tile_size, suggest_capacity
from jwm_kernels.gaussian_rasterizer.cases import CASES, SLOW_ON_CPU, Splats, make_splats
from jwm_kernels.gaussian_rasterizer.projection.project import project

EXP_VALUES = 10_000_000

COPIED_VALUES = 1 << 26

FMA_LANES, FMA_CHAINS, FMA_STEPS = 1 << 24, 8, 64
"""Values, independent chains on each of them and multiply-adds of a chain: 64 multiply-adds per
byte that is read or written, so that neither memory nor latency sets the rate."""

FLOPS = {
    "project": (0, 0),
    "count": (0, 0),
    "bin": (0, 0),
    "blend": (16, 2),
    "blend_and_gradient": (60, 6),
    "forward": (16, 2),
    "forward_and_gradient": (60, 6),
}
"""Stage -> operations per listed (splat, pixel) pair: constant, and per channel. Projecting,
counting and binning count by their bytes alone, whole calls by the arithmetic of their blend."""

SHORTEST_SAMPLE_S = 5e-3
"""A sample repeats the call until it lasts this long, so that launches do not count."""


def benchmarks(
    cases: Sequence[str],
    channels: Sequence[int] = (3,),
    tile_sizes: Sequence[int | None] = (None,),
    **options,
) -> Iterator[dict]:
    """Measures every combination; what is refused is refused before anything is measured.

    Args:
      cases: keys of `CASES`.
      channels: numbers of colour channels.
      tile_sizes: sides of a tile in pixels, None for the default.
      **options: of `benchmark`.

    Returns:
      the lines of `benchmark`, one combination after the other.
    """
    return itertools.chain.from_iterable(
        [
            benchmark(case, channels=count, tile_size=tile_size, **options)
            for case, count, tile_size in itertools.product(cases, channels, tile_sizes)
        ]
    )


def benchmark(
    case: str,
    *,
    channels: int = 3,
    tile_size: int | None = None,
    backend: str = "auto",
    repeats: int = 15,
    even_if_slow: bool = False,
) -> Iterator[dict]:
    """Measures one case.

    Args:
      case: key of `CASES`.
      channels: colour channels.
      tile_size: side of a tile in pixels; by default that of `rasterization`.
      backend: as in `rasterization`.
      repeats: timed samples after one warm-up.
      even_if_slow: also takes the cases of `SLOW_ON_CPU` on a CPU.

    Returns:
      for each stage its shapes, device, median_ms, p10_ms, p90_ms, compile_s, and a ratio to the
      floor; last gsplat's times where CUDA and gsplat are there.

    Raises:
      ValueError: a case that takes long on this machine, without `even_if_slow`; an unknown
        backend, or a size that is none.
    """
    # JAX would otherwise take most of a GPU's memory and leave gsplat none.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if case in SLOW_ON_CPU and jax.default_backend() == "cpu" and not even_if_slow:
        raise ValueError(
            f"case: {case!r} takes minutes on a CPU; --even-if-slow (even_if_slow=True) times it"
        )
    check_backend(backend)
    tile_size = default_tile_size(backend) if tile_size is None else tile_size
    validation.check_tile_size(tile_size)
    validation.check_sizes(channels=channels, repeats=repeats)
    return _measured_stages(case, channels, tile_size, backend, repeats)


def _measured_stages(case, channels, tile_size, backend, repeats):
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

    def anew(*arguments):  # what jax has compiled before, it knows by its function
        return function(*arguments)

    arguments = jax.device_put(arguments)
    begin = time.perf_counter()
    compiled = jax.jit(anew).lower(*arguments).compile()
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
    block = jnp.zeros((COPIED_VALUES,), jnp.float32)
    copy, moved = measure(lambda x: x + 1, block, repeats=repeats)
    values = jnp.linspace(0.0, 1.0, FMA_LANES)
    fma, _ = measure(multiply_add, values, jnp.float32(0.999), jnp.float32(0.001), repeats=repeats)
    copy["gb_per_s"] = round(moved / copy["median_ms"] / 1e6, 3)
    flops = 2 * FMA_CHAINS * FMA_STEPS * FMA_LANES
    fma["tflops"] = round(flops / fma["median_ms"] / 1e9, 3)
    return {"copy": copy, "fma": fma}


def multiply_add(values, factor, summand):
    """`FMA_CHAINS` independent chains of `FMA_STEPS` multiply-adds on every value, summed up.

    Factor and summand are arguments: of constants a compiler could make fewer operations.
    """
    chains = [values + start for start in range(FMA_CHAINS)]
    for _ in range(FMA_STEPS):
        chains = [chain * factor + summand for chain in chains]
    return sum(chains)


def _against_floor(floors, stage, median_ms, moved, pairs, channels):
    """Nanoseconds per pair, and the ratio to the floor (CPU) or the floor's share (others)."""
    values = {}
    if stage.startswith(("blend", "forward")):
        values["ns_per_pair"] = round(1e6 * median_ms / pairs, 4)
    if "exp_sum" in floors:
        values["ratio_to_exp_sum"] = round(median_ms / floors["exp_sum"]["median_ms"], 2)
        return values
    constant, per_channel = FLOPS[stage]
    copy_ms = moved / floors["copy"]["gb_per_s"] / 1e6
    fma_ms = (constant + per_channel * channels) * pairs / floors["fma"]["tflops"] / 1e9
    values["roof_share"] = round(max(copy_ms, fma_ms) / median_ms, 4)
    return values


def _stages(splats: Splats, tile_size: int, backend: str):
    """Yields (stage, function, arguments, listed pairs)."""
    width, height = splats.width, splats.height
    camera, size = splats.arrays[5:], {"tile_size": tile_size}
    capacity = suggest_capacity(*splats.arrays[:4], *camera, width, height, margin=1.0, **size)
    host_sort = default_host_sort(capacity, backend)

    def to_screen(*arrays):
        return project(*arrays, width, height)

    def to_count(*arrays):
        return jnp.sum(count_tiles(to_screen(*arrays), width, height, tile_size))

    def to_lists(projection):
        return bin_tiles(projection, width, height, capacity=capacity, host_sort=host_sort, **size)

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
    yield "count", to_count, (*splats.arrays[:4], *camera), pairs
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
