"""`jwm demo`: the whole path on one drive, from pictures to a scene, a future and a report."""

import time
from dataclasses import dataclass, replace

from jwm_jax.cli.options import Writing, check_numbers
from jwm_jax.cli.output import claim, say_next

STREET = "procedural:full:1000003?frames={frames}&views={views}"
VIEWS = "front_left,front,front_right"
SHORT_FRAMES = 9


@dataclass(frozen=True, kw_only=True)
class Options(Writing):
    """Reconstruct a drive, generate its future with and without the scene, and write a report.

    Needs no download and no training: without --clip it draws a street of its own, and the models
    come with the package. Writes report.html, scene.ply, summary.json and the videos.

    Example: jwm demo --out demo
    """

    clip: str | None = None
    """FORMAT:WHERE, such as kitti:PATH, folder:PATH or procedural:easy:0; 9 frames or more. If not
    given, a street that no model was trained on."""
    rec: str = "tiny"
    """WorldRec: a name that comes with the package, or a model directory."""
    gen: str = "tiny"
    """WorldGen: a name that comes with the package, or a model directory."""
    steps: int | None = None
    """Denoising steps for each 0.4 s; by default as many as the model is made for."""
    seed: int = 0
    """Of the generator's noise."""
    frames: int = 25
    """Most frames of the drive to use."""
    short: bool = False
    """A quick look: nine frames and one view."""


def run(options: Options) -> None:
    """Run `jwm demo`."""
    check_numbers(1, steps=options.steps, frames=options.frames)
    folder = claim(options.out, "demo", overwrite=options.overwrite)
    began = time.perf_counter()
    most = SHORT_FRAMES if options.short else options.frames
    if options.clip is None:
        views = "front" if options.short else VIEWS
        options = replace(options, clip=STREET.format(frames=most, views=views))
    from jwm_jax.cli.demo_report import write_report
    from jwm_jax.cli.demo_work import show_future, show_reconstruction
    from jwm_jax.data import load_clip
    from jwm_jax.data.checks import trim_frames
    from jwm_jax.data.thinning import thinned
    from jwm_jax.joint import JointWorldModel
    from jwm_jax.worldgen import WorldGen
    from jwm_jax.worldrec import WorldRec

    seconds = {}

    def step(name, work):
        print(f"{name} ...", flush=True)
        start = time.perf_counter()
        result = work()
        seconds[name] = round(time.perf_counter() - start, 2)
        return result

    seconds["Import"] = round(time.perf_counter() - began, 2)
    clip = step("Load the drive", lambda: load_clip(options.clip))
    clip = trim_frames(thinned(clip), most)
    front = front_view(clip.view_names)
    if options.short:
        clip, front = clip.select(views=[front]), 0
    world = step(
        "Load the models",
        lambda: JointWorldModel(
            WorldRec.from_pretrained(options.rec), WorldGen.from_pretrained(options.gen)
        ),
    )
    seen = step(
        "Reconstruct the drive and look around",
        lambda: show_reconstruction(world.rec, clip, front, options.clip),
    )
    future = step(
        "Generate the future",
        lambda: show_future(world, clip.select(views=[front]), options.steps, options.seed),
    )
    with folder.made() as out:
        summary = write_report(out, options, clip, seen, future, seconds, began)
    print(f"\n{summary['headline']}")
    print(f"Report: {out / 'report.html'}")
    say_next(
        "jwm demo --clip kitti:PATH",
        ["jwm", "reconstruct", options.clip],
        ["jwm", "generate", options.clip, "--seed", str(options.seed + 1)],
    )


def front_view(names: tuple[str, ...]) -> int:
    """The view that looks ahead: the one named front, or the first."""
    lowered = [n.lower() for n in names]
    for name in ("front", "cam_front", "image_02"):
        if name in lowered:
            return lowered.index(name)
    return 0
