"""`jwm export`: weights in formats that others read."""

import json
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from jwm_jax.cli.options import Writing, check_numbers
from jwm_jax.cli.output import OutputFolder, claim, say_next
from jwm_jax.errors import JwmError, UsageError


@dataclass(frozen=True, kw_only=True)
class Options(Writing):
    """Write the weights of a run, at any step, as a model; or a model in a format others read.

    A model directory (safetensors, several files above 5 GB) starts trainings and everything else
    here; its weights have the checkpoint's bits (a codec's latent statistics are measured anew,
    which needs its training data). A generator without our conditions is also written
    as Wan 2.1 publishes its transformer, or as diffusers lays it out. stablehlo writes programs
    that a process with jax alone runs: a generator's start and step with their codec, or
    reconstruction with rendering.

    Example: jwm export runs/worldgen_dmd_tiny --out models/student
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|STEP|MODEL")]
    """A run's folder (its newest finished step), the folder of a step, or a model."""
    format: Literal["safetensors", "wan", "diffusers", "stablehlo"] = "safetensors"
    """Of a run: safetensors. Of a model: the others."""
    weights: Literal["averaged", "raw"] = "averaged"
    """Of a run: the average that its evaluations judged, or the weights it goes on from."""
    half: bool = False
    """Of a run: store float16."""
    config: str | None = None
    """Of a run that was started from a file: that file."""
    kind: Literal["worldgen", "worldrec"] = "worldgen"
    """Of a shipped model for stablehlo; a folder says itself what it holds."""
    height: int = 96
    """Rows of the pictures of a stablehlo program."""
    width: int = 160
    """Columns of its pictures."""
    pictures: int = 1
    """Cameras of a generator's program; pictures that a reconstruction's has room for."""
    steps: int | None = None
    """Denoising steps of a generator's program; the model's by default."""
    platforms: tuple[Literal["cpu", "tpu", "cuda"], ...] = ("cpu", "tpu", "cuda")
    """Platforms of a stablehlo program."""


def run(options: Options) -> None:
    """Run `jwm export`.

    Raises:
        UsageError: What is named cannot be written in this format.
        DataError: It is damaged.
    """
    check_numbers(1, height=options.height, width=options.width, pictures=options.pictures)
    check_numbers(1, steps=options.steps)
    folder = claim(options.out, "export", overwrite=options.overwrite)
    from jwm_jax.files import expand_user
    from jwm_jax.training.exporting import is_run

    a_run = is_run(expand_user(options.source))
    if a_run != (options.format == "safetensors"):
        raise UsageError(
            f"{options.source} is a run: export it as safetensors first, then the model."
            if a_run
            else f"{options.source} is no run's folder; a model is in safetensors already."
        )
    if a_run:
        _write_model(options, folder)
    elif options.format == "stablehlo":
        _write_programs(options, folder)
    else:
        _write_wan(options, folder)


def _write_model(options: Options, claimed: OutputFolder) -> None:
    from jwm_jax.training.exporting import export_run

    with claimed.made() as out:
        step = export_run(
            options.source, out, options.weights, half=options.half, config=options.config
        )
    print(f"{options.weights} weights of step {step}: {out}")
    kind = json.loads((out / "config.json").read_text(encoding="utf-8"))["kind"]
    flag = {"worldgen": "--gen", "worldrec": "--rec"}.get(kind)
    if flag:
        say_next(("jwm", "demo", flag, out))


def _write_wan(options: Options, claimed: OutputFolder) -> None:
    from jwm_jax.checkpoint import load_config, load_params
    from jwm_jax.files import write_whole
    from jwm_jax.worldgen import WorldGenConfig, wan

    config = load_config(options.source, "worldgen", WorldGenConfig)
    params = load_params(options.source, "worldgen")
    diffusers = options.format == "diffusers"
    name = "diffusion_pytorch_model.safetensors" if diffusers else "wan.safetensors"
    naming = "diffusers" if diffusers else "original"
    with claimed.made() as out:
        path = wan.save(config, params, out / name, naming)
        if diffusers:
            text = json.dumps(wan.diffusers_config(config), indent=2)
            write_whole(out / "config.json", text + "\n")
    print(f"transformer in the naming of {options.format}: {path}")


def _write_programs(options: Options, claimed: OutputFolder) -> None:
    from jwm_jax.export.programs import write_programs
    from jwm_jax.worldgen import WorldGen
    from jwm_jax.worldgen import programs as worldgen
    from jwm_jax.worldrec import WorldRec
    from jwm_jax.worldrec import programs as worldrec

    size = (options.pictures, options.height, options.width)
    kind = _kind_of(options)
    try:
        if kind == "worldgen":
            gen = WorldGen.from_pretrained(options.source)
            made = worldgen.export_session(gen, *size, options.platforms, options.steps)
            weights, about = worldgen.weights_of(gen), worldgen.__doc__
        else:
            rec = WorldRec.from_pretrained(options.source)
            made = worldrec.export_reconstruction(rec, *size, options.platforms)
            weights, about = worldrec.weights_of(rec), worldrec.__doc__
    except JwmError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from None
    title = f"{kind} {options.source}"
    with claimed.made() as out:
        files = write_programs(out, made, weights, title, about or "")
    for path in files:
        print(f"{path.stat().st_size / 1e6:9.2f} MB  {path}")


def _kind_of(options: Options) -> str:
    """Kind of the model of a folder; --kind where only a size is given."""
    from jwm_jax.files import expand_user

    try:
        header = json.loads((expand_user(options.source) / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return options.kind
    return header.get("kind", options.kind) if isinstance(header, dict) else options.kind
