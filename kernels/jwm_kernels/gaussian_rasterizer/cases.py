"""Named real shapes, shared by tests and benchmarks, and the scenes that go with them."""

import dataclasses

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class Case:
    """Size of a rasterization."""

    gaussians: int
    width: int
    height: int
    cameras: int = 1


CASES: dict[str, Case] = {
    "tiny": Case(15_000, 160, 96),
    "rig": Case(20_000, 160, 96, cameras=3),
    "small": Case(20_000, 256, 128),
    "big": Case(200_000, 960, 640),
    "surround": Case(200_000, 960, 640, cameras=6),
    "huge": Case(1_000_000, 1920, 1080),
}
"""`tiny` and `rig` are what the tiny models train on; the others are for comparisons."""

SLOW_ON_CPU = frozenset({"huge"})
"""Cases that take minutes on a CPU."""


@dataclasses.dataclass(frozen=True)
class Splats:
    """Arguments of `rasterization`, NumPy float32."""

    means: Float[np.ndarray, "n 3"]
    quats: Float[np.ndarray, "n 4"]
    scales: Float[np.ndarray, "n 3"]
    opacities: Float[np.ndarray, "n"]
    colors: Float[np.ndarray, "n d"]
    viewmats: Float[np.ndarray, "c 4 4"]
    Ks: Float[np.ndarray, "c 3 3"]
    width: int
    height: int

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """The seven arrays in the order of `rasterization`."""
        return (
            self.means, self.quats, self.scales, self.opacities, self.colors,
            self.viewmats, self.Ks,
        )  # fmt: skip


def make_splats(case: Case, *, seed: int = 0, sigma: float = 1.5, channels: int = 3) -> Splats:
    """Splats as a feed-forward reconstruction gives them.

    Uniform over the image of the first camera and 5 % of its width or height beyond each edge,
    log-uniform in depth from 3 to 80 m, `sigma` pixels wide in the median (one in fifty: eight
    times that), opacities 0.1 to 0.99. Further cameras stand 0.3 m apart and turn by 4 degrees.

    Args:
      case: size.
      seed: of the random numbers.
      sigma: median standard deviation on the screen in pixels.
      channels: colour channels.

    Returns:
      `Splats`.
    """
    random = np.random.default_rng(seed)
    n, width, height = case.gaussians, case.width, case.height
    focal = 0.8 * width
    z = np.exp(random.uniform(np.log(3), np.log(80), n))
    u = random.uniform(-0.05 * width, 1.05 * width, n)
    v = random.uniform(-0.05 * height, 1.05 * height, n)
    spread = sigma * np.exp(random.normal(0, 0.4, n))
    spread[random.random(n) < 0.02] *= 8
    viewmats = np.tile(np.eye(4), (case.cameras, 1, 1))
    for camera in range(case.cameras):
        angle = np.deg2rad(4.0 * camera)
        viewmats[camera, [0, 0, 2, 2], [0, 2, 0, 2]] = (
            np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle),
        )  # fmt: skip
        viewmats[camera, 0, 3] = -0.3 * camera
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    values = (
        np.stack([(u - width / 2) / focal * z, (v - height / 2) / focal * z, z], -1),
        random.normal(size=(n, 4)),
        (spread * z / focal)[:, None] * np.exp(random.normal(0, 0.3, (n, 3))),
        random.uniform(0.1, 0.99, n),
        random.random((n, channels)),
        viewmats,
        np.tile(intrinsics, (case.cameras, 1, 1)),
    )
    return Splats(*(value.astype(np.float32) for value in values), width, height)
