"""Runs all loaders by turns and prints the tables of `make versus`; the program `report` calls this.

`race.py BIN DATA ROUNDS [ONLY]`: BIN holds our programs, DATA the shards; ONLY names contestants of the whole loaders, with commas between them, and leaves the decoders out.
Ratios are of each round, a peer's processor time an image over ours; medians of the rounds. A peer that fails is not run again, and its row says why.
"""
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

HERE = Path(__file__).parent
# One pass over copies of the shards, not several over the shards, so that what a loader does once a pass weighs little, and no cache of an earlier pass serves a later one.
COPIES, EPOCHS, BATCH = 8, 1, 32
LIMIT_S = 120
# The whole loaders. `ours` always runs, as ratios are to it.
LOADERS = {
    "ours": "ours",
    "ours-python": "ours from Python (the wheel)",
    "dali": "DALI (CPU) behind pyarrow",
    "datago": "datago, from files; centre crop, no random one",
    "spdl": "spdl behind pyarrow",
    "torch-tensors": "torch DataLoader + torchvision on tensors, behind pyarrow",
    "torch": "torch DataLoader + Pillow behind pyarrow",
    "hf": "Hugging Face datasets, streaming, + Pillow",
    "litdata": "LitData ParquetLoader + Pillow",
}


def run(command, environment=None):
    """The lines of JSON that a command prints, or the reason why there are none."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True, env={**os.environ, **(environment or {})}
    )
    try:
        output, errors = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        # Its workers, too.
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None, f"took more than {LIMIT_S} s"
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        named = [line.strip() for line in errors.splitlines() if "Error" in line and not line.startswith(" ")]
        reason = named[-1] if named else (errors.strip().splitlines() or [f"ended with {process.returncode}"])[-1]
        return None, reason[:160].replace("|", "/")
    return lines, None


def python(script, *arguments):
    return [sys.executable, str(HERE / script), *map(str, arguments)]


def median_and_range(values):
    return f"{statistics.median(values):.2f} | {min(values):.2f} to {max(values):.2f}"


def decode_table(binaries, data, rounds):
    shard = sorted(Path(data).glob("*.parquet"))[0]
    peers = ["simplejpeg-scaled", "simplejpeg-linear", "simplejpeg-area", "dali", "torchvision", "spdl", "pillow"]
    ours, theirs, names, reasons = [], {peer: [] for peer in peers}, {}, {}
    for _ in range(rounds):
        lines, reason = run([f"{binaries}/decode", str(shard), "--rounds", "2", "--json"])
        if reason:
            sys.exit(f"our own benchmark failed: {reason}")
        ours.append(1000 * lines[0]["cpu_s"] / lines[0]["images"])
        for peer in peers:
            if peer in reasons:
                continue
            lines, reason = run(python("decode_peers.py", peer, shard, 2))
            if reason:
                reasons[peer] = reason
                continue
            names[peer] = lines[0]["peer"]
            theirs[peer].append(statistics.median(1000 * line["cpu_s"] / line["images"] for line in lines))

    def difference(contestant):
        lines, reason = run(python("same_output.py", contestant, shard, f"{binaries}/render_dump"))
        return f"not compared: {reason}" if reason else f"{lines[0]['mean']:.2f}"

    print("| decode, crop, resize, flip, normalise, one thread | CPU-ms an image | range | peer / ours | mean difference from Pillow, 1/255 |\n|---|---|---|---|---|")
    print(f"| ours | {median_and_range(ours)} | 1.00 | {difference('ours')} |")
    for peer in peers:
        if peer in reasons:
            print(f"| {names.get(peer, peer)} | not measured: {reasons[peer]} | | | |")
            continue
        ratio = statistics.median(peer_ms / our_ms for peer_ms, our_ms in zip(theirs[peer], ours))
        print(f"| {names[peer]} | {median_and_range(theirs[peer])} | {ratio:.2f} | {difference(peer)} |")


def bytes_asked_for(log, sizes):
    """The numbers of bytes that GET requests for shards asked for; without a range it is the whole object."""
    found = []
    for line in log.read_text().splitlines():
        method, key, num_bytes, _ = line.split(" ")
        if method == "GET":
            found.append(int(num_bytes) or sizes.get(key.rsplit("/", 1)[-1], 0))
    return found


def loader_command(contestant, binaries, source):
    if contestant == "ours":
        return [f"{binaries}/loader", source, "--epochs", str(EPOCHS), "--json"]
    return python("loader_peers.py", "nepa" if contestant == "ours-python" else contestant, source, EPOCHS)


def race_loaders(contestants, binaries, folder, source, rounds, environment, log):
    """What each contestant measured in each round, and why some did not."""
    sizes = {shard.name: shard.stat().st_size for shard in folder.glob("*.parquet")}
    # All of them but the first batch and what a last, partial batch of each worker may hold.
    least = EPOCHS * sum(pq.read_metadata(folder / name).num_rows for name in sizes) - 3 * BATCH
    results, reasons = {contestant: [] for contestant in contestants}, {}
    for number in range(rounds):
        # There and back, so that a machine that slows down favours nobody.
        for contestant in contestants if number % 2 == 0 else contestants[::-1]:
            if contestant in reasons:
                continue
            if log:
                time.sleep(0.2)
                log.write_text("")
            lines, reason = run(loader_command(contestant, binaries, source), environment)
            if lines and lines[-1]["images"] < least:
                reason = f"gave {lines[-1]['images']} images, not {least}"
            if reason:
                reasons[contestant] = reason
                continue
            result = lines[-1]
            if log:
                time.sleep(0.2)
                asked = bytes_asked_for(log, sizes)
                result["gets"], result["mib"] = len(asked), sum(asked) / 2**20
            results[contestant].append(result)
        if "ours" in reasons:
            sys.exit(f"our own benchmark failed: {reasons['ours']}")
    return results, reasons


def loader_table(title, contestants, binaries, folder, source, rounds, environment=None, log=None):
    results, reasons = race_loaders(contestants, binaries, folder, source, rounds, environment, log)
    extra = " GETs | MiB asked for |" if log else ""
    print(f"| {title} | CPU-ms an image | range | peer / ours | images/s by the clock | ours / peer | memory, MiB | first batch, s |{extra}")
    print("|---|---|---|---|---|---|---|---|" + ("---|---|" if log else ""))
    cpu = {name: [1000 * r["cpu_s"] / r["images"] for r in each] for name, each in results.items()}
    rate = {name: [r["images"] / r["wall_s"] for r in each] for name, each in results.items()}
    for name in contestants:
        if name in reasons:
            print(f"| {LOADERS[name]} | not measured: {reasons[name]} | | | | | | |" + (" | |" if log else ""))
            continue
        median = lambda key: statistics.median(r[key] for r in results[name])  # noqa: E731
        ratio = statistics.median(theirs / ours for theirs, ours in zip(cpu[name], cpu["ours"]))
        clock = statistics.median(ours / theirs for theirs, ours in zip(rate[name], rate["ours"]))
        row = f"| {LOADERS[name]} | {median_and_range(cpu[name])} | {ratio:.2f} | {statistics.median(rate[name]):.0f} | {clock:.2f} | {median('peak_mib'):.0f} | {median('first_batch_s'):.2f} |"
        print(row + (f" {median('gets'):.0f} | {median('mib'):.0f} |" if log else ""), flush=True)
    if results.get("ours-python") and "ours-python" not in reasons:
        print(f"\nOurs from Python over ours, {rounds} rounds: processor time an image {ratios(cpu)}, images/s {ratios(rate)}.", flush=True)


def ratios(values):
    each = [python / ours for python, ours in zip(values["ours-python"], values["ours"])]
    return f"{statistics.median(each):.3f} ({min(each):.3f} to {max(each):.3f})"


def main():
    binaries, data, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    only = sys.argv[4].split(",") if len(sys.argv) > 4 else []
    if unknown := set(only) - set(LOADERS):
        sys.exit(f"no contestant is called {', '.join(sorted(unknown))}; there are {', '.join(LOADERS)}")
    contestants = [name for name in LOADERS if not only or name in only or name == "ours"]
    if not only:
        decode_table(binaries, data, rounds)
    with tempfile.TemporaryDirectory() as work:
        # Links, because one of the peers writes an index beside the shards.
        folder = Path(work, "shards")
        folder.mkdir()
        for shard in Path(data).glob("*.parquet"):
            for copy in range(COPIES):
                (folder / f"{copy}-{shard.name}").symlink_to(shard.resolve())
        print(flush=True)
        loader_table("from disk, two workers", contestants, binaries, folder, str(folder), rounds)
        (folder / "index.json").unlink(missing_ok=True)
        log = Path(work, "requests")
        server = subprocess.Popen([f"{binaries}/nepa-test-s3", str(folder), "--bucket", "bench", "--log", str(log)], stdout=subprocess.PIPE, text=True)
        try:
            environment = {"AWS_ALLOW_HTTP": "true"}
            for line in server.stdout:
                if line.strip() == "ready":
                    break
                name, value = line.strip().split("=", 1)
                environment[name] = value
            print(flush=True)
            contestants = [name for name in contestants if name != "datago"]
            loader_table("from S3 on this machine, two workers", contestants, binaries, folder, "s3://bench", rounds, environment, log)
        finally:
            server.kill()


main()
