"""The joint stage of the `tiny` generator: teacher forcing with priors from WorldRec `tiny`.

Third of three stages, and the one whose weights ship as worldgen-tiny. Reproduces the coupling
of arXiv 2605.18137 (rendered scene as condition) on the procedural streets: the scene is that of
the first instant, the targets are the 2.4 s that follow. Data, codec and hardware as for
`worldgen_tiny`, from whose weights it starts; the scenes are those of the shipped WorldRec
unless `--set rec=runs/worldrec_tiny/model`. Their depth is from lidar for every second clip, as
in use wherever there is lidar, and from the network for the others:

    jwm train worldgen_joint_tiny --devices 2 --out runs/worldgen_joint_tiny

Real drives are a ninth of the examples; `clips_share` draws three rows of ten from them, which no
comparison has measured yet. `--set source.clips=[] clips_share=0` does without.

The first run encodes the data set with its priors, about one second a clip on two CPU cores. The
prior is hidden from 30 % of the samples, so that the weights serve without a scene too. Blocks
are updated by Muon: from the same weights at a learning rate of 1e-3, the mean training loss of
260 steps of batch 4 was 0.599, with AdamW 0.622. The shipped weights had a shorter run; their
card says which.
"""

from dataclasses import replace

from jwm_configs import worldgen_tiny
from jwm_jax.paradigms.teacher_forcing import TeacherForcingExperiment


def config() -> TeacherForcingExperiment:
    """The experiment."""
    before = worldgen_tiny.config()
    return replace(
        before,
        name="worldgen_joint_tiny",
        rec="tiny",
        clips_share=0.3,
        init_from="runs/worldgen_tiny/model",
        dropout={**before.dropout, "prior": 0.3},
        optimizer=replace(before.optimizer, learning_rate=5e-4),
    )
