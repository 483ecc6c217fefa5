"""`jwm export --format stablehlo`: programs that a process without this package loads and runs."""

import json
import subprocess
import sys
from dataclasses import fields, replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_jax.cli.main import main
from jwm_jax.errors import UsageError
from jwm_jax.scene.cameras import Camera, Intrinsics
from jwm_jax.scene.scene import Scene
from jwm_jax.worldgen import Conditions, VideoCodec, WorldGen, WorldGenConfig
from jwm_jax.worldgen.codec_network import CodecConfig, CodecNetwork
from jwm_jax.worldrec import StageConfig, WorldRec, WorldRecConfig
from jwm_jax.worldrec.model import blank_pictures
from jwm_jax.worldrec.programs import BOXES

ROLL = """
import json, sys
import numpy as np
from jax import export

folder, given, made = sys.argv[1:]
weights = dict(np.load(f"{folder}/weights.npz"))
signature = json.load(open(f"{folder}/signature.json"))
programs = {n: export.deserialize(open(f"{folder}/{n}.stablehlo", "rb").read()) for n in signature}
arrays = dict(np.load(given))
assert set(signature["start"]["takes"][0]) | set(signature["step"]["takes"][1]) <= set(arrays)
taken = lambda kind, i: {n: arrays[n] for n in signature[kind]["takes"][i]}
first = taken("start", 0) | {n: arrays[n][:, :, :1] for n in ("layout", "prior", "prior_alpha")}
state = programs["start"].call(weights, first | {"ego_motion": arrays["ego_motion"][:, :1]})
chunks = []
for _ in range(2):
    frames, state = programs["step"].call(weights, state, taken("step", 1))
    chunks.append(frames)
np.save(made, np.concatenate(chunks, axis=2))
assert not [name for name in sys.modules if name.startswith(("jwm", "flax"))]
"""


@pytest.fixture(scope="module")
def gen(tmp_path_factory):
    """A small random generator and its folder."""
    codec = CodecConfig(latent_channels=4, half_width=4, quarter_width=4, eighth_width=4)
    blank = jnp.zeros((1, 4, 16, 16, 3))
    params = nn.unbox(CodecNetwork(codec).init(jax.random.key(0), blank))["params"]
    sizes = {"dim": 16, "num_layers": 2, "num_heads": 2, "ffn_dim": 16, "freq_dim": 16}
    config = WorldGenConfig(latent_channels=4, head_channels=4, window=2, sink=1, **sizes)
    made = WorldGen.from_scratch(config, VideoCodec(codec, params), seed=1)
    noise = 0.05 * np.random.default_rng(0).standard_normal()
    made = replace(made, params=jax.tree.map(lambda x: x + noise, made.params))
    folder = made.save_pretrained(tmp_path_factory.mktemp("gen"), card="# A test", half=False)
    return WorldGen.from_pretrained(folder), folder


@pytest.fixture(scope="module")
def rec(tmp_path_factory):
    """A small random reconstruction model and its folder."""
    stages = (StageConfig(8, 1, 2, 2, True), StageConfig(16, 2, 2, 2, False))
    sizes = {"width": 16, "hidden": 16, "weight_hidden": 8, "stem": 8, "pyramid": 8}
    config = WorldRecConfig(
        height=32, cell=(4, 4), children=(2, 2), stages=stages, norm_group=4, sky=(6, 16), **sizes
    )
    made = WorldRec.initialize(config, jax.random.key(0))
    folder = made.save_pretrained(tmp_path_factory.mktemp("rec"), "# A test", half=False)
    return WorldRec.from_pretrained(folder), folder


def export(folder, *arguments):
    """In a process of its own: the type checks of tests know no symbolic sizes."""
    words = [sys.executable, "-m", "jwm_jax", "export", folder, "--format", "stablehlo", *arguments]
    subprocess.run([str(word) for word in words], check=True)


def test_a_process_with_jax_alone_generates_the_same_future(gen, tmp_path):
    """Two rollouts at once, with layout and motion and without a prior."""
    model, folder = gen
    out, size = tmp_path / "programs", ["--height", "32", "--width", "48"]
    export(folder, *size, "--out", out)
    random = np.random.default_rng(0)
    first = random.random((2, 1, 32, 48, 3), np.float32)
    layout = random.random((2, 1, 4, 32, 48, 3), np.float32)
    motion = random.random((2, 4, 4), np.float32)
    session = model.start(first, seed=3, conditions=Conditions(layout=layout[:, :, :1]))
    expected = []
    for _ in range(2):
        frames, session = model.step(session, Conditions(layout=layout, ego_motion=motion))
        expected.append(frames)
    np.savez(
        tmp_path / "given.npz",
        frames=first,
        rays=np.zeros((2, 1, 4, 6, 6), np.float32),
        key=np.asarray(jax.random.key_data(jax.random.key(3))),
        layout=layout,
        has_layout=True,
        prior=np.zeros_like(layout),
        prior_alpha=np.zeros(layout.shape[:-1], np.float32),
        has_prior=False,
        ego_motion=motion,
        has_motion=True,
        style=np.zeros((2, len(model.config.styles)), np.int32),
    )
    script = tmp_path / "alone.py"
    script.write_text(ROLL)
    arguments = [str(out), str(tmp_path / "given.npz"), str(tmp_path / "made.npy")]
    subprocess.run([sys.executable, str(script), *arguments], check=True, cwd=tmp_path)
    made = np.load(tmp_path / "made.npy")
    np.testing.assert_allclose(made, np.concatenate(expected, axis=2), atol=1e-5)
    assert np.abs(np.diff(made, axis=2)).max() > 1e-3


def test_reconstruction_and_rendering_are_one_program(rec, tmp_path):
    model, folder = rec
    out, size = tmp_path / "programs", ["--height", "32", "--width", "64"]
    export(folder, *size, "--pictures", "2", "--out", out)
    blank = blank_pictures(model.config, 2, 32, 64)
    given = {f.name: np.asarray(getattr(blank, f.name)) for f in fields(blank)}
    given["images"] = np.random.default_rng(0).random((2, 32, 64, 3), np.float32)
    given["mask"], given["depth"] = np.ones(2, bool), np.full((2, 32, 64), 5.0, np.float32)
    found = model.reconstruct(type(blank)(**given))
    pose, K = np.tile(np.eye(4, dtype=np.float32), (3, 1, 1)), np.tile(given["K"][:1], (3, 1, 1))
    pose[:, 0, 3] = [0.0, 0.1, 0.2]
    scene = Scene(found.gaussians, None, found.sky, tau=model.config.tau)
    expected = scene.render(Camera(Intrinsics(K, 64, 32), pose), np.zeros(3, np.float32))
    weights = dict(np.load(out / "weights.npz"))
    program = jax.export.deserialize((out / "scene.stablehlo").read_bytes())
    inputs = {name: value for name, value in given.items() if name not in BOXES}
    views = {"view_K": K, "view_pose": pose, "view_time": np.zeros(3, np.float32)}
    rgb, alpha, _, overflow = program.call(weights, inputs | views)
    np.testing.assert_allclose(rgb, expected.rgb, atol=1e-4)
    np.testing.assert_allclose(alpha, expected.alpha, atol=1e-4)
    assert not np.any(overflow)
    assert program.platforms == ("cpu", "tpu", "cuda")
    signature = json.loads((out / "signature.json").read_text())
    assert signature["scene"]["gives"][0] == "float32[b, 32, 64, 3]"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--width", "50"], "do not divide into tokens"),
        (["--height", "0"], "--height 0"),
        (["--kind", "worldrec", "--height", "33"], "takes no pictures of 33"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, said, tmp_path, capsys):
    command = ["export", "tiny", "--format", "stablehlo", "--out", str(tmp_path / "x")]
    assert main([*command, *arguments]) == UsageError.exit_code
    assert said in capsys.readouterr().err and not (tmp_path / "x").exists()
