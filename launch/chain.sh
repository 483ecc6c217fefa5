#!/usr/bin/env bash
# Trains the tiny generator by the whole chain, on streets, and prints its table:
#
#     launch/chain.sh FOLDER
#
# bidirectional pretraining -> teacher forcing -> the same with priors from scenes -> consistency
# distillation to 4 steps -> distribution matching with 4, 2 and 1 steps -> `jwm evaluate distillation`
# of all of them. Repeat it to go on after it was stopped. CODEC is a codec's model directory, where the
# shipped one is not meant; COUNT the streets of the table (256). See stages.sh for what else may be set.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:?usage: launch/chain.sh FOLDER}
mkdir -p "$folder"
cd "$folder"
source "$here/stages.sh"

streets streets_easy easy "${CLIPS:-300}" front 25
streets streets_full full "${CLIPS:-300}" front 25
common="source.clips=[] source.held_out=${HELD_OUT:-4}"
[ -z "${CODEC:-}" ] || common+=" model.codec=$CODEC"

stage pretrain worldgen_pretrain_tiny $common
stage forced worldgen_tiny $common init_from=runs/pretrain/model
stage joint worldgen_joint_tiny $common clips_share=0 init_from=runs/forced/model
teacher="teacher=runs/joint/model"
stage cd4 worldgen_cd_tiny $common $teacher
matching="$teacher real=runs/pretrain/model"
stage dmd4 worldgen_dmd_tiny $common $matching init_from=runs/cd4/model
stage dmd2 worldgen_dmd_tiny $common $matching init_from=runs/dmd4/model rollout_steps=2
stage dmd1 worldgen_dmd_tiny $common $matching init_from=runs/dmd2/model rollout_steps=1
jwm evaluate distillation --count "${COUNT:-256}" --out runs/table --gens 'runs/joint/model?steps=50' \
    'runs/joint/model?steps=4' runs/cd4/model runs/dmd4/model runs/dmd2/model runs/dmd1/model
