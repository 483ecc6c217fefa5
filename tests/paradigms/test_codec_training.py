"""Training the codec: its base, its data, its frozen parts, and the errors of its config."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_jax.distributed import MeshConfig, make_mesh
from jwm_jax.distributed.sharding import unbox
from jwm_jax.errors import DataError, UsageError
from jwm_jax.nn.conv import space_to_depth
from jwm_jax.nn.lpips import lpips_shapes
from jwm_jax.paradigms.codec import (
    CodecExperiment,
    CodecLoss,
    CodecTask,
    codec_loss,
    fit_linear_base,
    with_latent_statistics,
)
from jwm_jax.paradigms.codec_data import make_pool, sample_crops, sample_patches
from jwm_jax.training.start import frozen_params, layout, starting_params
from jwm_jax.worldgen.codec import VideoCodec
from jwm_jax.worldgen.codec_network import CodecConfig, frames_to_groups

CODEC = CodecConfig(latent_channels=8, half_width=16, quarter_width=16, eighth_width=16)


@pytest.fixture(scope="module")
def task():
    """A task on moving gradients, which a linear codec cannot keep whole."""
    random = np.random.default_rng(0)
    videos = []
    for _ in range(4):
        frequency, speed, phase = random.uniform(0.05, 0.3, (3, 3))
        t, y, x = np.meshgrid(np.arange(9), np.arange(48), np.arange(96), indexing="ij")
        wave = np.sin(frequency[0] * x[..., None] + speed * t[..., None] + phase * y[..., None])
        videos.append((127.5 + 127.5 * wave).astype(np.uint8))
    config = CodecExperiment(
        name="toy",
        batch_size=2,
        codec=CODEC,
        datasets=("streets",),
        dataset_shares=(1.0,),
        crop_height=16,
        crop_width=32,
        base_groups=20,
    )
    task = CodecTask(config)
    task.pools = make_pool({"streets": videos}, {"streets": 1.0}), {}
    return task


@pytest.fixture(scope="module")
def params(task):
    params = unbox(jax.jit(task.init)(jax.random.key(0)))
    return params | jax.tree.map(jnp.asarray, fit_linear_base(_patches(task), 8))


def _patches(task):
    return sample_patches(task.training, 20, 0)


def test_base_is_the_best_linear_codec_in_coordinates_of_unit_variance(task):
    patches = _patches(task)
    base = fit_linear_base(patches, 8)
    latents = (patches - base["base_mean"]) @ base["base_encode"]
    np.testing.assert_allclose(latents.std(axis=0), 1.0, rtol=1e-3)
    error = np.sum((latents @ base["base_decode"] + base["base_mean"] - patches) ** 2)
    singular = np.linalg.svd(patches - patches.mean(axis=0), compute_uv=False)
    np.testing.assert_allclose(error, np.sum(singular[8:] ** 2), rtol=1e-3)


def test_patches_lie_as_the_network_lays_them(task):
    crops = sample_crops(task.training, 3, 4, 48, 96, 0, 2**31).astype(np.float32) / 255.0
    crops[0] = crops[0, -1:]
    groups = frames_to_groups(jnp.asarray(crops))
    expected = space_to_depth(groups, 8).reshape(-1, 768)
    np.testing.assert_array_equal(sample_patches(task.training, 3, 0), expected)


def test_batches_depend_on_the_step_alone(task):
    ahead = task.batches(0, slice(0, 2))
    second = [next(ahead) for _ in range(2)][1]
    np.testing.assert_array_equal(next(task.batches(1, slice(0, 2))), second)
    np.testing.assert_array_equal(next(task.batches(1, slice(1, 2))), second[1:])
    assert second.shape == (2, 9, 16, 32, 3)


def test_gradients_reach_the_convolutions_and_neither_base_nor_statistics(task, params):
    video = jnp.asarray(next(task.batches(0, slice(0, 2)))) / 255.0
    gradient = jax.grad(lambda p: codec_loss(CODEC, CodecLoss(), p, video, jax.random.key(0))[0])(
        params
    )
    for name in ("base_mean", "base_encode", "base_decode", "latent_mean", "latent_std"):
        assert not np.any(gradient[name]), name
    moved = jax.tree.map(lambda leaf: bool(np.any(leaf)), gradient["encoder"] | gradient["decoder"])
    assert all(jax.tree.leaves(moved))


def test_statistics_whiten_the_latents_and_leave_the_decoded_video(task, params):
    params = jax.device_get(params)
    whitened = with_latent_statistics(CODEC, params, task.training, count=8)
    video = np.stack(task.training.videos["streets"]).astype(np.float32) / 255.0
    before, after = VideoCodec(CODEC, params), VideoCodec(CODEC, whitened)
    latents = after.encode(video)
    np.testing.assert_allclose(latents.std(axis=(0, 1, 2, 3)), 1.0, atol=0.35)
    np.testing.assert_allclose(
        after.decode(latents), before.decode(before.encode(video)), rtol=0, atol=1e-4
    )


def test_a_missing_dataset_names_the_command_that_makes_it(tmp_path):
    folder = str(tmp_path / "streets_full")
    config = CodecExperiment(name="x", datasets=(folder,), dataset_shares=(1.0,))
    with pytest.raises(DataError, match=r"streets_full: no .*jwm data make .*full.*--out"):
        next(config.task().batches(0, slice(0, 1)))


def test_impossible_settings_are_named():
    with pytest.raises(UsageError, match=r"datasets and dataset_shares .* 1 and 0"):
        CodecExperiment(name="x", datasets=("a",))
    with pytest.raises(UsageError, match=r"crop_frames must be 1 \+ 4k, got 8"):
        CodecExperiment(name="x", datasets=("a",), dataset_shares=(1.0,), crop_frames=8)


def test_lpips_joins_the_loss_by_its_weight_as_a_frozen_network(task, tmp_path):
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    tensors = {}
    for name, parts in lpips_shapes().items():
        kind, layer = name.split("_")
        module = f"AlexNet_0|Conv_{layer}" if kind == "conv" else f"NetLinLayer_{layer}|Conv_0"
        for part, shape in parts.items():
            values = 0.1 * random.random(shape.shape).astype(np.float32)
            tensors[f"{module}|{part}"] = values
    save_file(tensors, tmp_path / "lpips.safetensors")
    config = replace(
        task.config,
        codec=CODEC,
        loss=CodecLoss(lpips=0.5),
        lpips=str(tmp_path / "lpips.safetensors"),
        crop_height=48,
        crop_width=48,
    )
    judged = CodecTask(config)
    judged.pools = task.pools
    place = layout(config, judged, make_mesh(MeshConfig(data=1)))
    frozen = frozen_params(config, place)
    np.testing.assert_array_equal(
        frozen["lpips"]["conv_1"]["kernel"], tensors["AlexNet_0|Conv_1|kernel"]
    )
    params = starting_params(config, place, ["model"])["model"]
    batch = jnp.asarray(next(judged.batches(0, slice(0, 2))))
    (phase,) = judged.phases()
    (total, weight), metrics = jax.jit(phase.loss)(params, frozen, batch, jax.random.key(0))
    video = batch.astype(jnp.float32) / 255.0
    plain, _ = codec_loss(CODEC, CodecLoss(), params, video, jax.random.key(0))
    assert metrics["lpips"] > 0.0
    np.testing.assert_allclose(total / weight, plain + 0.5 * metrics["lpips"], rtol=1e-5)


def test_lpips_without_its_weights_is_refused(task, tmp_path):
    config = replace(task.config, loss=CodecLoss(lpips=0.5), lpips=str(tmp_path / "none"))
    with pytest.raises(DataError, match="no such file"):
        CodecTask(config).nets(config)
