#!/usr/bin/env bash
# From nothing to a small pretrained model and a classifier on rendered scenes, in ./quickstart, each step by the command that a user would type.
# NEPA_BIN names a program that is built already.
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd)
out=quickstart
# candle's threads wait for each other in a busy loop by default; with the decode threads beside them on the same few cores,
# that time is taken from whoever has work. 0 makes them sleep instead.
export CANDLE_BARRIER_POOL_SPIN_LIMIT=0

# A command as it can be pasted: quotes where they must be, broken before options into lines of at most 100 columns.
show() {
    local word part='' line='$'
    for word in "$@" --; do
        if [[ $word == --* ]]; then
            if ((${#line} + ${#part} > 98)); then
                printf '%s \\\n' "$line"
                line="   "
            fi
            line+=$part
            part=""
        fi
        [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
        part+=" $word"
    done
    printf '%s\n' "$line"
}
doing=""
step() {
    doing=$1
    shift
    printf '\n== %s\n' "$doing"
    show "$@"
    "$@"
}

if [ -e "$out" ]; then
    if [ -e "$out/report/index.html" ]; then
        echo "The quickstart was done here before: everything lies in ./$out, its report in $out/report/index.html."
    else
        echo "./$out is there already, of a quickstart that did not come to its end or of something else."
    fi
    echo "Nothing is overwritten. To do it anew: rm -r $out, then this command again; or run it in another directory."
    exit 1
fi >&2

# shellcheck disable=SC2329 # called by the trap
ended() {
    local status=$?
    [ -n "$doing" ] || return 0
    printf '\nThe quickstart ended early, at "%s" (exit code %d).\n' "$doing" "$status"
    [ ! -e "$out" ] || echo "To begin again: rm -r $out, then the same command; the program stays built."
} >&2
trap ended EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# On a terminal cargo shows its own progress; elsewhere it would print a line for each of some 500 crates.
build() {
    local command=(cargo build --locked --release --workspace --bin nepa)
    if [ -t 2 ]; then
        (cd "$repo" && "${command[@]}")
        return
    fi
    local line crates=0 said=$SECONDS
    (cd "$repo" && "${command[@]}" 2>&1) | while IFS= read -r line; do
        case $line in
            *Compiling\ * | *Download*) crates=$((crates + 1)) ;;
            *) printf '%s\n' "$line" ;;
        esac
        if ((SECONDS - said >= 30)); then
            said=$SECONDS
            printf '    %d crates compiled, %d s\n' "$crates" "$SECONDS"
        fi
    done
}
if [ -n "${NEPA_BIN:-}" ]; then
    nepa=$NEPA_BIN
else
    doing="Build (some minutes the first time)"
    printf '== %s\n' "$doing"
    [ "$PWD" = "$repo" ] || show cd "$repo"
    show cargo build --locked --release --workspace --bin nepa
    build
    target=${CARGO_TARGET_DIR:-target}
    [[ $target == /* ]] || target=$repo/$target
    nepa=$target/release/nepa
    nepa=${nepa#"$PWD"/}
fi

mkdir "$out"
train="$out/scenes/train-*.parquet" val="$out/scenes/val-*.parquet"
# Causal, as in training; one way of looking in the table and in the report.
features=(--layers "2,last" --attention causal)
step "Render a labelled set of scenes" "$nepa" sample-data "$out/scenes"
step "Look at it as the model will" "$nepa" inspect "$train" --grid "$out/grid.png"
step "Pretrain (a minute or two)" "$nepa" pretrain "$repo/trainer/recipes/quickstart.toml" --data "$train" --out "$out/run"
step "Write the weights in the published layout" "$nepa" export "$out/run" "$out/model" --ema
step "Draw what it learned" "$nepa" report "$out/run" --train "$train" --test "$val" \
    "${features[@]}" --ridge-only --out "$out/report"
step "How good are its features? Pixels, the model before training, and after" \
    "$nepa" eval all --checkpoint "$out/run" --train "$train" --test "$val" "${features[@]}"
# The same steps from random weights, of which nothing is frozen and all layers learn alike.
scratch=(--random-weights --set finetune.freeze=nothing --set finetune.layer_decay=1)
tune=("$nepa" finetune "$repo/trainer/recipes/quickstart-finetune.toml" --from "$out/run")
step "Make a classifier of it" "${tune[@]}" --data "$train" --test "$val" --out "$out/classifier"
step "The same from random weights, to compare with" \
    "${tune[@]}" "${scratch[@]}" --data "$train" --test "$val" --out "$out/scratch"
step "Draw both" "$nepa" report "$out/classifier" "$out/scratch" --out "$out/classifiers"
doing=""

# Top-1 of the best evaluation of a run, in per cent.
top1() {
    local best
    best=$(grep '"best":true' "$out/$1/evals.jsonl" 2>/dev/null | tail -n 1) || return 0
    [[ $best =~ \"ema\":\{\"top1\":([0-9.e-]+) ]] || return 0
    awk -v share="${BASH_REMATCH[1]}" 'BEGIN { printf "%.1f %%", 100 * share }'
}
cat <<MESSAGE

Right on 400 scenes that were not trained on, of 10 classes:
  pretrained without labels, then fine-tuned:  $(top1 classifier)
  from random weights, with as many steps:     $(top1 scratch)
The difference is what pretraining gave; on so few scenes, one below 6 points may
be chance. The same on photos: benchmarks/results/2026-11-30-finetune.md.

Next, with your own folder of images (one subfolder a class):
$(show "$nepa" pack FOLDER shards --val-fraction 0.1)
$(show "$nepa" pretrain "$repo/trainer/recipes/imagenette-small.toml" --data 'shards/train-*.parquet' --out runs/mine)

Done in $((SECONDS / 60)) min $((SECONDS % 60)) s. Everything lies in ./$out:
  scenes/  shards, train and val      model/  config.json, model.safetensors
  run/     checkpoints and logs; tensorboard --logdir $out/run
  classifier/, scratch/               the two classifiers, likewise
  the classifiers beside each other, curves:  $out/classifiers/index.html
  images as the model sees them, a picture:   $out/grid.png
  curves, predictions, attention, accuracies: $out/report/index.html
MESSAGE
