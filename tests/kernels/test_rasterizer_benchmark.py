"""What the benchmark reports, on a scene of no size."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_kernels.gaussian_rasterizer import benchmark as module
from jwm_kernels.gaussian_rasterizer.benchmark import benchmark, benchmarks, multiply_add
from jwm_kernels.gaussian_rasterizer.cases import CASES, Case

WHOLE = ("forward", "forward_and_gradient")
STAGES = ("project", "count", "bin", "blend", "blend_and_gradient", *WHOLE)
TIMES = ("median_ms", "p10_ms", "p90_ms")
SHAPES = ("gaussians", "cameras", "width", "height", "channels", "tile_size", "pairs")


@pytest.fixture
def speck(monkeypatch):
    """A case that runs in no time, and a floor as short."""
    monkeypatch.setitem(CASES, "speck", Case(200, 32, 32))
    monkeypatch.setattr(module, "EXP_VALUES", 10_000)
    monkeypatch.setattr(module, "SHORTEST_SAMPLE_S", 1e-4)
    return "speck"


def test_every_stage_is_measured_against_the_floor(speck):
    lines = [json.loads(json.dumps(line)) for line in benchmark(speck, repeats=2)]
    floor, *stages = lines
    assert floor["stage"] == "exp_sum"
    assert [line["stage"] for line in stages] == list(STAGES)
    for line in stages:
        assert line["compile_s"] >= 0
        for name in (*TIMES, *SHAPES, "ratio_to_exp_sum"):
            assert math.isfinite(line[name]) and line[name] > 0, (line["stage"], name)
        assert line["p10_ms"] <= line["median_ms"] <= line["p90_ms"]
        assert line["ratio_to_exp_sum"] == pytest.approx(
            line["median_ms"] / floor["median_ms"], rel=0.01, abs=0.01
        )
        assert ("ns_per_pair" in line) == line["stage"].startswith(("blend", "forward"))
        assert "roof_share" not in line


def test_an_accelerator_is_measured_against_its_rates(speck, monkeypatch):
    stages = [(stage, jnp.sin, (np.ones(1000, np.float32),), 64) for stage in STAGES]
    monkeypatch.setattr(module, "_stages", lambda *arguments: stages)
    monkeypatch.setattr(module, "COPIED_VALUES", 1 << 16)
    monkeypatch.setattr(module, "FMA_LANES", 1 << 16)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    copy, fma, *lines = benchmark(speck, repeats=2)
    assert copy["gb_per_s"] > 0
    assert fma["tflops"] > 0
    shares = {line["stage"]: line["roof_share"] for line in lines}
    assert list(shares) == list(STAGES)
    assert all(math.isfinite(share) and share > 0 for share in shares.values())


def test_no_compiler_saves_multiply_adds():
    values = jax.ShapeDtypeStruct((1 << 16,), "float32")
    scalar = jax.ShapeDtypeStruct((), "float32")
    cost = jax.jit(multiply_add).lower(values, scalar, scalar).compile().cost_analysis()
    wanted = 2 * module.FMA_CHAINS * module.FMA_STEPS * values.size
    assert wanted <= cost["flops"] < 1.1 * wanted
    assert wanted / cost["bytes accessed"] > 50


def test_what_takes_long_on_a_cpu_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match=r"^case: 'huge' takes minutes on a CPU; --even-if-slow"):
        benchmarks(["tiny", "huge"])
    benchmarks(["huge"], even_if_slow=True)
    for options, message in [
        ({"backend": "cuda"}, "backend: expected one of auto, xla"),
        ({"tile_sizes": [0]}, "tile_size: expected a whole number of at least 1"),
        ({"repeats": 0}, "repeats: expected a whole number of at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            benchmarks(["tiny"], **options)
