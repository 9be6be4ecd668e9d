"""Runs all loaders by turns and prints the tables of scripts/versus.sh, which sets everything up and calls this.

`race.py BIN DATA ROUNDS`: BIN holds our programs, DATA the shards. Ratios are of each round, a peer's processor time an image over ours; medians of the rounds.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
EPOCHS = 3


def run(command, environment=None):
    """The last lines of JSON that a command prints, or the reason why there are none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **(environment or {})})
    except subprocess.TimeoutExpired:
        return None, "took more than five minutes"
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        errors = [line.strip() for line in done.stderr.splitlines() if "Error" in line and not line.startswith(" ")]
        return None, (errors[-1] if errors else "printed nothing")[:120].replace("|", "/")
    return lines, None


def python(script, *arguments):
    return [sys.executable, str(HERE / script), *map(str, arguments)]


def median_and_range(values):
    return f"{statistics.median(values):.2f} | {min(values):.2f} to {max(values):.2f}"


def decode_table(binaries, data, rounds):
    shard = sorted(Path(data).glob("*.parquet"))[0]
    peers = ["simplejpeg", "simplejpeg-linear", "torchvision", "pillow", "spdl", "dali"]
    ours, theirs, names, reasons = [], {peer: [] for peer in peers}, {}, {}
    for _ in range(rounds):
        lines, reason = run([f"{binaries}/decode", str(shard), "--rounds", "2", "--json"])
        if reason:
            sys.exit(f"our own benchmark failed: {reason}")
        ours.append(1000 * lines[0]["cpu_s"] / lines[0]["images"])
        for peer in peers:
            lines, reasons[peer] = run(python("decode_peers.py", peer, shard, 2))
            if lines:
                names[peer] = lines[0]["peer"]
                theirs[peer].append(min(1000 * line["cpu_s"] / line["images"] for line in lines))
            else:
                theirs[peer].append(None)
    print("| decode, crop, resize, flip, normalise, one thread | CPU-ms an image | range | peer / ours |\n|---|---|---|---|")
    print(f"| ours | {median_and_range(ours)} | 1.00 |")
    for peer in peers:
        if None in theirs[peer]:
            print(f"| {peer} | not measured: {reasons[peer]} | | |")
            continue
        ratio = statistics.median(peer_ms / our_ms for peer_ms, our_ms in zip(theirs[peer], ours))
        print(f"| {names[peer]} | {median_and_range(theirs[peer])} | {ratio:.2f} |")


def loader_table(title, binaries, source, peers, rounds, environment=None, log=None):
    contestants = {"ours": [f"{binaries}/loader", source, "--epochs", str(EPOCHS), "--json"]}
    contestants.update({name: python("loader_peers.py", peer, source, EPOCHS) for peer, name in peers.items()})
    results, reasons = {name: [] for name in contestants}, {}
    for _ in range(rounds):
        for name, command in contestants.items():
            if log:
                time.sleep(0.2)
                log.write_text("")
            lines, reasons[name] = run(command, environment)
            result = lines[-1] if lines else None
            if result and log:
                time.sleep(0.2)
                requests = [line.split(" ") for line in log.read_text().splitlines()]
                gets = [int(num_bytes) for method, _, num_bytes, _ in requests if method == "GET"]
                result["gets"], result["mib"] = len(gets), sum(gets) / 2**20
            results[name].append(result)
    extra = " GETs | MiB asked for |" if log else ""
    print(f"| {title} | CPU-ms an image | range | peer / ours | images/s by the clock | ours / peer | memory, MiB | first batch, s |{extra}")
    print("|---|---|---|---|---|---|---|---|" + ("---|---|" if log else ""))
    cpu = {name: [1000 * r["cpu_s"] / r["images"] if r else None for r in rounds_] for name, rounds_ in results.items()}
    rate = {name: [r["images"] / r["wall_s"] if r else None for r in rounds_] for name, rounds_ in results.items()}
    for name in contestants:
        if None in cpu[name]:
            print(f"| {name} | not measured: {reasons[name]} | | | | | | |" + (" | |" if log else ""))
            continue
        median = lambda key: statistics.median(r[key] for r in results[name])  # noqa: E731
        ratio = statistics.median(theirs / ours for theirs, ours in zip(cpu[name], cpu["ours"]))
        clock = statistics.median(ours / theirs for theirs, ours in zip(rate[name], rate["ours"]))
        row = f"| {name} | {median_and_range(cpu[name])} | {ratio:.2f} | {statistics.median(rate[name]):.0f} | {clock:.2f} | {median('peak_mib'):.0f} | {median('first_batch_s'):.2f} |"
        print(row + (f" {median('gets'):.0f} | {median('mib'):.0f} |" if log else ""))


def main():
    binaries, data, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    decode_table(binaries, data, rounds)
    with tempfile.TemporaryDirectory() as work:
        # Links, because one of the peers writes an index beside the shards.
        folder = Path(work, "shards")
        folder.mkdir()
        for shard in Path(data).glob("*.parquet"):
            (folder / shard.name).symlink_to(shard.resolve())
        print()
        peers = {
            "dali": "DALI (CPU) behind pyarrow",
            "datago": "datago, from files; centre crop, no random one",
            "spdl": "spdl behind pyarrow",
            "torch": "torch DataLoader + Pillow behind pyarrow",
            "hf": "Hugging Face datasets, streaming",
            "litdata": "LitData ParquetLoader + Pillow",
        }
        loader_table("from disk, two workers", binaries, str(folder), peers, rounds)
        log = Path(work, "requests")
        server = subprocess.Popen([f"{binaries}/nepa-test-s3", str(folder), "--bucket", "bench", "--log", str(log)], stdout=subprocess.PIPE, text=True)
        try:
            environment = {"AWS_ALLOW_HTTP": "true"}
            for line in server.stdout:
                if line.strip() == "ready":
                    break
                name, value = line.strip().split("=", 1)
                environment[name] = value
            print()
            del peers["datago"]
            loader_table("from S3 on this machine, two workers", binaries, "s3://bench", peers, rounds, environment, log)
        finally:
            server.kill()


main()
