#!/usr/bin/env bash
# Trains the tiny models on procedural streets alone, so that their weights are free of the licences
# of real drives:
#
#     launch/free_weights.sh FOLDER
#
# Repeat it to go on after it was stopped. See stages.sh for what may be set.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:?usage: launch/free_weights.sh FOLDER}
mkdir -p "$folder"
cd "$folder"

source "$here/stages.sh"

front=front rig="front_left front front_right"
streets streets_easy easy "${CLIPS:-300}" "$front" 25
streets streets_full full "${CLIPS:-300}" "$front" 25
streets streets_easy_rig easy "${CLIPS:-30}" "$rig" 17
streets streets_full_rig full "${CLIPS:-16}" "$rig" 17
rigs='["data/streets_easy","data/streets_full","data/streets_easy_rig","data/streets_full_rig"]'
held_out=${HELD_OUT:-4}
stage worldrec_easy_tiny worldrec_easy_tiny "held_out=$held_out"
stage worldrec_tiny worldrec_tiny 'clips=[]' 'held_out_clips=[]' loss.lpips=0 "datasets=$rigs" "held_out=$held_out"
stage codec_tiny codec_tiny 'clips=[]' stills= 'held_out_clips=[]' loss.lpips=0 "held_out=$held_out"
codec="model.codec=runs/codec_tiny/model model.latent_channels=64"
stage worldgen_pretrain_tiny worldgen_pretrain_tiny 'source.clips=[]' $codec "source.held_out=$held_out" rec=runs/worldrec_tiny/model
stage worldgen_tiny worldgen_tiny 'source.clips=[]' $codec "source.held_out=$held_out"
stage worldgen_joint_tiny worldgen_joint_tiny 'source.clips=[]' clips_share=0 $codec "source.held_out=$held_out" rec=runs/worldrec_tiny/model
