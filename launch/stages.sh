# Sourced by the scripts of this folder: data sets and trainings that are skipped where they are there.
# CLIPS is the number of streets of each rung, STEPS that of every training, where the configs' own are
# too many; DEVICES is passed on.

streets() { # NAME RUNG CLIPS VIEWS FRAMES
    [ -d "data/$1" ] || jwm data make --rung "$2" --clips "$3" --views $4 --frames "$5" --out "data/$1"
}

stage() { # RUN NAME SETTING...
    local run=$1 name=$2
    shift 2
    [ -d "runs/$run/model" ] ||
        jwm train "$name" --out "runs/$run" ${DEVICES:+--devices "$DEVICES"} ${STEPS:+--steps "$STEPS"} --set "$@"
}
