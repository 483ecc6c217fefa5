"""`jwm reconstruct`: a drive in; Gaussians and views from places nobody drove out."""

import json
import time
from dataclasses import dataclass
from typing import Literal

from jwm_jax.cli.options import ClipSpec, Writing, check_numbers
from jwm_jax.cli.output import claim, left_out, say_next
from jwm_jax.files import write_whole

LANE_SHIFT = 2.0
"""Metres to either side of where the drive was."""


@dataclass(frozen=True, kw_only=True)
class Options(Writing):
    """Reconstruct a drive as 3D Gaussians and look at it from new places.

    Writes scene.ply (for any 3D Gaussian splatting viewer), scene.npz (everything, with motion and
    sky), videos of the drive two metres further left and right and of a frozen camera with time
    playing, and views.png.

    Example: jwm reconstruct procedural:easy:0 --out scene
    """

    clip: ClipSpec
    """FORMAT:WHERE, such as kitti:PATH, nuscenes:PATH, folder:PATH or procedural:easy:0."""
    rec: str = "tiny"
    """WorldRec: a name that comes with the package, or a model directory."""
    depth: Literal["lidar", "given", "network"] = "lidar"
    """Where depth comes from: lidar where the drive has it, the drive's own depth maps, or the
    network's estimate."""
    frames: int = 16
    """Most instants to reconstruct from, spread evenly over the drive."""
    video_frames: int = 24
    """Most frames of a video."""


def run(options: Options) -> None:
    """Run `jwm reconstruct`."""
    check_numbers(1, frames=options.frames, video_frames=options.video_frames)
    folder = claim(options.out, "reconstruct", overwrite=options.overwrite)
    import jax
    import numpy as np

    from jwm_jax.data import load_clip
    from jwm_jax.data.checks import MIN_FRAMES

    clip = load_clip(options.clip)
    from jwm_jax.worldrec import GivenDepth, WorldRec, measured_depth
    from jwm_jax.worldrec.pictures import resized_for

    rec = WorldRec.from_pretrained(options.rec)
    clip = resized_for(rec.config, clip)
    context = _spread(clip.num_frames, options.frames)
    print(
        f"Reconstructing {clip.name} from {len(context)} of {clip.num_frames} frames and "
        f"{clip.num_views} view{'s' * (clip.num_views > 1)}",
        flush=True,
    )
    start = time.perf_counter()
    seen = clip.select(context)
    source = measured_depth(seen) if options.depth == "lidar" else None
    source = GivenDepth() if options.depth == "given" else source
    scene = jax.block_until_ready(rec(seen, source))
    seconds = time.perf_counter() - start
    count = int(np.asarray(scene.gaussians.mask).sum())
    print(f"{count} Gaussians in {seconds:.1f} s, compilation included", flush=True)

    videos, overflow = _render_all(scene, clip, _spread(clip.num_frames, options.video_frames))
    things = 0 if clip.tracks is None else clip.tracks.num_tracks
    missing = left_out(things, rec.config.max_tracks, overflow)
    for sentence in missing:
        print(sentence)
    with folder.made() as out:
        scene.save_ply(out / "scene.ply")
        scene.save(out / "scene.npz")
        written = _write_pictures(out, videos, clip.rate)
        summary = {
            "clip": options.clip,
            "frames": context,
            "views": list(clip.view_names),
            "gaussians": count,
            "reconstruct_seconds": round(seconds, 2),
            "left_out": missing,
            "files": ["scene.ply", "scene.npz", *written],
        }
        write_whole(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    print(f"{out}: {', '.join(summary['files'])}")
    future = [("jwm", "generate", options.clip)] if clip.num_frames >= MIN_FRAMES else []
    say_next(*future, ("jwm", "data", "check", options.clip))


def _spread(have: int, most: int) -> list[int]:
    """Indices of at most `most` frames, the first and last among them."""
    import numpy as np

    return np.unique(np.linspace(0, have - 1, min(have, most)).round().astype(int)).tolist()


def _render_all(scene, clip, frames) -> tuple[dict, int]:
    """Videos [F, h, w, 3] in [0, 1] by name, several views as a mosaic, and what did not fit."""
    import numpy as np

    from jwm_jax.cli.progress import track
    from jwm_jax.export import rig_mosaic
    from jwm_jax.scene import Camera

    overflow = 0

    def picture(t, still, shift):
        nonlocal overflow
        pose = frames[0] if still else t
        views = []
        for v in range(clip.num_views):
            camera = clip.camera(pose, v)
            moved = np.array(camera.world_from_camera, np.float32)
            moved[:3, 3] += shift * clip.world_from_ego[pose, :3, 1].astype(np.float32)
            time_now = np.float32(clip.times[t, v] - scene.start)
            drawn = scene.render(Camera(camera.intrinsics, moved), time_now)
            overflow += int(drawn.overflow)
            views.append(np.asarray(drawn.rgb))
        return rig_mosaic(views, clip.view_names)

    plans = {
        "recorded poses": (False, 0.0),
        "left 2 m": (False, LANE_SHIFT),
        "right 2 m": (False, -LANE_SHIFT),
        "frozen camera": (True, 0.0),
    }
    jobs = [(name, t) for name in plans for t in frames]
    videos = {name: [] for name in plans}
    for name, t in track(jobs, "Rendering"):
        videos[name].append(picture(t, *plans[name]))
    videos = {name: np.stack(pictures) for name, pictures in videos.items()}
    recorded = [[clip.view(v)[t] for v in range(clip.num_views)] for t in frames]
    videos["recorded"] = np.stack([rig_mosaic(views, clip.view_names) for views in recorded])
    return videos, overflow


def _write_pictures(out, videos: dict, rate: float) -> list[str]:
    """Write a video of each name (a picture where there is one frame) and views.png."""
    import numpy as np

    from jwm_jax.export import picture_bytes, write_video
    from jwm_jax.scene import contact_sheet

    names = []
    for name, frames in videos.items():
        stem = name.replace(" ", "_")
        if len(frames) == 1:
            write_whole(out / f"{stem}.png", picture_bytes(frames[0], "png"))
            names.append(f"{stem}.png")
        else:
            names.append(write_video(out / f"{stem}.mp4", frames, rate or 10.0).name)
    order = ("recorded", "recorded poses", "left 2 m", "right 2 m", "frozen camera")
    chosen = np.unique(np.linspace(0, len(videos["recorded"]) - 1, 4).round().astype(int))
    rows = [[videos[name][t] for t in chosen] for name in order]
    write_whole(out / "views.png", picture_bytes(contact_sheet(rows, order), "png"))
    return [*names, "views.png"]
