"""What `jwm demo` writes: a report complete in itself, a summary, the scene and videos."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from jwm_jax.cli.demo import Options, front_view
from jwm_jax.cli.demo_report import write_report
from jwm_jax.cli.demo_work import Future, Seen
from jwm_jax.cli.output import left_out
from jwm_jax.joint import Rollout
from jwm_jax.scene import EGO_FROM_OPENCV, Clip, Intrinsics, Scene, make_gaussians

FRAMES, HEIGHT, WIDTH = 9, 16, 32
RNG = np.random.default_rng(0)


def video(frames=FRAMES):
    return RNG.random((frames, HEIGHT, WIDTH, 3)).astype(np.float32)


def clip():
    poses = np.broadcast_to(np.eye(4), (FRAMES, 4, 4))
    return Clip(
        images=(np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.uint8),),
        times=0.1 * np.arange(FRAMES)[:, None],
        world_from_ego=poses,
        world_from_camera=(poses @ EGO_FROM_OPENCV)[:, None],
        cameras=(Intrinsics(np.eye(3), WIDTH, HEIGHT),),
        view_names=("front",),
    )


def seen():
    gaussians = make_gaussians(
        means=np.ones((3, 3), np.float32),
        colors=np.full((3, 3), 0.5, np.float32),
        scales=np.full((3, 3), 0.1, np.float32),
        opacities=np.full(3, 0.9, np.float32),
    )
    return Seen(
        scene=Scene(gaussians),
        truth=video(),
        rendered=video(),
        depth=np.full((FRAMES, HEIGHT, WIDTH), 5.0, np.float32),
        shifted={2.0: video(), -2.0: video()},
        shifted_truth={2.0: video()},
        frozen=video(),
        psnr=np.full(FRAMES, 21.5),
        held_out=np.arange(FRAMES) % 4 != 0,
        seconds=0.5,
        left_out=left_out(30, 24, 17),
    )


def future():
    frames = FRAMES - 1
    names = ("with the scene", "without", "scene alone", "first frame", "codec")
    rollout = Rollout(
        frames=np.zeros((frames, 1, HEIGHT, WIDTH, 3), np.uint8),
        times=0.1 * np.arange(1, FRAMES),
        prior=np.zeros((frames, 1, HEIGHT, WIDTH, 3), np.uint8),
        metrics={"steps": 4},
    )
    return Future(
        rows={"truth": video(frames)} | {n: video(frames) for n in names},
        psnr={n: np.linspace(25, 20 + i, frames) for i, n in enumerate(names)},
        layout=None,
        joint=rollout,
        plain=rollout,
        chunk_seconds=0.1,
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    options = Options(clip="folder:<script>alert(1)</script>")
    summary = write_report(
        out, options, clip(), seen(), future(), {"Load": 1.0}, time.perf_counter()
    )
    return out, summary


def test_everything_promised_is_there(written):
    out, _ = written
    names = {p.name for p in out.iterdir()}
    assert {"report.html", "scene.ply", "scene.npz", "summary.json"} <= names
    assert {p.rsplit(".", 1)[0] for p in names} >= {
        "lane_shift_+2m",
        "lane_shift_-2m",
        "frozen_camera",
        "future_with_the_scene",
        "future_without",
    }


def test_the_report_needs_nothing_from_outside_and_escapes(written):
    page = (written[0] / "report.html").read_text()
    assert "http://" not in page and "https://" not in page and 'src="//' not in page
    assert "<script" not in page and "&lt;script&gt;" in page
    assert page.count("<video") + page.count("image/webp") >= 8


def test_what_was_left_out_is_said(written):
    text = (written[0] / "report.html").read_text()
    assert "Of 30 boxes only the 24 nearest move" in text
    assert "17 pairs of Gaussian and tile did not fit" in text
    assert left_out(24, 24, 0) == []


def test_the_summary_says_what_was_measured(written):
    out, summary = written
    read = json.loads((out / "summary.json").read_text())
    assert read["reconstruction"]["psnr_held_out"] == 21.5
    assert read["future"]["psnr"]["codec"]["0.4 s"] == pytest.approx(24.57, abs=0.01)
    assert set(read["reconstruction"]["psnr_lane_shift"]) == {"+2 m"}
    assert read["seconds"]["Total"] >= 0 and read == summary | {"headline": read["headline"]}


def test_of_a_film_there_is_one_instant_and_a_future_without_a_scene(tmp_path):
    film, sight, ahead = replace(clip(), posed=False), seen(), future()
    sight = replace(sight, truth=video(1), rendered=video(1), held_out=np.zeros(1, bool))
    rows = {n: v for n, v in ahead.rows.items() if "scene" not in n}
    ahead = replace(
        ahead, joint=None, rows=rows, psnr={n: v for n, v in ahead.psnr.items() if n in rows}
    )
    options = Options(clip="video:my.mp4")
    summary = write_report(tmp_path, options, film, sight, ahead, {}, time.perf_counter())
    assert summary["reconstruction"]["psnr_held_out"] is None
    assert "held-out" not in summary["headline"] and "dB without (mean" in summary["headline"]
    assert not (tmp_path / "future_with_the_scene.mp4").exists()
    page = (tmp_path / "report.html").read_text()
    assert "The drive has no poses: one instant of it was reconstructed" in page
    assert "The drive has no lidar: depth is the network" in page


def test_the_front_view_is_found_by_name():
    assert front_view(("front_left", "front", "front_right")) == 1
    assert front_view(("CAM_BACK", "CAM_FRONT")) == 1
    assert front_view(("a", "b")) == 0
