"""`jwm evaluate`: scores under named protocols, printed as a table or as JSON."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jwm_jax.cli.options import Common, check_numbers
from jwm_jax.cli.output import claim, say_next
from jwm_jax.errors import UsageError
from jwm_jax.files import write_whole

WHAT = ("codec", "worldrec", "worldgen", "real", "distillation", "drift")
COUNTS = {"distillation": 256, "drift": 4}


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Score a model on drives that no training has seen.

    codec: PSNR of encoding and decoding. worldrec: PSNR and SSIM at held-out instants and lane
    shifts, beside baselines. worldgen: futures with and without the scene, beside copying the first
    frame and the codec's ceiling, and the flow loss. real: reconstruction and futures of drives of
    your own. distillation: generators and numbers of steps beside each other, by distances between
    sets of videos, LPIPS and energy. drift: the same over a minute. Each protocol is described
    where it is defined, in jwm_jax/evaluation.

    Example: jwm evaluate worldgen --rung easy --count 4
    """

    what: Annotated[Literal[WHAT], tyro.conf.Positional]
    """Which model, and so which protocol."""
    rung: Literal["easy", "full", "both"] = "both"
    """Procedural streets to use; distillation and drift use both in turn."""
    count: int | None = None
    """Streets: of each rung, 20 by default; for distillation 256, for drift 4 in all."""
    clip: str | None = None
    """A drive to score worldrec on instead of streets, such as kitti:PATH."""
    clips: tuple[str, ...] = ()
    """Drives to score real on, such as kitti:PATH folder:PATH video:PATH."""
    codec: str = "tiny"
    """Name or model directory."""
    rec: str = "tiny"
    """Name or model directory."""
    pixel_aligned: str | None = None
    """Name or model directory of the pixel-aligned baseline; without it that row is left out."""
    gen: str = "tiny"
    """Name or model directory."""
    gens: tuple[str, ...] = ()
    """Generators of distillation and drift, such as tiny 'tiny?steps=50' 'DIR?prior=0'; further
    options are key_frame_every, window and sink."""
    seconds: int = 60
    """Length of drift's futures."""
    scores: Path = Path("runs/distillation")
    """Folder in which distillation keeps the scores of each street, so that it can go on."""
    steps: int | None = None
    """Denoising steps a chunk; by default as many as the model is made for."""
    seed: int = 0
    """Of the noise."""
    key_frame_every: int = 0
    """Feed the last frame of every n-th chunk back into the scene; 0 never."""
    json: bool = False
    """Print one JSON object instead of tables."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for scores.json and sheets of pictures: of each rung's first street (worldgen), of
    each drive (real), or of the first street (drift); nothing is written without it."""


def run(options: Options) -> None:
    """Run `jwm evaluate`."""
    if options.count is None:
        options = replace(options, count=COUNTS.get(options.what, 20))
    check_numbers(1, count=options.count, steps=options.steps)
    check_numbers(0, key_frame_every=options.key_frame_every)
    if options.clip is not None and options.what != "worldrec":
        raise UsageError("--clip goes with worldrec; the other protocols need procedural streets.")
    if (options.what == "real") != bool(options.clips):
        raise UsageError(
            "evaluate real needs drives: --clips kitti:PATH folder:PATH ..."
            if options.what == "real"
            else "--clips goes with real; the other protocols need procedural streets."
        )
    if (options.what in COUNTS) != bool(options.gens):
        raise UsageError(
            f"evaluate {options.what} needs generators: --gens tiny 'tiny?steps=50' ..."
            if options.what in COUNTS
            else "--gens goes with distillation and drift; the other protocols take --gen."
        )
    folder = None if options.out is None else claim(options.out, "evaluate", overwrite=None)
    score = {
        "codec": _codec,
        "worldrec": _worldrec,
        "worldgen": _worldgen,
        "real": _real,
        "distillation": _distillation,
        "drift": _drift,
    }[options.what]
    result = score(options)
    sheets = result.pop("sheets", {})
    if folder is not None:
        with folder.made() as path:
            write_whole(path / "scores.json", json.dumps(result, indent=2) + "\n")
            for name, data in sheets.items():
                write_whole(path / f"{name}.jpg", data)
    if options.json:
        print(json.dumps(result))
        return
    for name, table in result["tables"].items():
        print(f"\n{name} ({result['protocol']})")
        _print_table(table)
    say_next("jwm demo", f"jwm evaluate {options.what} --json")


def _rungs(options: Options) -> tuple[str, ...]:
    return ("easy", "full") if options.rung == "both" else (options.rung,)


def _codec(options: Options) -> dict:
    from jwm_jax.cli.progress import track
    from jwm_jax.evaluation.codec import PROTOCOL, codec_rows
    from jwm_jax.evaluation.rollouts import streets_of
    from jwm_jax.worldgen import VideoCodec

    codec = VideoCodec.from_pretrained(options.codec)
    tables = {}
    for rung in _rungs(options):
        clips = track(streets_of(rung, options.count), f"codec, {rung}", options.count)
        tables[f"{rung}, {options.count} streets"] = codec_rows(codec, clips)
    return {"protocol": PROTOCOL, "tables": tables}


def _worldrec(options: Options) -> dict:
    from jwm_jax.cli.progress import track
    from jwm_jax.evaluation.worldrec import PROTOCOL, evaluate_worldrec, streets_of
    from jwm_jax.worldrec import WorldRec

    rec = WorldRec.from_pretrained(options.rec)
    baseline = options.pixel_aligned and WorldRec.from_pretrained(options.pixel_aligned)
    if options.clip is not None:
        from jwm_jax.data import load_clip

        table = evaluate_worldrec(rec, [load_clip(options.clip)], baseline)
        return {"protocol": PROTOCOL, "tables": {options.clip: table}}
    tables = {}
    for rung in _rungs(options):
        clips = track(streets_of(rung, options.count), f"worldrec, {rung}", options.count)
        tables[f"{rung}, {options.count} streets"] = evaluate_worldrec(rec, clips, baseline)
    return {"protocol": PROTOCOL, "tables": tables}


def _worldgen(options: Options) -> dict:
    from jwm_jax.cli.progress import track
    from jwm_jax.evaluation.rollouts import PROTOCOL, evaluate_rollouts, streets_of
    from jwm_jax.joint import JointWorldModel
    from jwm_jax.paradigms.held_out import held_out_flow_loss
    from jwm_jax.worldgen import WorldGen
    from jwm_jax.worldrec import WorldRec

    world = JointWorldModel(
        WorldRec.from_pretrained(options.rec), WorldGen.from_pretrained(options.gen)
    )
    tables, sheets = {}, {}
    for rung in _rungs(options):
        clips = track(streets_of(rung, options.count), f"worldgen, {rung}", options.count)
        tables[f"PSNR, {rung}, {options.count} streets"] = evaluate_rollouts(
            world,
            clips,
            steps=options.steps,
            seed=options.seed,
            key_frame_every=options.key_frame_every,
        )
        clips = track(streets_of(rung, options.count), f"flow loss, {rung}", options.count)
        tables[f"Flow loss, {rung}, {options.count} streets"] = held_out_flow_loss(
            world.rec, world.gen, clips
        )
        if options.out is not None:
            sheets[rung] = _sheet(world, next(streets_of(rung, 1)), options)
    return {"protocol": PROTOCOL, "tables": tables, "sheets": sheets}


def _real(options: Options) -> dict:
    from jwm_jax.cli.progress import track
    from jwm_jax.data import load_clip
    from jwm_jax.evaluation.real import PROTOCOL, evaluate_drive, prepared
    from jwm_jax.joint import JointWorldModel
    from jwm_jax.nn.frozen import find_weights
    from jwm_jax.nn.lpips import WEIGHTS
    from jwm_jax.worldgen import WorldGen
    from jwm_jax.worldrec import WorldRec

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    drives = {spec: prepared(load_clip(spec), say) for spec in options.clips}
    world = JointWorldModel(
        WorldRec.from_pretrained(options.rec), WorldGen.from_pretrained(options.gen)
    )
    if find_weights(WEIGHTS) is None:
        say(f"LPIPS is left out: its weights {WEIGHTS} are not there.")
    tables, sheets = {}, {}
    for spec, clip in track(drives.items(), "drives", len(drives)):
        scores = evaluate_drive(world, clip, steps=options.steps, seed=options.seed)
        windows = f"{scores.windows} windows"
        if scores.reconstruction:
            tables[f"Reconstruction, {spec}, {windows}"] = scores.reconstruction
        tables[f"Future, {spec}, {windows}"] = scores.future
        if options.out is not None:
            name = "".join(c if c.isalnum() else "_" for c in clip.name)
            sheets[f"{len(sheets):02d}_{name[-60:]}"] = _strips(scores.strips)
    return {"protocol": PROTOCOL, "tables": tables, "sheets": sheets}


def _distillation(options: Options) -> dict:
    from jwm_jax.cli.progress import track
    from jwm_jax.evaluation.distillation import PROTOCOL, evaluate_distillation
    from jwm_jax.evaluation.variants import load_variant
    from jwm_jax.worldrec import WorldRec

    table = evaluate_distillation(
        WorldRec.from_pretrained(options.rec),
        [load_variant(spec) for spec in options.gens],
        options.count,
        options.scores,
        seed=options.seed,
        progress=lambda numbers: track(numbers, "distillation"),
    )
    return {"protocol": PROTOCOL, "tables": {f"{options.count} streets": table}}


def _drift(options: Options) -> dict:
    from jwm_jax.cli.progress import track
    from jwm_jax.evaluation.drift import PROTOCOL, evaluate_drift
    from jwm_jax.evaluation.variants import load_variant
    from jwm_jax.worldrec import WorldRec

    found = evaluate_drift(
        WorldRec.from_pretrained(options.rec),
        [load_variant(spec) for spec in options.gens],
        options.count,
        options.seconds,
        seed=options.seed,
        progress=lambda numbers: track(numbers, "drift"),
    )
    return {
        "protocol": PROTOCOL,
        "tables": {f"{options.count} streets, {options.seconds} s": found.table},
        "curves": found.curves,
        "sheets": {"first_street": _strips(found.strips)},
    }


def _strips(strips) -> bytes:
    """A JPEG: one row of pictures a name."""
    import numpy as np

    from jwm_jax.export import label_picture
    from jwm_jax.export.pictures import picture_bytes, to_uint8

    rows = []
    for name, pictures in strips.items():
        first, *others = to_uint8(pictures)
        rows.append(np.concatenate([label_picture(first, name), *others], axis=1))
    return picture_bytes(np.concatenate(rows), quality=92)


def _sheet(world, clip, options: Options) -> bytes:
    """A JPEG: the truth above each row's future at the protocol's horizons and at its end."""
    import numpy as np

    from jwm_jax.evaluation.rollouts import HORIZONS, rollout_rows
    from jwm_jax.export import label_picture
    from jwm_jax.export.pictures import picture_bytes, to_uint8

    rows = rollout_rows(
        world,
        clip,
        steps=options.steps,
        seed=options.seed,
        key_frame_every=options.key_frame_every,
    )
    times = (*HORIZONS, (clip.num_frames - 1) / clip.rate)
    index = [round(t * clip.rate) - 1 for t in times]
    strips = []
    for name, frames in {"truth": clip.view(0)[1:], **rows}.items():
        pictures = to_uint8(frames[index])
        if name == "truth":
            pictures = [
                label_picture(p, f"truth, {t:g} s") for p, t in zip(pictures, times, strict=True)
            ]
        else:
            pictures = [label_picture(pictures[0], name), *pictures[1:]]
        strips.append(np.concatenate(list(pictures), axis=1))
    return picture_bytes(np.concatenate(strips), quality=92)


def _print_table(rows: dict[str, dict[str, float]]) -> None:
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    digits = {c: 3 if max(abs(row.get(c, 0)) for row in rows.values()) < 3 else 2 for c in columns}
    width = max(len(r) for r in rows) + 2
    wide = max(12, *(len(c) + 2 for c in columns))
    print(" " * width + "".join(f"{c:>{wide}}" for c in columns))
    for name, row in rows.items():
        cells = (
            f"{row[c]:>{wide}.{digits[c]}f}" if c in row else f"{'-':>{wide}}" for c in columns
        )
        print(f"{name:<{width}}" + "".join(cells))
