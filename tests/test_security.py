"""What files from elsewhere may not do, and what no line of the package may: run code, or swell."""

import ast
import io
import json
import random
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from jwm_jax import reading
from jwm_jax.checkpoint import load_params, save_model
from jwm_jax.checkpoint.model_dir import flatten
from jwm_jax.data.files import read_image
from jwm_jax.errors import DataError
from jwm_jax.training.exporting import ExperimentConfig

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("jwm_jax", "kernels", "launch", "configs")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))

MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "msgpack"}
MODULES |= {"msgpack_numpy", "torch", "tensorflow"}
"""Modules that run code that they read, or drag in what does."""

CALLS = {"eval", "exec", "os.system", "os.popen", "tempfile.mktemp", "yaml.load", "yaml.full_load"}
CALLS |= {"yaml.unsafe_load", "tarfile.open", "shutil.unpack_archive", "torch.load"}

MAY = {
    ("jwm_jax/training/config.py", "spec.loader.exec_module"),
    ("kernels/jwm_kernels/gaussian_rasterizer/benchmark.py", "torch"),
}
"""A config is a file of Python that its user names; the benchmark times gsplat where that is."""


def dotted(node):
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def faults(tree, name):
    """What a module does that no module may."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            for found in [module, *(alias.name for alias in node.names)]:
                if found.split(".")[0] in MODULES and (name, found) not in MAY:
                    yield f"imports {found}"
        elif isinstance(node, ast.Call):
            called = dotted(node.func)
            unsafe = called in CALLS or called.endswith((".extractall", ".exec_module"))
            if unsafe and (name, called) not in MAY:
                yield f"calls {called}"
            for keyword in node.keywords:
                is_true = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
                if is_true and keyword.arg in ("shell", "allow_pickle", "trust_remote_code"):
                    yield f"calls {called} with {keyword.arg}=True"
        elif isinstance(node, ast.Constant) and node.value in ("0.0.0.0", "::", "[::]"):
            yield f"names every network interface: {node.value}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_module_runs_what_it_reads(path):
    name = path.relative_to(ROOT).as_posix()
    assert not list(faults(ast.parse(path.read_text(encoding="utf-8")), name))


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from torch import load",
        "import yaml; yaml.load(x)",
        "import os; os.system('ls')",
        "import numpy as np; np.load(x, allow_pickle=True)",
        "import subprocess; subprocess.run(x, shell=True)",
        "archive.extractall(folder)",
        "server.bind(('0.0.0.0', 80))",
        "spec.loader.exec_module(m)",
    ],
)
def test_the_check_finds_what_it_looks_for(line):
    assert list(faults(ast.parse(line), "jwm_jax/other.py"))


def model(folder):
    params = {
        "a": {"w": np.arange(12, dtype=np.float32).reshape(3, 4)},
        "b": np.ones(5, np.float32),
    }
    return save_model(folder, "codec", "t", ExperimentConfig(name="x"), params, "# x")


def test_mangled_weights_are_data_or_an_error_and_never_more(tmp_path):
    """Every byte of the header once, and what a header can claim."""
    folder = model(tmp_path / "m")
    path = folder / "params.safetensors"
    original = path.read_bytes()
    length = struct.unpack("<Q", original[:8])[0]
    chance = random.Random(0)
    mangled = [
        bytes([*original[:i], original[i] ^ (1 << chance.randrange(8)), *original[i + 1 :]])
        for i in range(8 + length)
    ]
    mangled += [struct.pack("<Q", n) + original[8:] for n in (0, 1, 2**31, 2**62, 2**64 - 1)]
    mangled += [original[:n] for n in (0, 4, 8, 20, len(original) - 1)]
    header = json.loads(original[8 : 8 + length])
    for offsets in ([0, 2**40], [20, 0], [-4, 44], [0, 4]):
        text = json.dumps({**header, "b": {**header["b"], "data_offsets": offsets}}).encode()
        mangled.append(struct.pack("<Q", len(text)) + text + original[8 + length :])
    refused = 0
    for content in mangled:
        path.write_bytes(content)
        try:
            assert sum(x.nbytes for x in flatten(load_params(folder, "codec")).values()) <= 200
        except DataError:
            refused += 1
    assert refused > len(mangled) // 2


def test_an_archive_that_swells_is_refused_from_its_directory(tmp_path, monkeypatch):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, x=np.zeros(3_000_000, np.float32))
    assert path.stat().st_size < 20_000 and "x" in reading.read_arrays(path, {})
    monkeypatch.setattr(reading, "MOST_BYTES", 1 << 20)
    with pytest.raises(DataError, match=r"unpacks to 0\.0 GB"):
        reading.read_arrays(path, {})
    with zipfile.ZipFile(path) as archive:
        assert sum(member.file_size for member in archive.infolist()) > 1 << 20


def test_a_picture_that_swells_is_refused_from_its_header():
    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    with pytest.raises(DataError, match="bomb"):
        read_image(io.BytesIO(png), "bomb.png")
