"""A generator and a way to sample it, written on one line:

    MODEL?steps=50&prior=0&key_frame_every=2&window=6&sink=0&sink_ema=0.9&context_noise=0.1

MODEL is a shipped size or a model directory. ``steps`` a chunk are the model's own unless given;
``prior=0`` leaves the scene out; ``key_frame_every`` is `KeyFrames.every`, 0 for none;
``window`` and ``sink`` change how many latent frames a session remembers, ``sink_ema`` and
``context_noise`` how (`WorldGenConfig`).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from jwm_jax.data.specs import number, split_options, switch, whole_number
from jwm_jax.errors import UsageError
from jwm_jax.joint import JointWorldModel, KeyFrames, Rollout
from jwm_jax.scene import Clip, Scene, Trajectory
from jwm_jax.worldgen import WorldGen
from jwm_jax.worldrec import WorldRec

OPTIONS = {
    "steps": whole_number(1),
    "prior": switch,
    "key_frame_every": whole_number(0),
    "window": whole_number(1),
    "sink": whole_number(0),
    "sink_ema": number(0.0),
    "context_noise": number(0.0),
}
"""Options of a spec and how their values are read."""


@dataclass(frozen=True)
class Variant:
    """A generator as a row of a table samples it.

    Attributes:
        name: The spec it was read from.
        gen: The generator.
        steps: Denoising steps a chunk.
        prior: Whether the scene is shown to it.
        key_frame_every: Chunks between key frames that go back into the scene; 0 for none.
    """

    name: str
    gen: WorldGen
    steps: int
    prior: bool = True
    key_frame_every: int = 0

    def rollout(
        self, rec: WorldRec, start: Clip, future: Trajectory, scene: Scene, seed: int
    ) -> Rollout:
        """The future of a start, see `JointWorldModel.rollout`."""
        fed_back = self.prior and self.key_frame_every
        return JointWorldModel(rec, self.gen).rollout(
            start,
            future,
            seed=seed,
            steps=self.steps,
            use_prior=self.prior,
            scene=scene if self.prior else None,
            key_frames=KeyFrames(self.key_frame_every) if fed_back else None,
        )

    def identity(self, *others: object) -> str:
        """Twelve digits that name this row: weights, configuration, sampling, and what is added."""
        settings = (self.gen.config, self.gen.codec.config, self.steps, self.prior)
        weights = digest_of(self.gen.params, self.gen.codec.params)
        text = repr((weights, settings, self.key_frame_every, others))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def digest_of(*trees: object) -> str:
    """SHA-256 of the arrays of some trees, as hexadecimal digits."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(trees):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def load_variant(spec: str) -> Variant:
    """Reads a spec and the model it names.

    Raises:
        UsageError: An unknown option or value, or no such model.
        DataError: A broken model.
    """
    model, given = split_options("generator", spec, OPTIONS)
    gen = WorldGen.from_pretrained(model)
    memory = {n: given[n] for n in ("window", "sink", "sink_ema", "context_noise") if n in given}
    try:
        gen = replace(gen, config=replace(gen.config, **memory))
    except ValueError as error:
        raise UsageError(f"generator {spec!r}: {error}") from None
    steps = given.get("steps", gen.config.sampling_steps)
    prior, key_frame_every = given.get("prior", True), given.get("key_frame_every", 0)
    return Variant(spec, gen, steps, prior, key_frame_every)


def check_variants(variants: Sequence[Variant]) -> None:
    """Refuse rows that cannot share a table.

    Raises:
        UsageError: There is none, two have one name, or they generate in different latents.
    """
    names = [variant.name for variant in variants]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"generators must be at least one, and each once; got {names}.")
    if len({repr(v.gen.codec.config) for v in variants}) > 1:
        raise UsageError(f"generators of one table must share a codec; got {names}.")
