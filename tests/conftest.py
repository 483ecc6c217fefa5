"""Test session set-up: simulated devices, quick compilation, checked array shapes.

Eight simulated CPU devices exist so that sharding is tested everywhere; a computation that names no
sharding still runs on the first of them. Most of a test's time is compilation, so programs are kept
between runs and compiled in a hurry: without LLVM's optimisations and, where jax still has them, by
XLA's former emitters, which need a third of the time. What the installed defaults make of the
product is what `jwm demo` in `.ci/run` shows; `XLA_FLAGS` set outside wins over these.
"""

import os
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    (
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false" if version("jax").startswith("0.10.") else "",
        os.environ.get("XLA_FLAGS", ""),
    )
)

import jax
import pytest
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parent.parent

SLOW_ROOMS = ("joint", "training", "worldrec", "worldgen")

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

install_import_hook(["jwm_jax", "jwm_kernels"], "beartype.beartype")


@pytest.fixture(scope="session", autouse=True)
def streets_are_drawn_by_optimised_programs():
    """Of a street's rays there are so many that here LLVM's optimisations pay."""
    render = import_module("jwm_jax.data.streets.render")  # the package has a function of that name

    fast = {"compiler_options": {"xla_backend_optimization_level": 3}}
    for name in ("_trace_tiles", "_trace_beams"):
        setattr(render, name, jax.jit(getattr(render, name).__wrapped__, **fast))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the rooms of the longest tests, so that no worker ends with one of them alone."""
    items.sort(key=lambda item: item.path.parent.name not in SLOW_ROOMS)


@pytest.fixture(scope="session")
def jwm_data() -> Path:
    """Folder of real drives, weights and golden arrays; what needs it skips where it is absent."""
    folder = Path(os.environ.get("JWM_DATA", ROOT.parent / "shared" / "data")).expanduser()
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist (set JWM_DATA)")
    return folder
