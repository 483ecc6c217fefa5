"""The codec: streams equal whole clips, causality, shapes, files, and the shipped quality."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_jax.checkpoint.model_dir import save_model
from jwm_jax.data.streets.clip import make_clip
from jwm_jax.distributed.sharding import unbox, unnamed_leaves
from jwm_jax.errors import DataError
from jwm_jax.paradigms.codec import clip_psnr
from jwm_jax.worldgen.codec import VideoCodec
from jwm_jax.worldgen.codec_network import CodecConfig, CodecNetwork

CONFIG = CodecConfig(latent_channels=8, half_width=16, quarter_width=16, eighth_width=16)


def boxed_params():
    blank = jnp.zeros((1, 4, 16, 16, 3))
    return CodecNetwork(CONFIG).init(jax.random.key(0), blank)["params"]


@pytest.fixture(scope="module")
def codec():
    """A codec with random weights whose convolutions matter, and latents far from unit variance."""
    params = unbox(boxed_params())
    for side in ("encoder", "decoder"):
        params[side]["out"]["kernel"] = params[side]["out"]["kernel"] * 50.0
    params["latent_mean"] = jnp.linspace(-1.0, 1.0, 8)
    params["latent_std"] = jnp.linspace(0.5, 2.0, 8)
    return VideoCodec(CONFIG, params)


@pytest.fixture(scope="module")
def video():
    """Two streams of 1 + 4 * 3 frames."""
    return jax.random.uniform(jax.random.key(1), (2, 13, 24, 32, 3))


def test_streaming_encode_equals_whole_clip(codec, video):
    state = codec.initial_encode_state(2, 3, 4)
    latent, state = codec.encode_step(video[:, :1], state)
    latents = [latent]
    for start in (1, 5, 9):
        latent, state = codec.encode_step(video[:, start : start + 4], state)
        latents.append(latent)
    whole = codec.encode(video)
    assert whole.shape == (2, 4, 3, 4, 8)
    np.testing.assert_allclose(np.stack(latents, axis=1), whole, rtol=0, atol=2e-6)


def test_streaming_decode_equals_whole_clip(codec, video):
    latents = codec.encode(video)
    state = codec.initial_decode_state(2, 3, 4)
    shapes = jax.tree.map(jnp.shape, state)
    groups = []
    for step in range(4):
        frames, state = codec.decode_step(latents[:, step], state)
        assert jax.tree.map(jnp.shape, state) == shapes
        groups.append(frames)
    streamed = np.concatenate(groups, axis=1)[:, 3:]
    whole = codec.decode(latents)
    assert whole.shape == video.shape
    np.testing.assert_allclose(streamed, whole, rtol=0, atol=2e-6)


def test_later_frames_do_not_reach_earlier_latents_but_earlier_ones_reach_later(codec, video):
    before = codec.encode(video)
    changed = codec.encode(video.at[:, 5:9].set(0.5))
    np.testing.assert_array_equal(changed[:, :2], before[:, :2])
    assert float(jnp.abs(changed[:, 2] - before[:, 2]).max()) > 1e-2
    assert float(jnp.abs(changed[:, 3] - before[:, 3]).max()) > 1e-4


def test_later_latents_do_not_reach_earlier_frames_but_earlier_ones_reach_later(codec, video):
    latents = codec.encode(video)
    before = codec.decode(latents)
    changed = codec.decode(latents.at[:, 2].set(0.0))
    np.testing.assert_array_equal(changed[:, :5], before[:, :5])
    assert float(jnp.abs(changed[:, 5:9] - before[:, 5:9]).max()) > 1e-2
    assert float(jnp.abs(changed[:, 9:] - before[:, 9:]).max()) > 1e-4


def test_views_are_separate_streams(codec, video):
    views = jnp.stack([video, video[:, ::-1]], axis=1)
    latents = codec.encode(views)
    assert latents.shape == (2, 2, 4, 3, 4, 8)
    np.testing.assert_allclose(latents[:, 0], codec.encode(video), rtol=0, atol=2e-6)
    assert codec.decode(latents).shape == views.shape
    state = codec.initial_encode_state((2, 2), 3, 4)
    latent, state = codec.encode_step(views[:, :, :1], state)
    assert state["eighth"].shape[:2] == (2, 2)
    np.testing.assert_allclose(latent, latents[:, :, 0], rtol=0, atol=2e-6)


def test_one_frame_is_a_clip(codec, video):
    latents = codec.encode(video[:, :1])
    assert latents.shape == (2, 1, 3, 4, 8)
    assert codec.decode(latents).shape == (2, 1, 24, 32, 3)


def test_latents_are_normalised_by_the_stored_statistics(codec, video):
    plain = VideoCodec(
        CONFIG, codec.params | {"latent_mean": jnp.zeros(8), "latent_std": jnp.ones(8)}
    )
    raw, latents = plain.encode(video), codec.encode(video)
    expected = (raw - codec.params["latent_mean"]) / codec.params["latent_std"]
    np.testing.assert_allclose(latents, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(codec.decode(latents), plain.decode(raw), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 4, 16, 16, 3), r"1 \+ 4k frames.*T = 4; keep the first 1"),
        ((1, 0, 16, 16, 3), r"T = 0"),
        ((1, 5, 20, 16, 3), r"multiples of 8.*H = 20, W = 16"),
        ((1, 5, 16, 30, 3), r"multiples of 8.*H = 16, W = 30"),
    ],
)
def test_impossible_videos_are_named(codec, shape, message):
    with pytest.raises(ValueError, match=message):
        codec.encode(jnp.zeros(shape))


def test_bytes_wrong_groups_and_foreign_latents_are_named(codec):
    with pytest.raises(ValueError, match="uint8; divide by 255"):
        codec.encode(np.zeros((1, 5, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="got 3"):
        codec.encode_step(jnp.zeros((1, 3, 16, 16, 3)), codec.initial_encode_state(1, 2, 2))
    with pytest.raises(ValueError, match=r"8 latent channels.*have 16"):
        codec.decode(jnp.zeros((1, 1, 2, 2, 16)))


def test_every_parameter_names_its_axes():
    assert unnamed_leaves(boxed_params()) == []


def test_saved_codec_decodes_the_same_and_a_foreign_one_is_refused(codec, video, tmp_path):
    codec.save_pretrained(tmp_path / "codec", card="# Random codec")
    loaded = VideoCodec.from_pretrained(tmp_path / "codec")
    assert loaded.config == CONFIG
    assert (tmp_path / "codec" / "card.md").read_text().startswith("# Random codec")
    np.testing.assert_allclose(loaded.encode(video), codec.encode(video), rtol=0, atol=5e-2)
    again = VideoCodec.from_pretrained(tmp_path / "codec")
    np.testing.assert_array_equal(again.encode(video), loaded.encode(video))
    wider = CodecConfig(latent_channels=8, half_width=32, quarter_width=16, eighth_width=16)
    save_model(tmp_path / "other", "codec", "custom", wider, codec.params, "# Wrong")
    with pytest.raises(DataError, match="should have shape"):
        VideoCodec.from_pretrained(tmp_path / "other")


@pytest.mark.parametrize(("rung", "least"), [("easy", 28.0), ("full", 26.0)])
def test_shipped_codec_reaches_its_quality_on_unseen_streets(rung, least):
    shipped = VideoCodec.from_pretrained("tiny")
    clips = [make_clip(1_000_100 + i, rung, 9, views=("front",)) for i in range(3)]
    scores = [clip_psnr(shipped.config, shipped.params, clip.view(0))[0] for clip in clips]
    assert np.mean(scores) >= least, scores


def test_shipped_latents_have_about_unit_variance():
    shipped = VideoCodec.from_pretrained("tiny")
    clips = [make_clip(1_000_200 + i, "full", 9, views=("front",)) for i in range(3)]
    latents = shipped.encode(np.stack([c.view(0) for c in clips]).astype(np.float32) / 255.0)
    assert 0.7 < float(latents.std()) < 1.3
    assert (latents.shape[-1], latents.shape[-3:-1]) == (32, (12, 20))
