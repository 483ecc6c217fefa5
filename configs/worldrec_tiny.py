"""WorldRec `tiny`: feed-forward reconstruction of streets and real drives at 96 x 160.

Starts from the weights of `worldrec_easy_tiny` (`--set init_from=tiny` from those that ship).
Data: `jwm data make` folders (configs/README.md), and the real drives with poses in `$JWM_DATA`, a
drive that no training sees beside them for evaluation. LPIPS, whose weights are there too, keeps
pictures sharp: the same training without it, 1,200 steps from the shipped weights, left the unseen
drive with 0.7 of the energy that it had before. `--set clips=[] held_out_clips=[] loss.lpips=0
'datasets=["data/streets_easy","data/streets_full","data/streets_easy_rig","data/streets_full_rig"]'`
does without.
Hardware and time: about an hour on one CPU core.
Command: jwm train worldrec_tiny --out runs/worldrec_tiny
"""

from jwm_jax.paradigms.worldrec import WorldRecExperiment
from jwm_jax.training.optimizer import OptimizerConfig
from jwm_jax.worldrec.losses import LossWeights


def config() -> WorldRecExperiment:
    """The experiment."""
    return WorldRecExperiment(
        name="worldrec_tiny",
        steps=3000,
        batch_size=2,
        datasets=(
            "data/streets_easy",
            "data/streets_full",
            "data/streets_photo",
            "data/streets_easy_rig",
            "data/streets_full_rig",
            "data/streets_photo_rig",
        ),
        clips=(
            "folder:$JWM_DATA/real_sequences/kitti_0926_drive0001",
            "folder:$JWM_DATA/real_sequences/kitti_odometry_residential",
            "folder:$JWM_DATA/real_sequences/tri_six_cameras",
            "kitti:$JWM_DATA/kitti_0926_seq64",
        ),
        held_out_clips=("folder:$JWM_DATA/real_sequences/kitti_0926_drive0027",),
        loss=LossWeights(lpips=0.1),
        init_from="runs/worldrec_easy_tiny/model",
        optimizer=OptimizerConfig(
            learning_rate=1.5e-3, warmup_steps=50, final_fraction=0.02, ema_decay=0.995
        ),
        eval_every=250,
        checkpoint_minutes=3.0,
    )
