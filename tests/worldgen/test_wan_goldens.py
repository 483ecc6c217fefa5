"""Wan 2.1 and its causal form as their own code computes them, through the public converter.

The golden arrays were computed in float64 and stored as float32, as are the weights. Everything
must agree to 1e-4 of the largest entry in float32, and does to some 1e-6.
"""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from safetensors.numpy import load_file

from jwm_jax.checkpoint import save_model
from jwm_jax.cli.main import main
from jwm_jax.worldgen import wan
from jwm_jax.worldgen.cache import empty_cache
from jwm_jax.worldgen.conditions import no_conditions
from jwm_jax.worldgen.forward import (
    predict_clip,
    predict_next,
    predict_teacher_forced,
    remember,
    sight_of,
)
from jwm_jax.worldgen.masks import teacher_forcing_mask
from jwm_jax.worldgen.transformer import text_keys

pytestmark = pytest.mark.golden

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("JWM_DATA", ROOT.parent / "shared" / "data")).expanduser()


def variants(name: str) -> list[Path]:
    """Folders of a golden set, of which any number may be there."""
    return sorted(folder.parent for folder in DATA.glob(f"golden/{name}/*/golden.npz"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture, name in (("bidirectional", "wan_transformer"), ("causal", "causal_wan")):
        if fixture in metafunc.fixturenames:
            found = variants(name)
            missing = pytest.mark.skip(reason=f"no golden/{name} in {DATA} (set JWM_DATA)")
            values = found or [pytest.param(None, marks=missing)]
            metafunc.parametrize(
                fixture, values, ids=[v.name for v in found] or None, indirect=True, scope="module"
            )


def opened(folder: Path):
    sizes = json.loads((folder / "config.json").read_text())
    heads = sizes.get("num_heads", sizes.get("num_attention_heads"))
    config, params = wan.load(folder / "weights.safetensors", num_heads=heads)
    arrays = dict(np.load(folder / "golden.npz"))
    return replace(config, dtype="float32"), jax.tree.map(jnp.asarray, params), arrays, sizes


@pytest.fixture(scope="module")
def bidirectional(request):
    config, params, arrays, _ = opened(request.param)
    return config, params, arrays


@pytest.fixture(scope="module")
def causal(request):
    config, params, arrays, sizes = opened(request.param)
    config = replace(config, text_len=sizes["text_len"])
    return config, params, arrays, (request.param / "README.md").read_text()


def close(found, expected) -> None:
    error = np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()
    assert error < 1e-4, error


def conditions_of(config, latents):
    return no_conditions(config, latents.shape[:-1])


def test_a_clip_at_one_and_at_many_sigmas(bidirectional):
    config, params, golden = bidirectional
    cases = sorted(name[:-4] for name in golden if re.fullmatch(r"[a-z]_out", name))
    assert cases
    for case in cases:
        latents = golden.get(f"{case}_latent", golden["a_latent"])
        text = golden.get(f"{case}_text", golden["a_text"])
        noisy = jnp.asarray(rearrange(latents, "b c f h w -> b 1 f h w c"))
        per_frame = golden.get(f"{case}_timestep_per_frame")
        times = golden[f"{case}_timestep"][:, None] if per_frame is None else per_frame
        sigma = jnp.broadcast_to(times / 1000, noisy.shape[:1] + noisy.shape[2:3])
        told = replace(config, text_len=text.shape[1])

        @jax.jit
        def run(noisy, sigma, text, told=told):
            keys = text_keys(told, params, text)
            given = conditions_of(told, noisy)
            return predict_clip(told, params, noisy, sigma, given, keys, given=0)

        found = run(noisy, sigma, text)
        close(rearrange(found.velocity, "b 1 f h w c -> b c f h w"), golden[f"{case}_out"])
        close(found.x0, noisy - sigma[:, None, :, None, None, None] * found.velocity)


def frames_last(latents):
    """[..., f, c, h, w] -> [..., 1, f, h, w, c], with an axis of one view."""
    return jnp.asarray(rearrange(latents, "... f c h w -> ... 1 f h w c"))


def chunk_sizes(golden) -> list[int]:
    return sorted(int(m[1]) for m in (re.fullmatch(r"tf(\d+)_flow", name) for name in golden) if m)


def test_teacher_forcing_and_its_mask(causal):
    config, params, golden, _ = causal
    assert chunk_sizes(golden)
    for size in chunk_sizes(golden):
        chunked = replace(config, chunk=size, window=99, sink=0)
        clean, noisy = (frames_last(golden[f"tf{size}_{kind}"]) for kind in ("clean", "noisy"))
        count = clean.shape[2]
        mask = teacher_forcing_mask(count, 1, sight_of(chunked, 0))
        np.testing.assert_array_equal(mask, golden[f"tf{size}_mask_frames"])

        @jax.jit
        def run(clean, noisy, sigma, clean_sigma, text, config=chunked):
            keys = text_keys(config, params, text)
            given = conditions_of(config, noisy)
            return predict_teacher_forced(
                config, params, clean, noisy, sigma, given, clean_sigma, keys, given=0
            )

        sigma = jnp.asarray(golden[f"tf{size}_t"]) / 1000
        found = run(clean, noisy, sigma, 0 * sigma, golden["text"])
        close(found.velocity, frames_last(golden[f"tf{size}_flow"]))
        grid = np.abs(golden["s_timesteps"] - golden[f"tf{size}_t"][..., None]).argmin(-1)
        snapped = golden["s_sigmas"][grid][:, None, :, None, None, None]
        close(noisy - snapped * found.velocity, frames_last(golden[f"tf{size}_x0"]))
        told = jnp.asarray(golden[f"tf{size}_aug_t"]) / 1000
        augmented = run(clean, noisy, sigma, told, golden["text"])
        close(augmented.velocity, frames_last(golden[f"tf{size}_flow_aug"]))


def generated(causal, name: str, window: int, sink: int) -> None:
    """Four steps a chunk, each re-noised, over a ring of sink + window frames."""
    config, params, golden, _ = causal
    start, noises = golden[f"{name}_noise"], golden[f"{name}_step_noise"]
    size, expected = noises.shape[2], golden[f"{name}_flow"]
    config = replace(config, chunk=size, window=window, sink=sink)
    sigmas = golden[f"{name}_t"][0, :-1, 0, 0] / 1000
    first = frames_last(start[:, :size])
    given, previous = conditions_of(config, first), 0 * first[:, :, :1]

    @jax.jit
    def predict(noisy, sigma, cache, text):
        return predict_next(config, params, noisy, sigma, previous, given, cache, text)

    @jax.jit
    def write(latents, cache, text):
        return remember(config, params, latents, previous, given, cache, text)

    text = jax.jit(lambda rows: text_keys(config, params, rows))(golden["text"])
    tokens = first.shape[3] * first.shape[4] // config.patch**2
    cache = empty_cache(config, 1, tokens)
    for chunk in range(len(noises)):
        noisy = frames_last(start[:, chunk * size : (chunk + 1) * size])
        for i, sigma in enumerate(sigmas):
            found = predict(noisy, sigma, cache, text)
            close(found.velocity, frames_last(expected[chunk, i]))
            if i + 1 < len(sigmas):
                fresh = frames_last(noises[chunk, i][None])
                noisy = (1 - sigmas[i + 1]) * found.x0 + sigmas[i + 1] * fresh
        latents = golden[f"{name}_latents"][:, chunk * size : (chunk + 1) * size]
        close(found.x0, frames_last(latents))
        cache = write(found.x0, cache, text)
    values = rearrange(cache.values[0], "b f s heads k -> b (f s) heads k")
    kept = golden[f"{name}_kv_v_block0"]
    if window + sink >= len(noises) * size:
        close(values[:, : kept.shape[1]], kept)


@pytest.mark.parametrize("size", [1, 3])
def test_four_step_generation_over_the_whole_past(causal, size):
    frames = causal[2][f"ar{size}_noise"].shape[1]
    generated(causal, f"ar{size}", window=frames, sink=0)


def test_a_rolling_memory_with_a_sink(causal):
    said = re.search(r"local_attn_size=(\d+) frames?, sink_size=(\d+)", causal[3])
    size, sink = (int(number) for number in said.groups())
    generated(causal, "arl", window=size - sink - 1, sink=sink)


def test_a_round_trip_returns_every_bit(tmp_path):
    folders = variants("wan_transformer") + variants("causal_wan")
    if not folders:
        pytest.skip(f"no golden arrays in {DATA} (set JWM_DATA)")
    for folder in folders:
        config, params, _, _ = opened(folder)
        published = load_file(folder / "weights.safetensors")
        naming = "diffusers" if "proj_out.weight" in published else "original"
        other = {"diffusers": "original", "original": "diffusers"}[naming]
        first = wan.save(config, params, tmp_path / "other.safetensors", other)
        config, params = wan.load(first, num_heads=config.num_heads)
        back = load_file(wan.save(config, params, tmp_path / "back.safetensors", naming))
        assert back.keys() == published.keys()
        for name, value in published.items():
            assert back[name].dtype == value.dtype and back[name].shape == value.shape
            assert back[name].tobytes() == value.tobytes(), name
        names = folder / "original_to_diffusers_names.json"
        if names.is_file():
            theirs = json.loads(names.read_text())
            assert {theirs.get(name, name) for name in load_file(first)} == set(published)


@pytest.mark.parametrize("naming", ["diffusers", "wan"])
def test_a_model_is_exported_as_its_library_has_it(naming, tmp_path):
    found = variants("wan_transformer")
    if not found:
        pytest.skip(f"no golden/wan_transformer in {DATA} (set JWM_DATA)")
    for folder in found:
        theirs = json.loads((folder / "config.json").read_text())
        config, params = wan.load(folder / "weights.safetensors", theirs["num_attention_heads"])
        save_model(tmp_path / "model", "worldgen", "golden", config, params, "# For a test")
        out = tmp_path / folder.name
        command = ["export", str(tmp_path / "model"), "--format", naming, "--out", str(out)]
        assert main(command) == 0
        weights = load_file(folder / "weights.safetensors")
        if naming == "wan":
            back = wan.load(out / "wan.safetensors", theirs["num_attention_heads"])[1]
            jax.tree.map(np.testing.assert_array_equal, back, params)
            continue
        written = json.loads((out / "config.json").read_text())
        assert written.pop("_class_name") == "WanTransformer3DModel" and written == theirs
        ours = load_file(out / "diffusion_pytorch_model.safetensors")
        assert ours.keys() == weights.keys()
        for name, value in weights.items():
            np.testing.assert_array_equal(ours[name], value, err_msg=name)
