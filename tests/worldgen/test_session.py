"""Sessions: chunks of frames one after another, forks, optional conditions, many views."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_jax.errors import UsageError
from jwm_jax.worldgen.codec import VideoCodec
from jwm_jax.worldgen.codec_network import CodecConfig, CodecNetwork
from jwm_jax.worldgen.conditions import Conditions
from jwm_jax.worldgen.config import WorldGenConfig
from jwm_jax.worldgen.model import WorldGen

CONFIG = WorldGenConfig(
    dim=16,
    num_layers=2,
    num_heads=2,
    ffn_dim=16,
    freq_dim=16,
    latent_channels=4,
    head_channels=4,
    window=2,
    sink=1,
)
HEIGHT, WIDTH = 32, 48


def make_codec() -> VideoCodec:
    config = CodecConfig(latent_channels=4, half_width=4, quarter_width=4, eighth_width=4)
    blank = jnp.zeros((1, 4, 16, 16, 3))
    return VideoCodec(
        config, nn.unbox(CodecNetwork(config).init(jax.random.key(0), blank))["params"]
    )


@pytest.fixture(scope="module")
def gen() -> WorldGen:
    return WorldGen.from_scratch(CONFIG, make_codec(), seed=1)


def picture(seed: int, *lead: int) -> np.ndarray:
    return np.random.default_rng(seed).random((*lead, HEIGHT, WIDTH, 3), np.float32)


def full_conditions(seed: int, *lead: int) -> Conditions:
    random = np.random.default_rng(seed)
    return Conditions(
        layout=picture(seed, *lead, 4),
        prior=picture(seed + 1, *lead, 4),
        prior_alpha=random.random((*lead, 4, HEIGHT, WIDTH), np.float32),
        ego_motion=random.random((4, 4), np.float32),
        style={"weather": "rain"},
    )


def test_a_session_is_pure_so_a_copy_is_a_fork(gen):
    session = gen.start(picture(0, 1), seed=3)
    one, after = gen.step(session, full_conditions(1, 1), steps=2)
    assert one.shape == (1, 4, HEIGHT, WIDTH, 3)
    again, _ = gen.step(session, full_conditions(1, 1), steps=2)
    np.testing.assert_array_equal(one, again)
    left, _ = gen.step(after, full_conditions(2, 1), steps=2)
    fork = jax.tree.map(lambda leaf: leaf, after)
    right, _ = gen.step(fork, full_conditions(2, 1), steps=2)
    np.testing.assert_array_equal(left, right)
    other, _ = gen.step(fork, full_conditions(5, 1), steps=2)
    assert np.abs(np.asarray(other) - np.asarray(left)).max() > 1e-6


def test_stream_is_a_loop_over_step_and_runs_beyond_the_window(gen):
    given = [full_conditions(10 * i) for i in range(5)]
    streamed = list(gen.stream(picture(0), None, given, steps=1, seed=4))
    session = gen.start(picture(0), seed=4)
    for conditions, frames in zip(given, streamed, strict=True):
        stepped, session = gen.step(session, conditions, steps=1)
        np.testing.assert_array_equal(stepped, frames)
    assert frames.shape == (4, HEIGHT, WIDTH, 3)
    assert int(session.num_frames) == 5 and bool(jnp.isfinite(session.cache.keys).all())


def test_the_seed_decides_the_noise_and_chunks_differ(gen):
    first = picture(0)
    a, session = gen.step(gen.start(first, seed=0), steps=1)
    b, _ = gen.step(gen.start(first, seed=1), steps=1)
    c, _ = gen.step(session, steps=1)
    assert np.abs(np.asarray(a - b)).max() > 1e-6
    assert np.abs(np.asarray(a - c)).max() > 1e-6


def test_a_prior_without_alpha_is_valid_everywhere_and_an_invalid_prior_is_no_prior(gen):
    session = gen.start(picture(0), seed=0)
    prior = picture(7, 4)
    ones = np.ones((4, HEIGHT, WIDTH), np.float32)
    whole, _ = gen.step(session, Conditions(prior=prior), steps=1)
    same, _ = gen.step(session, Conditions(prior=prior, prior_alpha=ones), steps=1)
    none, _ = gen.step(session, Conditions(prior=prior, prior_alpha=0 * ones), steps=1)
    absent, _ = gen.step(session, Conditions(), steps=1)
    np.testing.assert_allclose(whole, same, atol=1e-6)
    np.testing.assert_allclose(none, absent, atol=1e-6)
    assert np.abs(np.asarray(whole - none)).max() > 1e-6


def test_a_layout_begun_in_the_first_chunk_is_encoded_like_a_clip_that_begins_there(gen):
    layout = picture(3, 4)
    late, session = gen.step(gen.start(picture(0), seed=0), Conditions(layout=layout), steps=1)
    state = gen.codec.initial_encode_state((1, 1), HEIGHT // 8, WIDTH // 8)
    _, state = gen.codec.encode_step(layout[None, None, :1], state)
    _, state = gen.codec.encode_step(layout[None, None], state)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), session.layout_state, state
    )
    early = gen.start(picture(0), seed=0, conditions=Conditions(layout=layout[:1]))
    early, _ = gen.step(early, Conditions(layout=layout), steps=1)
    assert late.shape == early.shape


def test_uint8_pictures_and_a_batch_axis(gen):
    first = (255 * picture(0, 2, 1)).astype(np.uint8)
    given = Conditions(ego_motion=np.zeros((2, 4, 4), np.float32))
    both, _ = gen.step(gen.start(first, seed=0), given, steps=1)
    assert both.shape == (2, 1, 4, HEIGHT, WIDTH, 3)
    exact, _ = gen.step(gen.start(first / np.float32(255), seed=0), given, steps=1)
    np.testing.assert_allclose(both, exact, atol=1e-5)


@pytest.fixture(scope="module")
def loud(gen) -> WorldGen:
    """Weights that have learned to listen to the style."""
    params = jax.tree.map(jnp.copy, gen.params)
    out = params["head"]["out"]
    out["kernel"] += 0.1 * jax.random.normal(jax.random.key(0), out["kernel"].shape)
    table = params["embeddings"]["condition_tokens"]["weather"]
    table["table"] *= 100.0
    return WorldGen(gen.config, params, gen.codec)


def test_guidance_leads_away_from_a_session_that_never_knew_the_style(loud):
    """At scale 0 only the null branch speaks, which remembers the frames without their style."""
    rain = Conditions(style={"weather": "rain"})
    session = loud.start(picture(0), seed=0, conditions=rain, guided=True)
    never = loud.start(picture(0), seed=0)
    plain = loud.start(picture(0), seed=0, conditions=rain)
    for _ in range(2):
        dropped, session = loud.step(session, rain, steps=1, cfg_scale=0.0)
        null, never = loud.step(never, Conditions(), steps=1)
        np.testing.assert_allclose(dropped, null, atol=1e-5)
    one, _ = loud.step(loud.start(picture(0), seed=0, conditions=rain, guided=True), rain, steps=1)
    same, _ = loud.step(plain, rain, steps=1)
    np.testing.assert_allclose(one, same, atol=1e-5)
    pushed, _ = loud.step(session, rain, steps=1, cfg_scale=3.0)
    weaker, _ = loud.step(session, rain, steps=1, cfg_scale=1.0)
    assert np.abs(np.asarray(pushed - weaker)).max() > 1e-4
    with pytest.raises(ValueError, match="guided=True"):
        loud.step(plain, rain, cfg_scale=2.0)


def test_every_pattern_of_conditions_and_every_scale_is_one_program(loud):
    from jwm_jax.worldgen.model import _step

    session = loud.start(picture(0), seed=0, guided=True)
    before = _step._cache_size()
    for given in (Conditions(), full_conditions(1), Conditions(prior=picture(2, 4))):
        for scale in (1.0, 2.5):
            loud.step(session, given, steps=1, cfg_scale=scale)
    assert _step._cache_size() <= before + 1


def test_a_session_of_three_latent_frames_a_chunk_and_text():
    config = dataclasses.replace(
        CONFIG, chunk=3, prediction="velocity", previous_input=False, text_dim=6, text_len=4
    )
    gen = WorldGen.from_scratch(config, make_codec(), seed=1)
    out = gen.params["head"]["out"]
    out["kernel"] = out["kernel"] + 0.1
    text = np.random.default_rng(0).random((3, 6), np.float32)
    session = gen.start(picture(0), seed=0, text=text)
    given = Conditions(layout=picture(1, 12), ego_motion=np.ones((12, 4), np.float32))
    frames, after = gen.step(session, given, steps=1)
    assert frames.shape == (12, HEIGHT, WIDTH, 3) and int(after.num_frames) == 3
    untold, _ = gen.step(gen.start(picture(0), seed=0), given, steps=1)
    assert np.abs(np.asarray(frames - untold)).max() > 1e-6
    with pytest.raises(ValueError, match="up to 4 rows of 6 channels, but got 5 rows"):
        gen.start(picture(0), text=np.zeros((5, 6), np.float32))


def test_saving_and_loading_keeps_the_model(gen, tmp_path):
    gen.save_pretrained(tmp_path, card="For a test.", half=False)
    loaded = WorldGen.from_pretrained(tmp_path)
    assert loaded.config == gen.config
    jax.tree.map(np.testing.assert_array_equal, loaded.params, gen.params)
    assert loaded.codec.config == gen.codec.config


def test_wrong_shapes_are_named(gen):
    with pytest.raises(ValueError, match="multiples of 16"):
        gen.start(np.zeros((40, 48, 3), np.float32))
    session = gen.start(picture(0, 1))
    with pytest.raises(ValueError, match=r"conditions\.layout must have shape \(1, 4, 32, 48, 3\)"):
        gen.step(session, Conditions(layout=picture(0, 1, 3)))
    with pytest.raises(ValueError, match="given without"):
        gen.step(session, Conditions(prior_alpha=np.ones((1, 4, HEIGHT, WIDTH), np.float32)))
    with pytest.raises(ValueError, match="season"):
        gen.step(session, Conditions(style={"season": "winter"}))
    with pytest.raises(UsageError, match="latent channels"):
        WorldGen.from_scratch("tiny", gen.codec)
