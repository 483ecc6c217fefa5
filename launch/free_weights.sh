#!/usr/bin/env bash
# Trains the tiny models on procedural streets alone, so that their weights are free of the licences
# of real drives:
#
#     launch/free_weights.sh FOLDER
#
# Repeat it to go on after it was stopped. CLIPS is the number of streets of each rung, STEPS that of
# every training, where the configs' own are too many.
set -euo pipefail
folder=${1:?usage: launch/free_weights.sh FOLDER}
mkdir -p "$folder"
cd "$folder"

streets() { # NAME RUNG CLIPS VIEWS FRAMES
    [ -d "data/$1" ] || jwm data make --rung "$2" --clips "$3" --views $4 --frames "$5" --out "data/$1"
}

train() { # NAME SETTING...
    local name=$1
    shift
    [ -d "runs/$name/model" ] || jwm train "$name" --out "runs/$name" ${STEPS:+--steps "$STEPS"} --set "$@"
}

front=front rig="front_left front front_right"
streets streets_easy easy "${CLIPS:-300}" "$front" 25
streets streets_full full "${CLIPS:-300}" "$front" 25
streets streets_easy_rig easy "${CLIPS:-30}" "$rig" 17
streets streets_full_rig full "${CLIPS:-16}" "$rig" 17
rigs='["data/streets_easy","data/streets_full","data/streets_easy_rig","data/streets_full_rig"]'
held_out=${HELD_OUT:-4}
train worldrec_easy_tiny "held_out=$held_out"
train worldrec_tiny 'clips=[]' 'held_out_clips=[]' loss.lpips=0 "datasets=$rigs" "held_out=$held_out"
train codec_tiny 'clips=[]' stills= 'held_out_clips=[]' loss.lpips=0 "held_out=$held_out"
codec="model.codec=runs/codec_tiny/model model.latent_channels=64"
train worldgen_pretrain_tiny 'source.clips=[]' $codec "source.held_out=$held_out"
train worldgen_tiny 'source.clips=[]' $codec "source.held_out=$held_out"
train worldgen_joint_tiny 'source.clips=[]' $codec "source.held_out=$held_out" rec=runs/worldrec_tiny/model
