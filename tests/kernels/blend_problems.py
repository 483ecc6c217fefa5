"""Blends without cameras: random tables and hand-made tile lists for tests of backends."""

import dataclasses

import jax
import numpy as np

from jwm_kernels.gaussian_rasterizer.blending.vjp import BlendSpec


@dataclasses.dataclass(frozen=True)
class Problem:
    """Arguments of a backend's forward and the gradients of its results."""

    spec: BlendSpec
    table: np.ndarray
    rows: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    grad_out: np.ndarray
    grad_transmittance: np.ndarray

    def run(self, backend):
        """Features, transmittance and gradient of the table, compiled together."""

        @jax.jit
        def both(*arguments):
            lists, gradients = arguments[:4], arguments[4:]
            out, transmittance = backend.forward(*lists, self.spec)
            gradient = backend.backward(*lists, out, transmittance, *gradients, self.spec)
            return out, transmittance, gradient

        return both(
            self.table, self.rows, self.starts, self.counts,
            self.grad_out, self.grad_transmittance,
        )  # fmt: skip


def make_problem(
    counts,
    *,
    tile_size: int,
    tiles_x: int = 2,
    splats: int = 300,
    features: int = 3,
    absgrad: bool = False,
    opacity: float = 0.6,
    sigma: float = 3.0,
    spare: int = 40,
    seed: int = 0,
) -> Problem:
    """One row of tiles per image.

    Args:
      counts: number of entries of every tile, a multiple of `tiles_x` of them.
      tile_size: side of a tile in pixels.
      tiles_x: tiles of an image.
      splats: rows of the table.
      features: channels.
      absgrad: appends the two columns of absolute gradients.
      opacity: largest opacity.
      sigma: standard deviation in pixels.
      spare: capacity beyond the sum of the counts.
      seed: of the random numbers.

    Returns:
      the problem, float32.
    """
    random = np.random.default_rng(seed)
    width = tiles_x * tile_size
    spec = BlendSpec(width - 1, tile_size, tile_size, 0.99, absgrad=absgrad)
    xx, yy = np.exp(random.normal(2 * np.log(sigma), 0.5, (2, splats)))
    xy = random.uniform(-0.7, 0.7, splats) * np.sqrt(xx * yy)
    table = np.stack(
        [
            random.uniform(-2, width + 2, splats),
            random.uniform(-2, tile_size + 2, splats),
            -0.5 / xx,
            -xy / xx,
            -0.5 * xx / (xx * yy - xy**2),
            np.log(random.uniform(0.02, opacity, splats)),
            *random.random((features, splats)),
            *np.zeros((2 * absgrad, splats)),
        ],
        1,
    )
    counts = np.asarray(counts, np.int32)
    rows = [random.permutation(splats)[:count] for count in counts]
    rows.append(np.zeros(spare, int))
    tiles, pixels = len(counts), tile_size**2
    return Problem(
        spec,
        table.astype(np.float32),
        np.concatenate(rows).astype(np.int32),
        (np.cumsum(counts) - counts).astype(np.int32),
        counts,
        random.normal(size=(tiles, features, pixels)).astype(np.float32),
        random.normal(size=(tiles, pixels)).astype(np.float32),
    )
