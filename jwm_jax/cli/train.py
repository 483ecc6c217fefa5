"""`jwm train`."""

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from jwm_jax.cli.options import Writing, check_numbers
from jwm_jax.cli.output import RUNS, say_next
from jwm_jax.errors import UsageError
from jwm_jax.files import expand_user


@dataclass(frozen=True)
class MeshOptions:
    """Sizes of the mesh axes; those of the config by default, -1 takes the remaining devices."""

    data: int | None = None
    """Replicas of the model; the batch is split over them."""
    fsdp: int | None = None
    """Shards of the parameters; the batch is split over them too."""
    context: int | None = None
    """Shards of tokens, queries and Gaussians."""
    tensor: int | None = None
    """Shards of heads and hidden units."""


@dataclass(frozen=True, kw_only=True)
class Options(Writing):
    """Train a model from a config of configs/ or a Python file.

    The same command with the same --out continues a run that was stopped. Leaves with exit code 75
    when a signal stopped it after it was saved.

    Example: jwm train worldrec_easy_tiny --dry-run
    """

    config: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME|FILE")] = ""
    """Name of a config, or path of a .py file with config(); without it, the names are listed."""
    resume: bool = False
    """Insist on continuing: the run in --out, or the newest one of this config under runs/."""
    steps: int | None = None
    """Optimiser steps of the whole run."""
    minutes: float | None = None
    """Stop cleanly after this many minutes; the same command goes on from there."""
    seed: int | None = None
    """Seed of initialisation, data order and noise."""
    batch_size: int | None = None
    """Examples of a global batch."""
    mesh: MeshOptions = field(default_factory=MeshOptions)
    devices: int | None = None
    """Split the CPU into this many devices; 2 keep two cores busy where 1 keeps one."""
    processes: int | None = None
    """Fail unless the job has this many processes."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD=VALUE")] = ()
    """Change any field of the config, such as optimizer.learning_rate=1e-3."""
    profile: Annotated[str | None, tyro.conf.arg(metavar="FIRST:LAST")] = None
    """Trace the steps from FIRST to LAST into the folder "profile" of the run, for XProf."""
    print_config: bool = False
    """Print the config as JSON and stop."""
    dry_run: bool = False
    """Print the parameters, their layout, and what the compiled step costs a device, and stop."""
    aot: str | None = None
    """With --dry-run, compile for this TPU slice, such as v5p:4x4x4, which need not be there."""


def run(options: Options) -> int:
    """Run `jwm train`.

    Args:
        options: The flags.

    Returns:
        0, or 75 when a signal stopped the run after it was saved.

    Raises:
        UsageError: For an unknown config or field, or a folder that holds something else.
    """
    check_numbers(0, minutes=options.minutes)
    from jwm_jax.distributed import (
        HostConfig,
        initialize,
        make_mesh,
        topology_mesh,
        use_cpu_devices,
    )
    from jwm_jax.training.config import find_config, list_configs, override, to_json

    if not options.config:
        print("configs:", *(f"  {name}" for name in list_configs()), sep="\n")
        return 0
    config, record = find_config(options.config)
    config = override(config, _changes(options))
    if options.print_config:
        print(to_json(config), end="")
        return 0
    if options.aot is not None and not options.dry_run:
        raise UsageError("--aot compiles and runs nothing; it needs --dry-run.")
    if options.devices is not None:
        use_cpu_devices(options.devices)
    where = initialize(HostConfig(expected_processes=options.processes))
    if record:
        print(record.splitlines()[0])
    print(where, flush=True)
    if options.dry_run:
        build = make_mesh if options.aot is None else partial(topology_mesh, topology=options.aot)
        mesh = build(config.mesh)
        from jwm_jax.training.preview import preview

        print("\n".join(preview(config, config.task(), mesh)))
        return 0
    from jwm_jax.training.loop import fit

    with _folder(options, config.name) as out:
        task = config.task()
        how = {"resume": options.resume, "overwrite": options.overwrite}
        result = fit(config, task, out, profile=_steps(options.profile, config.steps), **how)
    _say_next(options, config, task, out, result)
    return result.exit_code


def _steps(text: str | None, steps: int) -> tuple[int, int] | None:
    """Two steps of a run."""
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last) <= steps):
        raise UsageError(
            f"--profile takes FIRST:LAST, steps from 0 to {steps} of which the first is smaller, "
            f"got {text!r}."
        )
    return int(first), int(last)


def _changes(options: Options) -> dict[str, Any]:
    flags = {
        "steps": options.steps,
        "max_minutes": options.minutes,
        "seed": options.seed,
        "batch_size": options.batch_size,
        **{f"mesh.{axis}": getattr(options.mesh, axis) for axis in MeshOptions.__annotations__},
    }
    changes = {name: value for name, value in flags.items() if value is not None}
    for text in options.set:
        name, separator, value = text.partition("=")
        if not separator:
            raise UsageError(f"--set takes FIELD=VALUE, got {text!r}.")
        try:
            changes[name] = json.loads(value)
        except ValueError:
            changes[name] = value
    return changes


def _folder(options: Options, name: str) -> AbstractContextManager[Path]:
    from jwm_jax.training.run_dir import new_dir, newest_dir

    if options.out is not None:
        return nullcontext(expand_user(options.out))
    return nullcontext(newest_dir(name, RUNS)) if options.resume else new_dir(name, RUNS)


def _say_next(options: Options, config: Any, task: Any, out: Path, result: Any) -> None:
    import jax

    if jax.process_index():
        return
    again = f"jwm train {options.config} --out {out}"
    if result.status not in ("finished", "early"):
        say_next(f"{again}    # the same flags as before; goes on from step {result.step}")
        return
    print(f"metrics: {out / 'metrics.jsonl'}; model: {out / 'model'}")
    say_next(*(task.next_commands(str(out / "model")) or (f"{again} --steps {2 * config.steps}",)))
