"""What `jwm demo` writes: videos, the scene, summary.json and report.html."""

import json
import shlex
import time
from pathlib import Path

import numpy as np

from jwm_jax.cli.demo_work import CONTEXT_EVERY, Future, Seen, lacking
from jwm_jax.evaluation.images import psnr
from jwm_jax.export.chart import Series
from jwm_jax.export.pictures import error_picture
from jwm_jax.export.report import Headline, Report
from jwm_jax.export.video import write_video
from jwm_jax.files import write_whole
from jwm_jax.scene import Clip, color_depth

SUMMARY_VERSION = 1

GENERATED = ("with the scene", "without")
"""Rows of the future that the generator made."""


def write_report(
    out: Path, options, clip: Clip, seen: Seen, future: Future, seconds: dict, began: float
) -> dict:
    """Write everything to a folder.

    Args:
        out: An existing folder.
        options: Of the verb.
        clip: The drive.
        seen: The reconstruction.
        future: The generated future.
        seconds: By step.
        began: When the verb started, on `time.perf_counter`'s clock.

    Returns:
        The summary that was written, with a headline.
    """
    rate = clip.rate
    seen.scene.save_ply(out / "scene.ply")
    seen.scene.save(out / "scene.npz")
    for left, video in seen.shifted.items():
        write_video(out / f"lane_shift_{left:+.0f}m.mp4", video, rate)
    write_video(out / "frozen_camera.mp4", seen.frozen, rate)
    for name in GENERATED:
        if name in future.rows:
            write_video(out / f"future_{name.replace(' ', '_')}.mp4", future.rows[name], rate)
    summary = _summary(options, clip, seen, future, seconds)
    report = _report(options, clip, seen, future, summary)
    summary["seconds"]["Total"] = round(time.perf_counter() - began, 2)
    report.section("Time").timings(summary["seconds"])
    report.section("What to try next").commands(
        [
            "jwm demo --clip kitti:PATH       # the same on a real drive",
            "jwm demo --clip folder:PATH      # or on your own pictures and calibration",
            f"jwm generate {shlex.quote(options.clip)} --seed {options.seed + 1}",
            "jwm evaluate worldgen            # scores with their protocol",
            "jwm train worldrec_easy_tiny --dry-run   # what training it yourself takes",
        ]
    )
    report.write(out / "report.html")
    write_whole(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _summary(options, clip: Clip, seen: Seen, future: Future, seconds: dict) -> dict:
    held = _held_out(seen)
    at = _horizons(len(future.rows["truth"]), clip.rate)
    shifted = {
        f"{left:+.0f} m": round(psnr(seen.shifted[left], truth), 2)
        for left, truth in seen.shifted_truth.items()
    }
    scored = [
        f"{future.psnr[name].mean():.1f} dB {name}" for name in GENERATED if name in future.psnr
    ]
    return {
        "format_version": SUMMARY_VERSION,
        "clip": options.clip,
        "frames": clip.num_frames,
        "views": clip.num_views,
        "gaussians": seen.scene.gaussians.count(),
        "reconstruction": {
            "context": f"every {CONTEXT_EVERY}th instant" if clip.posed else "the first instant",
            "psnr_held_out": None if held is None else round(held, 2),
            "psnr_lane_shift": shifted,
            "seconds": round(seen.seconds, 3),
            "left_out": seen.left_out,
            "lacking": lacking(clip),
        },
        "future": {
            "steps": future.plain.metrics["steps"],
            "seed": options.seed,
            "psnr": {
                name: {label: round(float(v[i]), 2) for label, i in at.items()}
                for name, v in future.psnr.items()
            },
            "seconds_per_chunk": round(future.chunk_seconds, 3),
        },
        "seconds": dict(seconds),
        "headline": (
            ("" if held is None else f"Reconstruction of held-out instants: {held:.1f} dB. ")
            + f"Generated future: {', '.join(scored)} "
            f"(mean over {len(future.rows['truth'])} frames of one drive)."
        ),
    }


def _report(options, clip: Clip, seen: Seen, future: Future, summary: dict) -> Report:
    rate = clip.rate
    report = Report(
        "A drive, reconstructed and continued",
        "WorldRec turned the drive into 3D Gaussians; WorldGen generated its future in "
        f"{future.plain.metrics['steps']} denoising steps for each 0.4 s, "
        + ("with and without the scene to hold it straight. " if clip.posed else "by itself. ")
        + "Every number here was measured on this drive in this run.",
        {
            "drive": options.clip,
            "frames": clip.num_frames,
            "views": clip.num_views,
            "size": f"{seen.truth.shape[2]}x{seen.truth.shape[1]}",
            "seed": options.seed,
        },
    )
    frames = len(future.rows["truth"])
    held, headlines = _held_out(seen), []
    if held is not None:
        what = f"PSNR, {int(seen.held_out.sum())} frames of the front view"
        headlines.append(
            Headline(f"{held:.1f} dB", "reconstruction, instants it did not see", what)
        )
    headlines += [
        Headline(
            f"{future.psnr[name].mean():.1f} dB",
            f"future, {name}",
            f"PSNR, mean of {frames} frames",
        )
        for name in GENERATED
        if name in future.psnr
    ]
    instants = -(-clip.num_frames // CONTEXT_EVERY) if clip.posed else 1
    headlines.append(
        Headline(
            f"{summary['gaussians']:,}",
            "Gaussians in scene.ply and scene.npz",
            f"from {instants * clip.num_views} picture(s)",
        )
    )
    report.headlines(headlines)
    report.warnings([*lacking(clip), *seen.left_out])
    _reconstruction(report, clip, seen, rate)
    _future(report, future, rate)
    return report


def _reconstruction(report: Report, clip: Clip, seen: Seen, rate: float) -> None:
    made = (
        f"The scene was made from every {CONTEXT_EVERY}th instant of {clip.num_views} view(s); the "
        "instants between were held out."
        if clip.posed
        else "The scene was made from the first instant."
    )
    report.section("Reconstruction", f"{made} It took {seen.seconds:.2f} s once compiled.")
    report.videos(
        [
            (seen.truth, "The drive, front view"),
            (seen.rendered, "The scene from the same places"),
            (color_depth(seen.depth), "Its depth: near is warm, far is blue"),
        ],
        rate,
    )
    shown = np.flatnonzero(seen.held_out) if seen.held_out.any() else np.arange(len(seen.truth))
    middle = shown[len(shown) // 2]
    report.figures(
        [
            (seen.truth[middle], "Held-out instant, truth" if clip.posed else "Truth"),
            (seen.rendered[middle], f"Scene, {seen.psnr[middle]:.1f} dB"),
            (error_picture(seen.rendered[middle], seen.truth[middle]), "Error"),
        ]
    )
    report.section("Places where nobody drove")
    videos = []
    for left, video in seen.shifted.items():
        side = "left" if left > 0 else "right"
        videos.append((video, f"{abs(left):.0f} m further {side}"))
        if left in seen.shifted_truth:
            truth = seen.shifted_truth[left]
            videos.append((truth, f"What was really there ({psnr(video, truth):.1f} dB)"))
    videos.append((seen.frozen, "Standing still while time plays"))
    report.videos(videos, rate)


def _future(report: Report, future: Future, rate: float) -> None:
    rows = future.rows
    report.section(
        "The future",
        "From the first picture alone, WorldGen generates what comes next"
        + ("" if future.joint is None else " along the drive's poses")
        + ("" if future.layout is None else " and boxes")
        + "."
        + (
            ""
            if future.joint is None
            else " With the scene, it also sees what the reconstruction of that one instant shows "
            "at each new pose."
        )
        + " This is few-step sampling of the teacher-forced model, not of a distilled one.",
    )
    videos = [(rows["truth"], "What came")]
    if future.joint is not None:
        videos.append((rows["with the scene"], "Generated with the scene"))
    videos.append((rows["without"], "Generated without"))
    if future.joint is not None:
        videos.append((future.joint.prior[:, 0], "What the scene showed the generator"))
    if future.layout is not None:
        videos.append((future.layout, "What the generator was told: boxes and lanes"))
    report.videos(videos, rate)
    at = _horizons(len(rows["truth"]), rate)
    names = ("truth", "with the scene", "without", "scene alone", "codec")
    names = [name for name in names if name in rows]
    report.strip({n: [rows[n][i] for i in at.values()] for n in names}, list(at))
    seconds = (np.arange(len(rows["truth"])) + 1) / rate
    dashed = ("first frame", "codec", "scene alone")
    report.chart(
        [Series(n, seconds, v, dashed=n in dashed) for n, v in future.psnr.items()],
        "seconds after the first picture",
        "PSNR against the drive, dB",
        "Closer to the drive is higher. The codec's own line is the ceiling.",
    )
    report.table(
        ["", *at],
        [[n, *(f"{v[i]:.1f} dB" for i in at.values())] for n, v in future.psnr.items()],
        "PSNR of single frames of this one drive.",
    )
    report.text(
        f"Generating 0.4 s of video took {future.chunk_seconds:.2f} s on this machine, compiled."
    )


def _held_out(seen: Seen) -> float | None:
    """Mean PSNR in dB of the frames that WorldRec did not see; None if it saw all."""
    return float(seen.psnr[seen.held_out].mean()) if seen.held_out.any() else None


def _horizons(frames: int, rate: float) -> dict[str, int]:
    """Frame index by label for some moments, as far as the future goes."""
    wanted = {f"{s:g} s": round(s * rate) - 1 for s in (0.4, 0.8, 1.0, 1.6, 2.0, 2.4)}
    return {label: i for label, i in wanted.items() if 0 <= i < frames} or {"end": frames - 1}
