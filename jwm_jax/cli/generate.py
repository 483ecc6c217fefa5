"""`jwm generate`: the future of a drive, as video."""

from dataclasses import dataclass

from jwm_jax.cli.options import ClipSpec, Writing, check_numbers
from jwm_jax.cli.output import claim, say_next
from jwm_jax.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Options(Writing):
    """Generate what follows the first frames of a drive, along the drive's own trajectory.

    Writes rollout.mp4, the frames with their conditions as rollout.npz, metrics.json, and the scene
    that served as prior.

    Example: jwm generate procedural:easy:0 --out future
    """

    clip: ClipSpec
    """FORMAT:WHERE, such as kitti:PATH, folder:PATH or procedural:easy:0; 9 frames or more."""
    rec: str = "tiny"
    """WorldRec: a name that comes with the package, or a model directory."""
    gen: str = "tiny"
    """WorldGen: a name that comes with the package, or a model directory."""
    seen: int = 1
    """First frames of the drive that the models are shown; the future begins after them."""
    frames: int | None = None
    """Most frames of the drive to use, the seen ones among them; all by default."""
    steps: int | None = None
    """Denoising steps for each 0.4 s; by default as many as the model is made for."""
    seed: int = 0
    """Of the noise."""
    prior: bool = True
    """Let the reconstructed scene guide the generator."""


def run(options: Options) -> None:
    """Run `jwm generate`.

    Raises:
        UsageError: A number is out of range.
        DataError: The drive is broken or shorter than 9 frames.
    """
    check_numbers(1, steps=options.steps, frames=options.frames)
    folder = claim(options.out, "generate", overwrite=options.overwrite)
    from jwm_jax.data import load_clip
    from jwm_jax.data.checks import trim_frames
    from jwm_jax.data.thinning import thinned

    clip = trim_frames(thinned(load_clip(options.clip)), options.frames)
    from jwm_jax.joint import JointWorldModel
    from jwm_jax.scene import Trajectory
    from jwm_jax.worldgen import WorldGen
    from jwm_jax.worldrec import WorldRec

    gen = WorldGen.from_pretrained(options.gen)
    chunk = gen.config.frames_per_chunk
    if not 1 <= options.seen <= clip.num_frames - chunk:
        raise UsageError(
            f"--seen {options.seen}: expected 1 to {clip.num_frames - chunk}, so that at least one "
            f"chunk of {chunk} frames is left to generate."
        )
    world = JointWorldModel(WorldRec.from_pretrained(options.rec), gen)
    spare = (clip.num_frames - options.seen) % chunk
    ahead = slice(options.seen, clip.num_frames - spare)
    trajectory = Trajectory(clip.times[ahead, 0], clip.world_from_ego[ahead])
    if spare:
        print(f"Leaving out the last {spare} frames: the video model generates {chunk} at a time.")
    print(f"Generating {trajectory.num_frames} frames of {clip.name}", flush=True)
    prior = options.prior and clip.posed
    if options.prior and not prior:
        print(f"{clip.name} has no poses: its future is generated without scene and ego motion.")
    rollout = world.rollout(
        clip.select(slice(0, options.seen)),
        trajectory,
        seed=options.seed,
        steps=options.steps,
        use_prior=prior,
    )
    with folder.made() as out:
        rollout.save(out)
    print(f"{len(rollout.frames)} frames, as video and as arrays: {out}")
    other = ["--no-prior"] if prior else ["--seed", str(options.seed + 1)]
    say_next(
        ["jwm", "generate", options.clip, *other],
        ["jwm", "demo", "--clip", options.clip],
    )
