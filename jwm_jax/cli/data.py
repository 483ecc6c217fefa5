"""`jwm data make` and `jwm data check`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jwm_jax.cli.options import ClipSpec, Common, Writing, check_numbers
from jwm_jax.cli.output import claim, say_next
from jwm_jax.errors import DataError
from jwm_jax.files import write_whole


@dataclass(frozen=True, kw_only=True)
class CheckOptions(Writing):
    """Draw a drive's lidar and boxes over its images, and say what is wrong with it.

    Leaves with exit code 3 if the drive is broken.

    Example: jwm data check procedural:easy:0 --out check
    """

    clip: ClipSpec
    """FORMAT:WHERE, such as kitti:PATH, nuscenes:PATH, folder:PATH or procedural:easy:0."""
    frames: int = 6
    """Most instants to draw, spread evenly."""


@dataclass(frozen=True, kw_only=True)
class MakeOptions(Common):
    """Build a data set of procedural streets: pictures, depth, boxes, lane map and lidar.

    Seeds below 1,000,000 are streets to train on, others to test on. The same command with the same
    --out continues one that was stopped.

    Example: jwm data make --rung easy --clips 4 --frames 9 --out streets
    """

    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """A new folder; without it, the next numbered folder under runs/."""
    rung: Literal["easy", "full", "photo"] = "easy"
    """Flat colours and few actors, or everything, or that with photographs of $JWM_DATA on it."""
    clips: int = 100
    """How many."""
    first_seed: int = 0
    """Of the first clip; the others follow."""
    frames: int = 25
    """Instants a clip."""
    rate: float = 10.0
    """Instants a second."""
    height: int = 96
    """Rows of a picture."""
    width: int = 160
    """Columns of a picture."""
    views: tuple[str, ...] = ("front_left", "front", "front_right")
    """Cameras of the rig."""
    image_format: Literal["jpeg", "png"] = "jpeg"
    """JPEG of quality 95, or lossless."""
    workers: int = 2
    """Processes that render."""


def make(options: MakeOptions) -> None:
    """Run `jwm data make`."""
    claimed = claim(options.out, "streets", overwrite=None)
    from jwm_jax.cli.progress import counting
    from jwm_jax.data.streets.make import StreetsConfig, make_dataset

    own = {"out", "verbose"}
    fields = {k: v for k, v in vars(options).items() if k not in own}
    config = StreetsConfig(**fields)
    with claimed.made() as folder:
        print(f"Making {options.clips} clips in {folder}", flush=True)
        with counting("Rendering clips") as report:
            make_dataset(folder, config, report)
    print(f"{options.clips} clips of {options.frames} frames: {folder}")
    spec = f"dataset:{folder}"
    say_next(("jwm", "data", "check", spec), ("jwm", "demo", "--clip", spec))


def check(options: CheckOptions) -> None:
    """Run `jwm data check`.

    Raises:
        DataError: The drive is broken; the message says how many errors there are.
    """
    check_numbers(1, frames=options.frames)
    folder = claim(options.out, "check", overwrite=options.overwrite)
    from jwm_jax.data import load_clip
    from jwm_jax.data.checks import MIN_FRAMES, check_clip
    from jwm_jax.data.contact_sheet import clip_sheet, describe

    clip = load_clip(options.clip, check=False)
    findings = check_clip(clip)
    for line in describe(clip):
        print(line)
    for finding in findings:
        print(f"{finding.severity}: {finding.message}")
    errors = [f for f in findings if f.severity == "error"]
    if errors:
        raise DataError(
            f"{options.clip}: {len(errors)} error{'s' * (len(errors) > 1)} in {clip.name}, listed "
            "above; nothing was drawn."
        )
    from jwm_jax.export import picture_bytes

    sheet = picture_bytes(clip_sheet(clip, options.frames), "png")
    with folder.made() as out:
        path = write_whole(out / "check.png", sheet)
    print(f"{'no problems found' if not findings else 'no errors'}; drawn on {path}")
    demo = [("jwm", "demo", "--clip", options.clip)] if clip.num_frames >= MIN_FRAMES else []
    say_next(("jwm", "reconstruct", options.clip), *demo)
