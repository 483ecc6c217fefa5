"""The converter of Wan 2.1's weights: what it refuses, and what grows around converted weights."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jwm_jax.errors import DataError, UsageError
from jwm_jax.worldgen import WorldGen, wan
from jwm_jax.worldgen.conditions import no_conditions
from jwm_jax.worldgen.config import CONDITIONS, SIZES, WorldGenConfig
from jwm_jax.worldgen.forward import abstract_params, predict_clip
from jwm_jax.worldgen.transformer import init_params, text_keys

WAN = replace(
    SIZES["base"],
    dim=24,
    num_layers=2,
    num_heads=2,
    ffn_dim=16,
    freq_dim=8,
    latent_channels=4,
    text_dim=6,
    conditions=(),
    previous_input=False,
    cross_view_every=0,
    rebase=False,
)


def parameters(config: WorldGenConfig, seed: int = 0):
    return jax.jit(lambda key: nn.unbox(init_params(config, key)))(jax.random.key(seed))


@pytest.fixture(scope="module")
def weights():
    """Random everywhere, also where training starts at zero."""
    params = parameters(WAN)
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))
    return jax.tree.map(lambda a: a + 0.1 * jax.random.normal(next(keys), a.shape), params)


@pytest.mark.parametrize("naming", ["original", "diffusers"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_saved_loads_again_bit_by_bit(weights, naming, dtype, tmp_path):
    stored = jax.tree.map(lambda leaf: np.asarray(leaf.astype(dtype)), weights)
    path = wan.save(WAN, stored, tmp_path / "wan.safetensors", naming)
    config, params = wan.load(path, num_heads=2, dtype=None)
    assert config == WAN
    jax.tree.map(np.testing.assert_array_equal, params, stored)
    _, wide = wan.load(path, num_heads=2)
    again = wan.save(WAN, wide, tmp_path / "again.safetensors", naming, dtype=dtype)
    assert again.read_bytes() == path.read_bytes()


def test_every_difference_is_named(weights, tmp_path):
    path = wan.save(WAN, weights, tmp_path / "wan.safetensors")
    tensors = load_file(path)
    del tensors["blocks.1.cross_attn.k.bias"], tensors["head.modulation"]
    tensors["blocks.0.norm3.bias"] = np.zeros(5, np.float32)
    tensors["lora.up"] = np.zeros((2, 2), np.float32)
    save_file(tensors, path)
    with pytest.raises(DataError) as error:
        wan.load(path, num_heads=2)
    for part in (
        "missing blocks.1.cross_attn.k.bias (24,)",
        "missing head.modulation (1, 2, 24)",
        "blocks.0.norm3.bias is (5,) instead of (24,)",
        "unknown lora.up (2, 2)",
    ):
        assert part in str(error.value)
    save_file({"conv.weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(DataError, match=r"patch_embedding.weight, .* is missing"):
        wan.load(path)


def test_pickles_and_files_that_are_not_there_are_refused(weights, tmp_path):
    (tmp_path / "wan.pth").write_bytes(b"cos\nsystem\n")
    with pytest.raises(DataError, match="is a pickle"):
        WorldGen.from_pretrained(tmp_path / "wan.pth")
    with pytest.raises(UsageError, match="no file"):
        WorldGen.from_pretrained(tmp_path / "wan.safetensors")
    (tmp_path / "wan.safetensors").write_bytes(b"short")
    with pytest.raises(DataError, match="cannot be read"):
        wan.load(tmp_path / "wan.safetensors")
    path = wan.save(WAN, weights, tmp_path / "wan.safetensors")
    with pytest.raises(UsageError, match="24 channels do not split into heads of 128"):
        wan.load(path)
    larger = replace(WAN, conditions=CONDITIONS)
    with pytest.raises(UsageError, match=r"condition_tokens.*embed_layout"):
        wan.save(larger, parameters(larger), path)
    assert wan.load(path, num_heads=2)[0] == WAN, "nothing was overwritten"


def test_conditions_beside_converted_weights_change_nothing_before_training(weights):
    """Every adapter there is, with conditions given, two views and a strength of guidance."""
    larger = replace(
        WAN,
        conditions=CONDITIONS,
        previous_input=True,
        frame_conv=True,
        guidance_input=True,
        middle_head=True,
        num_layers=2,
        cross_view_every=1,
    )
    grown = wan.grow(larger, weights, parameters(larger, seed=2))
    shape = (1, 2, 3, 4, 4)
    keys = jax.random.split(jax.random.key(3), 3)
    given = jax.tree.map(jnp.ones_like, no_conditions(larger, shape))
    given = replace(given, guidance=jnp.full(1, 3.0))
    noisy, sigma = jax.random.normal(keys[0], (*shape, 4)), jnp.full((1, 3), 0.7)
    text = jax.random.normal(keys[1], (1, 5, 6))

    def run(config, params, middle=False):
        keys = text_keys(config, params, text)
        return predict_clip(config, params, noisy, sigma, given, keys, middle=middle)

    alone = jax.jit(lambda p: run(WAN, p).velocity)(weights)
    beside = jax.jit(lambda p: run(larger, p, middle=True))(grown)
    np.testing.assert_allclose(beside.velocity, alone, atol=1e-6)
    assert beside.middle.velocity.shape == alone.shape and not beside.middle.velocity.any()
    with pytest.raises(DataError, match="views"):
        wan.grow(WAN, grown, weights)


def test_base_has_the_parameters_of_wan_and_the_adapters():
    """1.42 billion as published (wan2.1-t2v-1.3b)."""

    def count(config):
        return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(config)))

    plain = replace(SIZES["base"], conditions=(), previous_input=False, cross_view_every=0)
    assert count(plain) == 1_418_996_800
    assert 1.1 < count(SIZES["base"]) / count(plain) < 1.2
