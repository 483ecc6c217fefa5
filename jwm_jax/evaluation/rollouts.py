"""Protocol `streets-rollout-v1`: a generated future against the procedural ground truth.

Streets of seeds that no training has seen, front view, 96x160 at 10 Hz. The model sees the first
instant with its lidar sweep, the ego poses and boxes of the next 2.4 s and the lane map; PSNR is
taken against the picture that the ray-caster draws for the same pose and time, at 0.4, 1 and 2 s
(frames 4, 10 and 20), and averaged over clips. Rows:

- `copy`: the first frame, held;
- `warp`: the first frame's prior alone (holes filled with the first frame);
- `no prior`, `prior`: 4-step sampling of the teacher-forced model;
- `codec`: the ground truth encoded and decoded, what a perfect generator could reach.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from jwm_jax.data.streets import FIRST_TEST_SEED, make_clip
from jwm_jax.evaluation.images import psnr
from jwm_jax.joint import JointWorldModel, KeyFrames, Rollout
from jwm_jax.scene import Clip, Trajectory

PROTOCOL = "streets-rollout-v1"

HORIZONS = (0.4, 1.0, 2.0)
"""Seconds after the last observed frame."""

FRAMES = 25
"""One observed frame and six chunks."""


def future_of(clip: Clip, observed: int = 1) -> Trajectory:
    """The poses that follow the clip's first `observed` instants."""
    return Trajectory(clip.times[observed:, 0], clip.world_from_ego[observed:])


def streets_of(rung: str, count: int) -> Iterator[Clip]:
    """The protocol's clips of one rung, made as they are used."""
    for i in range(count):
        yield make_clip(FIRST_TEST_SEED + i, rung, num_frames=FRAMES, views=("front",))


def evaluate_rollouts(
    world: JointWorldModel,
    clips: Iterable[Clip],
    *,
    steps: int | None = None,
    seed: int = 0,
    key_frame_every: int = 0,
) -> dict[str, dict[str, float]]:
    """PSNR of each row at each horizon, averaged over clips.

    Args:
        world: The joint model.
        clips: One-view clips of `FRAMES` frames with ground truth.
        steps: Denoising steps a chunk; the generator's own number if None.
        seed: Of the noise.
        key_frame_every: Chunks between key frames that go back into the scene of the row with the
            prior; 0 for none.

    Returns:
        Row to {"0.4 s": dB, ...}.
    """
    rows: dict[str, list[list[float]]] = {}
    for clip in clips:
        for name, frames in rollout_rows(
            world, clip, steps=steps, seed=seed, key_frame_every=key_frame_every
        ).items():
            rows.setdefault(name, []).append(_at_horizons(clip, frames))
    names = [f"{h:g} s" for h in HORIZONS]
    return {
        row: dict(zip(names, np.mean(values, axis=0).round(2).tolist(), strict=True))
        for row, values in rows.items()
    }


def rollout_rows(
    world: JointWorldModel, clip: Clip, *, steps: int | None, seed: int, key_frame_every: int = 0
) -> dict[str, np.ndarray]:
    """The futures that are compared: row to float pictures [F, H, W, 3] of the first view.

    Without poses there is no scene, and so neither "warp" nor "prior".
    """
    start, future = clip.select([0]), future_of(clip)
    plain = world.rollout(start, future, seed=seed, steps=steps, use_prior=False)
    truth = clip.view(0).astype(np.float32) / 255.0
    coded = np.asarray(world.gen.codec.decode(world.gen.codec.encode(truth[None])))[0, 1:]
    rows = {"copy": np.broadcast_to(truth[:1], truth[1:].shape)}
    alone = {"no prior": plain.frames[:, 0] / np.float32(255)}
    if not clip.posed:
        return rows | alone | {"codec": coded}
    key_frames = KeyFrames(key_frame_every) if key_frame_every else None
    joint = world.rollout(start, future, seed=seed, steps=steps, key_frames=key_frames)
    with_scene = {"prior": joint.frames[:, 0] / np.float32(255)}
    return rows | {"warp": warped(joint, truth[0])} | alone | with_scene | {"codec": coded}


def warped(rollout: Rollout, first: np.ndarray) -> np.ndarray:
    """The prior of the first view over the first frame, float [F, H, W, 3]."""
    alpha = rollout.prior_alpha[:, 0, ..., None] / np.float32(255)
    return rollout.prior[:, 0] / np.float32(255) + (1 - alpha) * first


def _at_horizons(clip: Clip, frames: np.ndarray) -> list[float]:
    truth = clip.view(0).astype(np.float32) / 255.0
    index = [round(h * clip.rate) for h in HORIZONS]
    return [float(psnr(frames[i - 1], truth[i])) for i in index]
