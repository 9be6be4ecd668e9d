#!/usr/bin/env python3
"""Compares our decoding, cropping and resizing with Pillow's: same images, same plans, pixel by pixel; and the time of both.

    scripts/check-pillow.py [DATA] [--rounds 3] [--files FOLDER ...]

First every kind of image in image_kinds.py (made there: formats, pixel layouts, orientations, oddities) and the files of the folders, whole, against
`exif_transpose` and `convert("RGB")`: equal, but for JPEG (also in TIFF) and Lab, and none refused that Pillow reads, but for those listed here.
With DATA, a folder with imagenet-shaped/*.parquet and jpeg-zoo/zoo.tar.zst, a table of crops follows, with these bounds: mean difference 0.25/255,
99.9th percentile 2/255, speed 1.0 times Pillow's. Exits 1 above a bound. What is needed from PyPI goes into a virtual environment under ~/.cache, outside
of the repository.
"""
import argparse, collections, glob, io, itertools, json, os, pathlib, struct, subprocess, sys, tarfile, time, warnings

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


class Program:
    """A program of nepa-benchmarks that answers encoded images; built first, as the tests build it, unless NEPA_PROGRAMS names a folder with it."""

    def __init__(self, name, *arguments):
        folder = os.environ.get("NEPA_PROGRAMS")
        if folder is None:
            subprocess.run([ROOT / "scripts/dev-build.sh"], check=True)
            folder = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug"
        self.process = subprocess.Popen([pathlib.Path(folder) / name, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


class WholeImages(Program):
    def __init__(self):
        super().__init__("decode_dump")

    def __call__(self, data):
        """The pixels as [height, width, 3], or the error."""
        self.process.stdin.write(struct.pack("<I", len(data)) + data)
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            return answer["error"]
        shape = answer["height"], answer["width"], 3
        return np.frombuffer(self.process.stdout.read(shape[0] * shape[1] * 3), dtype=np.uint8).reshape(shape)


# What Pillow reads and we do not, as the README says, by the end of the kind's name.
REFUSED = {
    "lzma": "a compression that no library here knows",
    "group3": "the same",
    "tiff_ccitt": "the same",
    "gray 12": "samples of 12 bits",
    "palette8 short table": "a palette without all colours",
    "gif no palette": "a GIF without a palette is damaged",
    "gif no palette, transparent": "the same",
}
# Where pixels may differ: the largest mean and single difference.
CLOSE = {
    "jpeg": (0.05, 3, "JPEG within TIFF is decoded by another library"),
    "jpeg large": (0.05, 3, "the same"),
    "bmp 16": (1.0, 1, "five bits become eight by another rounding"),
    "bmp 16 bitfields 565": (1.0, 1, "the same"),
    "ycbcr 4:4:4": (0.5, 1, "Pillow rounds down"),
    "lab": (1.0, 40, "colours that sRGB does not have are clipped elsewhere"),
    "lab wide": (1.0, 40, "the same"),
    "lab by Pillow": (1.0, 40, "the same"),
    "tiff rgb16 planar": (255.0, 255, "Pillow takes 16-bit planes for 8-bit ones"),
    "gif local gray ramp": (255.0, 255, "Pillow shows a frame with a palette of its own in the colours of the global one"),
}


def check_whole(folders):
    """Compares every kind and the files of the folders; whether all is as it should be."""
    import image_kinds

    decode, counts, good = WholeImages(), collections.Counter(), True
    files = (("files", path.name, path.read_bytes()) for folder in folders for path in sorted(pathlib.Path(folder).iterdir()))
    for group, name, data in itertools.chain(image_kinds.all_kinds(), files):
        ours = decode(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                theirs = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
        except (OSError, ValueError) as error:
            counts[group, "only Pillow refuses" if not isinstance(ours, str) else "both refuse"] += 1
            continue
        mean, most, _ = next((bound for end, bound in CLOSE.items() if name.endswith(end)), (0, 0, ""))
        if isinstance(ours, str):
            is_good, what = any(name.endswith(end) for end in REFUSED), f"refused here: {ours}"
        elif ours.shape != theirs.shape:
            is_good, what = False, f"another size: {ours.shape[1]} x {ours.shape[0]} here, {theirs.shape[1]} x {theirs.shape[0]} in Pillow"
        else:
            difference = np.abs(ours.astype(int) - theirs)
            is_good, what = difference.mean() <= mean and difference.max() <= most, f"differs by {difference.mean():.3f}, at most {difference.max()}"
            if difference.max() == 0:
                what = "equal"
        counts[group, what.split(":")[0].split(" by ")[0] + ("" if is_good else ", AGAINST THE LIST")] += 1
        if not is_good:
            good = False
            print(f"  {group}: {name}: {what}")
    for (group, what), count in sorted(counts.items()):
        print(f"{group:14} {count:4} {what}")
    return good


class Renderer(Program):
    def __init__(self):
        super().__init__("render_dump", str(SIDE))

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
    parser.add_argument("data", nargs="?")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of timing, ours and Pillow's in turn")
    parser.add_argument("--files", nargs="*", default=[], help="folders of images that are compared whole as well")
    options = parser.parse_args()
    failed = not check_whole(options.files)
    if options.data is None:
        print("FAILED" if failed else "as Pillow, but for what is listed in this script")
        sys.exit(int(failed))
    render = Renderer()
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
