"""Checks a job before it costs anything, by the same launcher as the training itself:

    python launch/local.py --processes 2 --devices 2 -- \
        python launch/preflight.py worldgen_dmd_base --out /shared/runs/dmd --mesh.fsdp 4

It says where the processes are, and fails with one sentence if they do not all run the same
versions and config, if the mesh does not divide the config's networks or batch, if a process cannot
write into --out or does not see what the others write there, or if summing over all devices goes
wrong; then it times that sum. What the step itself costs is said by `jwm train NAME --dry-run`.
"""

import hashlib
import importlib.metadata
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from jwm_jax.cli.main import explain
from jwm_jax.cli.train import MeshOptions
from jwm_jax.errors import JwmError, ResourceError, UsageError

PACKAGES = ("jwm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What will be trained, and where."""

    config: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME|FILE")]
    """Name of a config, or a .py file."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder of the run, which every process has to see."""
    processes: int | None = None
    """Fail unless the job has this many processes."""
    batch_size: int | None = None
    """Examples of a global batch, if not the config's."""
    mesh: MeshOptions = field(default_factory=MeshOptions)
    devices: int | None = None
    """Split the CPU into this many devices."""
    megabytes: int = 64
    """Of the array that is summed over all devices, on each."""


def check(options: Options) -> list[str]:
    """Run every check.

    Args:
        options: The flags.

    Returns:
        Lines to print.

    Raises:
        JwmError: What is wrong, in a sentence.
    """
    from jwm_jax.distributed import HostConfig, initialize, make_mesh, use_cpu_devices
    from jwm_jax.training.config import find_config, override, to_json
    from jwm_jax.training.start import layout

    if options.devices is not None:
        use_cpu_devices(options.devices)
    lines = [initialize(HostConfig(expected_processes=options.processes))]
    sizes = {f"mesh.{a}": getattr(options.mesh, a) for a in MeshOptions.__annotations__}
    changes = {**sizes, "batch_size": options.batch_size}
    config, _ = find_config(options.config)
    config = override(config, {n: v for n, v in changes.items() if v is not None})
    versions = " ".join(f"{n} {importlib.metadata.version(n)}" for n in PACKAGES)
    versions = f"Python {sys.version.split()[0]} {versions}"
    _same_everywhere("versions", versions)
    _same_everywhere("config", to_json(config))
    lines.append(versions)
    mesh = make_mesh(config.mesh)
    place = layout(config, config.task(), mesh)
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    lines.append(
        f"mesh of {mesh.size} devices ({axes or 'one axis'}) fits {len(place.nets)} networks"
    )
    lines.append(_writable_everywhere(options.out))
    lines.append(_sum_over_all(options.megabytes))
    return lines


def _gathered(values: Any) -> Any:
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(values)


def _same_everywhere(what: str, text: str) -> None:
    """Refuse a job whose processes differ."""
    import numpy as np

    digest = np.frombuffer(hashlib.sha256(text.encode()).digest()[:4], np.uint32)
    found = np.atleast_2d(_gathered(digest))[:, 0]
    others = [i for i, value in enumerate(found) if value != found[0]]
    if others:
        raise UsageError(
            f"processes {others} have other {what} than process 0; install and start the same "
            f"everywhere. Here: {text.splitlines()[0]}"
        )


def _writable_everywhere(folder: Path) -> str:
    """A file that every process writes and process 0 sees."""
    import jax
    import numpy as np

    from jwm_jax.files import expand_user, make_folder

    folder, made = expand_user(folder), not expand_user(folder).exists()
    token = int(np.ravel(_gathered(np.int32(time.time_ns() % 2**31)))[0])
    error = None
    files = [folder / f".preflight-{token}-{i}" for i in range(jax.process_count())]
    try:
        make_folder(folder)
        files[jax.process_index()].write_bytes(b"here")
    except (OSError, JwmError) as caught:
        error = caught
    failed = np.flatnonzero(np.ravel(_gathered(np.int32(error is not None))))
    seen = [file.exists() for file in files]
    missing = np.flatnonzero(np.ravel(_gathered(np.int32(not all(seen)))))
    with suppress(OSError):
        files[jax.process_index()].unlink()
    _gathered(np.int32(0))  # all have gone
    if made and jax.process_index() == 0:
        with suppress(OSError):
            folder.rmdir()
    if len(failed):
        reason = f" ({error})" if error else ""
        raise ResourceError(f"processes {failed.tolist()} cannot write to {folder}{reason}.")
    if len(missing):
        raise ResourceError(
            f"processes {missing.tolist()} do not see in {folder} what the others write there; "
            "--out has to be a folder that all of them share."
        )
    return f"{folder}: all {len(files)} processes write there and see each other's files"


def _sum_over_all(megabytes: int) -> str:
    """Checks and times a sum over every device."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    devices = jax.devices()
    mesh = jax.make_mesh((len(devices),), ("all",))
    split = NamedSharding(mesh, PartitionSpec("all"))
    whole = NamedSharding(mesh, PartitionSpec())
    count = megabytes * 2**20 // 4

    def ones(index: Any) -> np.ndarray:
        return np.ones((1, count), np.float32)

    array = jax.make_array_from_callback((len(devices), count), split, ones)
    total = jax.jit(lambda x: jnp.sum(x, axis=0), out_shardings=whole)
    found = np.asarray(total(array).addressable_data(0))
    if not (found == len(devices)).all():
        raise ResourceError(
            f"a sum of ones over {len(devices)} devices gave {found.min():g} to {found.max():g}; "
            "a device or a link between them is broken."
        )
    start = time.perf_counter()
    for _ in range(5):
        result = total(array)
    jax.block_until_ready(result)
    seconds = (time.perf_counter() - start) / 5
    moved = 2 * (len(devices) - 1) / len(devices) * megabytes * 2**20
    return (
        f"sum of {megabytes} MiB over {len(devices)} devices: {1e3 * seconds:.1f} ms, "
        f"{moved / seconds / 1e9:.2f} GB/s a device"
    )


def main() -> int:
    """Run the checks and print what they found."""
    options = tyro.cli(Options, description=__doc__)
    try:
        lines = check(options)
    except Exception as error:
        message, code = explain(error)
        print(f"preflight: {message}", file=sys.stderr)
        return code
    import jax

    if jax.process_index() == 0:
        print("\n".join([*lines, "ready"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
