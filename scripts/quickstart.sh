#!/usr/bin/env bash
# From nothing to a small pretrained model on rendered scenes, in ./quickstart, each step by the commands a user would type.
set -euo pipefail
cd "$(dirname "$0")/.."
# candle's threads wait for each other in a busy loop by default; with the decode threads beside them on the same few cores,
# that time is taken from whoever has work. 0 makes them sleep instead.
export CANDLE_BARRIER_POOL_SPIN_LIMIT=0
out=quickstart
if [ -e "$out" ]; then
    echo "error: ./$out is already there and nothing is overwritten; remove it (rm -r $out) and run this again." >&2
    exit 1
fi
step() { printf '\n== %s\n' "$1"; shift; echo "\$ $*"; "$@"; }

step "Build (some minutes the first time)" cargo build --locked --release --workspace --bin nepa
nepa="${CARGO_TARGET_DIR:-target}/release/nepa"
mkdir "$out"
step "Render a labelled set of scenes" "$nepa" sample-data "$out/scenes"
train="$out/scenes/train-*.parquet" val="$out/scenes/val-*.parquet"
step "Look at it as the model will" "$nepa" inspect "$train" --grid "$out/grid.png"
step "Pretrain" "$nepa" pretrain trainer/recipes/quickstart.toml --data "$train" --out "$out/run"

# The mean of the first and last ten steps: single steps are noisy.
mean_loss() { sed -nE 's/.*"loss":([-0-9.eE]+).*/\1/p' | awk '{ sum += $1 } END { printf "%.4f", sum / NR }'; }
before=$(head -10 "$out/run/metrics.jsonl" | mean_loss)
after=$(tail -10 "$out/run/metrics.jsonl" | mean_loss)
printf '\nloss, mean of ten steps: %s at the start, %s at the end\n' "$before" "$after"

step "How good are its features? Pixels, the model before training, and after" \
    "$nepa" eval all --checkpoint "$out/run" --train "$train" --test "$val" --layers 2,last --attention causal
step "Draw what it learned" "$nepa" report "$out/run" --train "$train" --test "$val" --out "$out/report" --ridge-only
step "Write the weights in the published layout" "$nepa" export "$out/run" "$out/model" --ema

cat <<MESSAGE

Everything lies in ./$out:
  scenes/            shards, train and val        grid.png   images as the model sees them
  report/index.html  curves, accuracies, what it predicts and attends to
  run/metrics.jsonl  one line a step              run/       checkpoints, recipe; tensorboard --logdir $out/run
  model/             config.json, model.safetensors
Next, with your own folder of images (one subfolder a class):
  $nepa pack FOLDER shards --val-fraction 0.1
  $nepa pretrain trainer/recipes/imagenette-small.toml --data 'shards/train-*.parquet' --out runs/mine
MESSAGE
