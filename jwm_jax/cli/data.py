"""`jwm data make` and `jwm data check`."""

from dataclasses import dataclass

from jwm_jax.cli.options import ClipSpec, Writing
from jwm_jax.cli.output import claim, say_next
from jwm_jax.errors import DataError


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


def check(options: CheckOptions) -> None:
    """Run `jwm data check`.

    Raises:
        DataError: The drive is broken; the message says how many errors there are.
    """
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
    from PIL import Image

    path = folder.create() / "check.png"
    Image.fromarray(clip_sheet(clip, options.frames)).save(path)
    print(f"{'no problems found' if not findings else 'no errors'}; drawn on {path}")
    demo = [f"jwm demo --clip {options.clip}"] if clip.num_frames >= MIN_FRAMES else []
    say_next(f"jwm reconstruct {options.clip}", *demo)
