"""What `jwm evaluate` computes: a function a protocol, from options to tables and files."""

import sys

from jwm_jax.cli.evaluate import Options


def _rungs(options: Options) -> tuple[str, ...]:
    return ("easy", "full") if options.rung == "both" else (options.rung,)


def codec(options: Options) -> dict:
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


def worldrec(options: Options) -> dict:
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


def worldgen(options: Options) -> dict:
    from jwm_jax.cli.progress import track
    from jwm_jax.evaluation.rollouts import PROTOCOL, evaluate_rollouts, streets_of
    from jwm_jax.joint import JointWorldModel
    from jwm_jax.paradigms.held_out import held_out_flow_loss
    from jwm_jax.worldgen import WorldGen
    from jwm_jax.worldrec import WorldRec

    world = JointWorldModel(
        WorldRec.from_pretrained(options.rec), WorldGen.from_pretrained(options.gen)
    )
    tables, files = {}, {}
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
            files[f"{rung}.jpg"] = _sheet(world, next(streets_of(rung, 1)), options)
    return {"protocol": PROTOCOL, "tables": tables, "files": files}


def real(options: Options) -> dict:
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
    tables, files = {}, {}
    for spec, clip in track(drives.items(), "drives", len(drives)):
        scores = evaluate_drive(world, clip, steps=options.steps, seed=options.seed)
        windows = f"{scores.windows} windows"
        if scores.reconstruction:
            tables[f"Reconstruction, {spec}, {windows}"] = scores.reconstruction
        tables[f"Future, {spec}, {windows}"] = scores.future
        if options.out is not None:
            name = "".join(c if c.isalnum() else "_" for c in clip.name)
            files[f"{len(files):02d}_{name[-60:]}.jpg"] = _strips(scores.strips)
    return {"protocol": PROTOCOL, "tables": tables, "files": files}


def distillation(options: Options) -> dict:
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


def drift(options: Options) -> dict:
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
        "files": {"first_street.jpg": _strips(found.strips), "drift.html": _curves(options, found)},
    }


def _curves(options: Options, found) -> str:
    """A page with a chart a measure: its value in each window, a line a generator."""
    from jwm_jax.evaluation.drift import PROTOCOL, WINDOW_SECONDS
    from jwm_jax.export.chart import Series
    from jwm_jax.export.report import Report

    lead = f"Protocol {PROTOCOL}: windows of {WINDOW_SECONDS} s, each relative to the truth's."
    report = Report("Drift", lead, {"streets": options.count, "seconds": options.seconds})
    report.section("Over time")
    for measure in next(iter(found.curves.values())):
        lines = []
        for name, curve in found.curves.items():
            ends = [WINDOW_SECONDS * (i + 1) for i in range(len(curve[measure]))]
            lines.append(Series(name, ends, curve[measure]))
        report.chart(lines, "end of the window, s", measure)
    return report.html()


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
