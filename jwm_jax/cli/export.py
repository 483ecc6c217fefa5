"""`jwm export`: weights in formats that others read."""

import json
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from jwm_jax.cli.options import Writing
from jwm_jax.cli.output import OutputFolder, claim, say_next
from jwm_jax.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Options(Writing):
    """Write the weights of a run, at any step, as a model; or those of a model as Wan's.

    A model directory (safetensors, several files above 5 GB) starts trainings and everything else
    here; its weights have the checkpoint's bits. A generator without our conditions is also written
    as Wan 2.1 publishes its transformer, or as diffusers lays it out.

    Example: jwm export runs/worldgen_dmd_tiny --out models/student
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|STEP|MODEL")]
    """A run's folder (its newest finished step), the folder of a step, or a model."""
    format: Literal["safetensors", "wan", "diffusers"] = "safetensors"
    """Of a run: safetensors. Of a generator: wan or diffusers."""
    weights: Literal["averaged", "raw"] = "averaged"
    """Of a run: the average that its evaluations judged, or the weights it goes on from."""
    half: bool = False
    """Of a run: store float16."""
    config: str | None = None
    """Of a run that was started from a file: that file."""


def run(options: Options) -> None:
    """Run `jwm export`.

    Raises:
        UsageError: What is named cannot be written in this format.
        DataError: It is damaged.
    """
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
