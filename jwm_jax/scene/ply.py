"""The PLY layout that 3D Gaussian splatting viewers read (the INRIA layout).

Binary little endian float32, one `vertex` element: x y z, nx ny nz, f_dc_0..2 (spherical-harmonics
constant term), opacity (logit), scale_0..2 (natural logarithm), rot_0..3 (wxyz).
"""

from pathlib import Path

import numpy as np
from plyfile import PlyData, PlyElement

from jwm_jax.errors import DataError
from jwm_jax.files import write_beside
from jwm_jax.scene.gaussians import Gaussians, make_gaussians

SH_CONSTANT = 0.28209479177387814
"""Value of the first real spherical harmonic."""

_COLUMNS = (
    *("x", "y", "z", "nx", "ny", "nz"),
    *(f"f_dc_{i}" for i in range(3)),
    "opacity",
    *(f"scale_{i}" for i in range(3)),
    *(f"rot_{i}" for i in range(4)),
)


def write_ply(path: str | Path, gaussians: Gaussians, keep: np.ndarray) -> Path:
    """Write the kept Gaussians as viewers expect them.

    Those that are not finite or all but transparent are left out. A rotation of length 0, which is
    drawn as the identity, is written as one; the sign of a scale, which nothing shows, is dropped.
    """
    path = Path(path)
    g = gaussians
    opacity = np.asarray(g.opacities, np.float64)
    quats = np.asarray(g.quats)
    still = (np.square(quats).sum(axis=1, keepdims=True) <= 1e-20) & [True, False, False, False]
    columns = [
        np.asarray(g.means),
        np.zeros_like(np.asarray(g.means)),
        (np.asarray(g.colors) - 0.5) / SH_CONSTANT,
        np.log(np.clip(opacity, 1e-6, 1 - 1e-6) / (1 - np.clip(opacity, 1e-6, 1 - 1e-6)))[:, None],
        np.log(np.maximum(np.abs(np.asarray(g.scales)), 1e-9)),
        np.where(still, 1.0, quats),
    ]
    table = np.concatenate(columns, axis=1).astype("<f4")
    keep = keep & np.isfinite(table).all(axis=1) & (opacity >= 1 / 255)
    vertices = np.zeros(int(keep.sum()), dtype=[(name, "<f4") for name in _COLUMNS])
    for index, name in enumerate(_COLUMNS):
        vertices[name] = table[keep, index]
    with write_beside(path) as file:
        PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<").write(file)
    return path


def read_ply(path: str | Path) -> Gaussians:
    """Read the constant-colour part of a Gaussian splatting PLY as everlasting static Gaussians.

    Raises:
        DataError: The file is missing, not a PLY, or lacks the columns.
    """
    path = Path(path)
    try:
        vertices = PlyData.read(str(path))["vertex"].data
        table = {
            name: np.asarray(vertices[name], np.float32) for name in _COLUMNS if name[0] != "n"
        }
    except Exception as error:  # plyfile raises many kinds
        raise DataError(f"{path}: not a whole Gaussian splatting PLY ({error}).") from None
    stack = lambda *names: np.stack([table[n] for n in names], axis=1)  # noqa: E731
    return make_gaussians(
        means=stack("x", "y", "z"),
        colors=stack("f_dc_0", "f_dc_1", "f_dc_2") * SH_CONSTANT + 0.5,
        scales=np.exp(stack("scale_0", "scale_1", "scale_2")),
        opacities=1 / (1 + np.exp(-table["opacity"])),
        quats=stack("rot_0", "rot_1", "rot_2", "rot_3"),
    )
