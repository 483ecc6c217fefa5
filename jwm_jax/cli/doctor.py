"""`jwm doctor`: what this machine has and what it lacks."""

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from jwm_jax.cli.backend import left_out_backends, missing_backend
from jwm_jax.cli.options import Common

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "av")


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Print versions, devices, memory, disk and models; leaves with 1 if something is missing.

    Example: jwm doctor
    """


def run(options: Options) -> int:
    """Run `jwm doctor`.

    Returns:
        0 if everything that the verbs need is there, else 1.
    """
    from importlib.metadata import PackageNotFoundError, version

    import jwm_jax

    missing = []
    print(
        f"jwm_jax {jwm_jax.__version__}, Python {platform.python_version()}, {platform.machine()}"
    )
    for name in _PACKAGES:
        try:
            print(f"  {name} {version(name)}")
        except PackageNotFoundError:
            missing.append(f"package {name} is not installed; run `pip install {name}`")
    import jax

    lacking = missing_backend()
    if lacking is None:
        devices = jax.devices()
        kinds = sorted({d.device_kind for d in devices})
        print(f"devices: {len(devices)} x {', '.join(kinds)} ({jax.default_backend()})")
        for name in left_out_backends():
            print(f"  JAX_PLATFORMS also names {name}, which is not here")
    else:
        print(f"devices: none; {lacking}")
    print(f"cores: {os.cpu_count()}; memory: {_memory()}")
    print(f"disk: {shutil.disk_usage('.').free / 2**30:.1f} GiB free here")
    print(f"compiled programs: {os.environ.get('JAX_COMPILATION_CACHE_DIR', 'not kept')}")
    from jwm_jax.export.video import has_h264

    if not has_h264():
        missing.append("PyAV has no H.264 encoder; videos become animated pictures")
    weights = Path(jwm_jax.__file__).parent / "weights"
    models = sorted(p.parent.name for p in weights.glob("*/params.safetensors"))
    print(f"models: {', '.join(models) or 'none'}")
    if not models:
        missing.append(f"no weights in {weights}; install the package again")
    for line in missing:
        print(f"missing: {line}")
    if not missing and lacking is None:
        print("nothing is missing\n\nNext:\n  jwm demo")
    return 1 if missing else 0


def _memory() -> str:
    try:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return "unknown"
    return f"{pages / 2**30:.1f} GiB"
