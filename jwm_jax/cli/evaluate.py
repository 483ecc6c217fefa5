"""`jwm evaluate`: scores under named protocols, printed as a table or as JSON."""

import json
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
    options are key_frame_every, window, sink, sink_ema and context_noise."""
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
    each drive (real), or of the first street with a page of curves (drift); nothing is written
    without it."""


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
    from jwm_jax.cli import evaluate_work

    result = getattr(evaluate_work, options.what)(options)
    files = result.pop("files", {})
    if folder is not None:
        with folder.made() as path:
            write_whole(path / "scores.json", json.dumps(result, indent=2) + "\n")
            for name, data in files.items():
                write_whole(path / name, data)
    if options.json:
        print(json.dumps(result))
        return
    for name, table in result["tables"].items():
        print(f"\n{name} ({result['protocol']})")
        _print_table(table)
    say_next("jwm demo", f"jwm evaluate {options.what} --json")


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
