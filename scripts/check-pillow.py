#!/usr/bin/env python3
"""Compares our decoding, cropping and resizing with Pillow's: same images, same plans, pixel by pixel; and the time of both.

    scripts/check-pillow.py DATA [--rounds 3]

DATA is a folder with imagenet-shaped/*.parquet and jpeg-zoo/zoo.tar.zst. Prints a table and exits 1 above the bounds: mean difference 0.25/255,
99.9th percentile 2/255, speed 1.0 times Pillow's. What is needed from PyPI goes into a virtual environment under ~/.cache, outside of the repository.
"""
import argparse, collections, glob, io, json, os, pathlib, struct, subprocess, sys, tarfile, time

ROOT = pathlib.Path(__file__).resolve().parent.parent
VENV = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "nepa-check-pillow"
try:
    import numpy as np, PIL, pyarrow.parquet as pq, zstandard
    from PIL import Image, ImageOps, features
except ImportError:
    python = VENV / "bin" / "python"
    if pathlib.Path(sys.prefix) == VENV.resolve():
        raise
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "pillow==13.0.0", "pyarrow", "numpy", "zstandard"], check=True)
    os.execv(python, [str(python), *sys.argv])

MAX_MEAN, MAX_P999, SIDE = 0.25, 2.0, 224
KINDS = ["rect bilinear", "rect bicubic", "image bilinear", "image bicubic"]
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def parquet_images(data):
    for path in sorted(glob.glob(f"{data}/imagenet-shaped/*.parquet")):
        for row, image in enumerate(pq.read_table(path, columns=["image"])["image"].to_pylist()):
            yield f"{os.path.basename(path)}:{row}", image["bytes"]


def zoo_images(data):
    with open(f"{data}/jpeg-zoo/zoo.tar.zst", "rb") as file:
        for member in (tar := tarfile.open(fileobj=zstandard.ZstdDecompressor().stream_reader(file), mode="r|")):
            if member.isfile() and "valid/" in member.name:
                yield member.name, tar.extractfile(member).read()


class Renderer:
    def __init__(self):
        subprocess.run(["cargo", "build", "--quiet", "-p", "nepa-pipeline", "--example", "render_dump"], cwd=ROOT, check=True)
        target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
        self.process = subprocess.Popen([target / "debug/examples/render_dump", str(SIDE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, data):
        """For each kind: the answer and the pixels as [S, S, 3] in units of 1/255."""
        self.process.stdin.write(struct.pack("<I", len(data)) + data)
        self.process.stdin.flush()
        for _ in KINDS:
            answer = json.loads(self.process.stdout.readline())
            pixels = None
            if "plan" in answer:
                raw = np.frombuffer(self.process.stdout.read(3 * SIDE * SIDE * 4), dtype="<f4").reshape(3, SIDE, SIDE)
                pixels = (raw.transpose(1, 2, 0) * 0.5 + 0.5) * 255
            yield answer, pixels


def pillow(data, plan):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    x, y, width, height = (plan["rect"][key] for key in ("x", "y", "width", "height"))
    size, box, resample = (plan["output_size"],) * 2, (x, y, x + width, y + height), FILTERS[plan["filter"]]
    if plan["edge"] == "rect":
        image = image.crop(tuple(round(value) for value in box)).resize(size, resample)
    else:
        image = image.resize(size, resample, box=(x, y, min(x + width, image.width), min(y + height, image.height)))
    if plan["flip"]:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    # The last step of a loader, as ToTensor and Normalize do it.
    return (np.asarray(image).transpose(2, 0, 1).astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of timing, ours and Pillow's in turn")
    options = parser.parse_args()
    render, failed = Renderer(), False
    print(f"Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}, smooth (\"fancy\") chroma upsampling")
    print(f"{'set':18} {'kind':15} {'images':>6} {'mean':>8} {'p99.9':>6} {'max':>5}  worst image (its mean)")
    sets = {"imagenet-shaped": list(parquet_images(options.data)), "zoo/valid": list(zoo_images(options.data))}
    for name, images in sets.items():
        histogram, worst = collections.defaultdict(lambda: np.zeros(256 * 16 + 1, dtype=np.int64)), {}
        total, disagreements = collections.Counter(), []
        for image_name, data in images:
            for kind, (answer, ours) in zip(KINDS, render(data)):
                if ours is None:
                    disagreements.append(f"{image_name}: ours refuses: {answer['error']}")
                    continue
                try:
                    theirs = (pillow(data, answer["plan"]).transpose(1, 2, 0) * 0.5 + 0.5) * 255
                except OSError as error:
                    disagreements.append(f"{image_name}: Pillow refuses: {error}")
                    continue
                difference = np.abs(ours - theirs)
                histogram[kind] += np.bincount(np.rint(difference * 16).astype(np.int64).ravel(), minlength=256 * 16 + 1)
                total[kind] += 1
                worst[kind] = max(worst.get(kind, (-1.0, "")), (float(difference.mean()), image_name))
        for kind in KINDS:
            counts = histogram[kind]
            mean = (counts * np.arange(len(counts))).sum() / counts.sum() / 16
            p999 = np.searchsorted(counts.cumsum(), 0.999 * counts.sum()) / 16
            failed |= bool(mean > MAX_MEAN or p999 > MAX_P999 or worst[kind][0] > MAX_MEAN)
            print(f"{name:18} {kind:15} {total[kind]:6} {mean:8.5f} {p999:6.2f} {counts.nonzero()[0][-1] / 16:5.1f}  {worst[kind][1]} ({worst[kind][0]:.4f})")
        for line in sorted(set(disagreements)):
            failed = True
            print(f"  {line}")
    # Time of decode + crop + normalise on one core; ours and Pillow's take turns image by image.
    images, ours_ns, theirs_ns = sets["imagenet-shaped"], [], []
    for _ in range(options.rounds):
        sums = [0, 0]
        for _, data in images:
            answers = [answer for answer, _ in render(data)]
            sums[0] += answers[0]["ns"]
            start = time.perf_counter_ns()
            pillow(data, answers[0]["plan"])
            sums[1] += time.perf_counter_ns() - start
        ours_ns.append(sums[0])
        theirs_ns.append(sums[1])
    rates = [len(images) / (min(times) / 1e9) for times in (ours_ns, theirs_ns)]
    print(f"one core, decode + crop (rect bilinear) + normalise: ours {rates[0]:.0f} images/s, Pillow {rates[1]:.0f} images/s, ratio {rates[0] / rates[1]:.2f}")
    failed |= rates[0] < rates[1]
    print("FAILED: above the bounds" if failed else "within the bounds")
    sys.exit(int(failed))


main()
