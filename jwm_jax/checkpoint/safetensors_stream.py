"""Writing a safetensors file tensor by tensor, so that no more than one of them is held in memory.

The format: eight bytes with the length of a JSON header, the header (name to dtype, shape and byte
range), the bytes of every tensor in little-endian row-major order.
"""

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from jwm_jax.files import write_beside

DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "uint8": "U8",
    "bool": "BOOL",
}
ALIGNMENT = 8


def write_tensors(
    path: Path, header: Mapping[str, tuple[np.dtype, tuple[int, ...]]], values: Iterable[np.ndarray]
) -> Path:
    """Writes a file, which appears whole or not at all.

    Args:
        path: the file, replaced if it is there.
        header: name to type and shape, in the order of the values.
        values: the tensors.

    Returns:
        The file.

    Raises:
        ResourceError: the file cannot be written.
        ValueError: a value that is not what the header says.
    """
    entries, end = {}, 0
    for name, (dtype, shape) in header.items():
        start, end = end, end + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        kind = DTYPES[dtype.name]
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with write_beside(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for (name, (dtype, shape)), value in zip(header.items(), values, strict=True):
            if value.dtype != dtype or value.shape != tuple(shape):
                raise ValueError(
                    f"tensor {name} should be {dtype} {shape}, got {value.dtype} {value.shape}."
                )
            file.write(np.ascontiguousarray(value).tobytes())
    return path
