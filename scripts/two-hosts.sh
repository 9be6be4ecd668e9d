#!/usr/bin/env bash
# Two hosts on this machine: network namespaces with addresses of their own and a cable between them (a veth pair). Trains the tiny recipe on a rank
# on each, started by hand (--rank, --ranks, --meet), by mpirun and by torchrun where those are found (TORCHRUN names one), and compares the weights
# with those of one process. Then it makes ranks fail, and says what a user sees and after how long (docs/ranks.md): 3 minutes, as two failures are silence.
# scripts/two-hosts.sh [NEPA]: the program; target/release/nepa or target/debug/nepa without it.
# Linux only; needs ip (iproute2) and unshare (util-linux), and root or a system where users may make namespaces. Nothing is left behind: all of it lies
# in namespaces of this script's own, and ends with them.
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd)
export LC_ALL=C

if [ -z "${NEPA_TWO_HOSTS:-}" ]; then
    nepa=${1:-}
    for built in release debug; do
        [ -n "$nepa" ] || [ ! -x "$repo/target/$built/nepa" ] || nepa=$repo/target/$built/nepa
    done
    if [ ! -x "$nepa" ]; then
        echo "error: there is no program ${nepa:-in target/release or target/debug}; build it (make), or name one: scripts/two-hosts.sh NEPA" >&2
        exit 1
    fi
    for program in ip unshare; do
        if ! command -v "$program" >/dev/null; then
            echo "error: this needs the program $program (of iproute2 and util-linux)" >&2
            exit 1
        fi
    done
    # With all processes in it, so that none outlives the script.
    own=(unshare --net --mount --pid --fork --kill-child --mount-proc)
    if "${own[@]}" --map-root-user true 2>/dev/null; then
        own+=(--map-root-user)
    elif ! "${own[@]}" true 2>/dev/null; then
        echo "error: no namespaces can be made here. Run this as root (in a container: with the capability SYS_ADMIN), or where users may make them" >&2
        exit 1
    fi
    NEPA_TWO_HOSTS=$(realpath "$nepa") exec "${own[@]}" "$repo/scripts/two-hosts.sh"
fi

nepa=$NEPA_TWO_HOSTS
# The first process of a namespace hears only signals that it asks for.
trap 'exit 130' INT
trap 'exit 143' TERM
# Memory, gone with the namespace; ip keeps the names of namespaces in it.
mount -t tmpfs tmpfs /run
work=/run/two-hosts
mkdir /run/netns "$work"
export XDG_STATE_HOME=$work/state TMPDIR=$work
hosts=(a b)
addresses=(10.77.0.1 10.77.0.2)
ip netns add a
ip netns add b
ip link add cable-a netns a type veth peer name cable-b netns b
for i in 0 1; do
    host=${hosts[i]}
    ip -n "$host" addr add "${addresses[i]}/24" dev "cable-$host"
    ip -n "$host" link set lo up
    ip -n "$host" link set "cable-$host" up
done

"$nepa" sample-data "$work/data" --images 60 --val-images 0 --shards 3 >/dev/null
run=(pretrain "$repo/trainer/recipes/tiny.toml" --data "$work/data/train-*.parquet"
    --set train.micro_batch=2 --set checkpoint.every_steps=1000 --set log.tensorboard=false)
failed=0
wrong() {
    echo "  WRONG: $*"
    failed=1
}
# Messages as they were before they were broken into lines: those of rank $1 are in the file $2.
words() {
    local inset="  "
    [ "$1" = 0 ] || inset="rank $1:   "
    awk -v inset="$inset" '
        index($0, inset) == 1 { printf " %s", substr($0, length(inset) + 1); next }
        { printf "%s%s", (NR > 1 ? "\n" : ""), $0 }
        END { print "" }' "$2"
}

echo "== The bits of one process"
steps=(--set train.steps=40)
"$nepa" "${run[@]}" "${steps[@]}" --out "$work/one" >/dev/null
# Compares the run $1 with that of one process.
same() {
    local name
    for name in model ema optimizer; do
        name=checkpoints/step-00000040/$name.safetensors
        cmp "$work/one/$name" "$work/$1/$name" || { wrong "$1: $name differs"; return; }
    done
    echo "  $1: two hosts give the bytes of one"
}
# Starts both ranks of the run $1 with the rest of the arguments; their processes are in pids, their words in $1.0 and $1.1 (of a path its last name).
pids=()
begin() {
    local out=$1 words=${1##*/} i
    shift
    for i in 0 1; do
        # ip becomes the program, so this is its process.
        ip netns exec "${hosts[i]}" "$nepa" "${run[@]}" "$@" --out "$work/$out" --rank "$i" --ranks 2 --meet "${addresses[0]}:29501" \
            >"$work/$words.$i" 2>&1 &
        pids[i]=$!
    done
}
# A way to start the ranks that is tried: its name, then a command whose run is of that name.
tried() {
    local name=$1
    shift
    if "$@" >"$work/$name.said" 2>&1; then
        same "$name"
    else
        wrong "$name does not train:"
        tail -n 20 "$work/$name.said"
    fi
}
by_hand() {
    begin by-hand "${steps[@]}"
    if ! { wait "${pids[0]}" && wait "${pids[1]}"; }; then
        cat "$work"/by-hand.[01]
        return 1
    fi
}
by_mpirun() {
    # What mpirun takes for ssh: runs a command on the other host.
    printf '#!/bin/sh\nshift\nexec ip netns exec b sh -c "$*"\n' >"$work/agent"
    chmod +x "$work/agent"
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    timeout 60 ip netns exec a mpirun --host "${addresses[0]},${addresses[1]}" -n 2 --bind-to none -x "MASTER_ADDR=${addresses[0]}" \
        --mca plm_rsh_agent "$work/agent" --mca oob_tcp_if_include 10.77.0.0/24 \
        "$nepa" "${run[@]}" "${steps[@]}" --out "$work/mpirun"
}
by_torchrun() {
    local i
    for i in 0 1; do
        timeout 120 ip netns exec "${hosts[i]}" "$torchrun" --no-python --nnodes 2 --node-rank "$i" --nproc-per-node 1 \
            --master-addr "${addresses[0]}" --master-port 29400 "$nepa" "${run[@]}" "${steps[@]}" --out "$work/torchrun" &
        pids[i]=$!
    done
    wait "${pids[0]}" && wait "${pids[1]}"
}
tried by-hand by_hand
if command -v mpirun >/dev/null; then
    tried mpirun by_mpirun
else
    echo "  SKIPPED: there is no mpirun"
fi
torchrun=${TORCHRUN:-$(command -v torchrun || true)}
if [ -n "$torchrun" ]; then
    tried torchrun by_torchrun
else
    echo "  SKIPPED: there is no torchrun (TORCHRUN names one)"
fi

# Waits until the run $1 has done some steps.
trains() {
    local tries=0
    until [ "$(cat "$work/$1/metrics.jsonl" 2>/dev/null | wc -l)" -gt 10 ]; do
        tries=$((tries + 1))
        if [ "$tries" -gt 600 ]; then
            cat "$work/$1".[01]
            echo "error: the ranks did no steps within a minute" >&2
            exit 1
        fi
        sleep 0.1
    done
}
since() {
    awk -v began="$1" -v now="$EPOCHREALTIME" 'BEGIN { printf "%.1f", now - began }'
}
# Something happens to the ranks of the run $1: waits for the ends of the ranks named in $3 and tells of them. They must take at least
# and at most the seconds in $2, and each word of the rest, a rank and what it must say as 0:TEXT, must have been said.
ends() {
    local out=$1 least=${2%-*} most=${2#*-} rank began=$EPOCHREALTIME took code word
    shift 2
    for rank in $1; do
        code=0
        wait "${pids[rank]}" || code=$?
        took=$(since "$began")
        echo "  rank $rank has ended after $took s, exit code $code:"
        words "$rank" "$work/$out.$rank" | { grep -E 'error: |warning|WARN|waiting for rank|saved after' || true; } | sed 's/^/    /'
        awk -v took="$took" -v least="$least" -v most="$most" 'BEGIN { exit !(took >= least && took <= most) }' ||
            wrong "that should take $least to $most s"
    done
    shift
    for word in "$@"; do
        words "${word%%:*}" "$work/$out.${word%%:*}" | grep -qF -- "${word#*:}" || wrong "rank ${word%%:*} does not say: ${word#*:}"
    done
}
endless=(--set train.steps=1000000)

echo "== Rank 1 is killed"
begin killed "${endless[@]}"
trains killed
kill -KILL "${pids[1]}"
wait "${pids[1]}" 2>/dev/null || true
ends killed 0-5 "0" "0:rank 1 has ended without a word: it was killed, or has crashed" "0:saved after step"

echo "== Rank 0 is killed"
begin killed-0 "${endless[@]}"
trains killed-0
kill -KILL "${pids[0]}"
wait "${pids[0]}" 2>/dev/null || true
ends killed-0 0-5 "1" "1:rank 0 has ended without a word: it was killed, or has crashed"

echo "== The disk of rank 0 is full"
mkdir "$work/small"
mount -t tmpfs -o size=1200k tmpfs "$work/small"
begin small/full --set train.steps=1000000 --set checkpoint.every_steps=1 --set checkpoint.keep=50
ends full 0-30 "0 1" "0:cannot save the checkpoint of step" "1:rank 0 has failed: cannot save the checkpoint of step"
umount "$work/small"

echo "== Rank 1 is stopped (SIGSTOP)"
begin stopped "${endless[@]}"
trains stopped
kill -STOP "${pids[1]}"
ends stopped 54-75 "0" "0:waiting for rank 1 for 10 s; its last sign of life came" "0:rank 1 gave no sign of life for 60 s" "0:saved after step"
kill -KILL "${pids[1]}"
wait "${pids[1]}" 2>/dev/null || true

echo "== The cable is cut"
begin cut "${endless[@]}"
trains cut
ip -n b link set cable-b down
ends cut 54-75 "0 1" "0:waiting for rank 1 for 10 s; its last sign of life came" "0:rank 1 gave no sign of life for 60 s" "0:saved after step" \
    "1:rank 0 gave no sign of life for 60 s"

if [ "$failed" -ne 0 ]; then
    echo "Something is wrong (above)."
    exit 1
fi
echo "All is as it should be."
