#!/usr/bin/env python3
"""Checks models against the published PyTorch code: what it writes is read here, and what is exported here is read there.

    scripts/check-published.py [REPOSITORY [NEPA]]

REPOSITORY is a checkout of the published code, $NEPA_PUBLISHED unless given; NEPA is the program, `target/debug/nepa` unless given.
A classifier and a model of pretraining of B/14 size with random weights are written by the published class, in one file and in several.
`nepa eval top1` and `nepa predict` must find its logits on the same pictures; exports, of these and of a small run, must load with
strict=True, compute the same, and go through the published conversion to a classifier.
What is needed from PyPI (PyTorch among it, 1 GiB) goes into a virtual environment under ~/.cache, outside of the repository, or into
$NEPA_PUBLISHED_VENV. Needs 4 GiB of memory, 4 GiB in the temporary folder, and a few minutes.
"""
import io, json, os, pathlib, subprocess, sys, tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
VENV = pathlib.Path(os.environ.get("NEPA_PUBLISHED_VENV", CACHE / "nepa-check-published"))
# The published code asks for this version of transformers.
PACKAGES = ["torch", "torchvision", "transformers==4.56.2", "safetensors", "pillow", "numpy", "pyarrow"]
CLONE = "git clone https://github.com/SihanXU/nepa published && scripts/check-published.py published"

if len(sys.argv) > 1 and sys.argv[1] in ("-h", "--help"):
    sys.exit(print(__doc__))
given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("NEPA_PUBLISHED")
PUBLISHED = pathlib.Path(given).resolve() if given else None
if PUBLISHED is None or not (PUBLISHED / "models/vit_nepa/modeling_vit_nepa.py").is_file():
    where = f"{given} is no checkout of the published code" if given else "a checkout of the published code is needed"
    sys.exit(f"{where}; get one:\n    {CLONE}")
NEPA = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else ROOT / "target/debug/nepa").resolve()
if not NEPA.is_file():
    sys.exit(f"{NEPA} is not built: cargo build")

try:
    import numpy as np, pyarrow as pa, pyarrow.parquet as pq, torch
    from PIL import Image
    from safetensors.torch import load_file
    from transformers import ViTImageProcessor
except ImportError:
    python = VENV / "bin" / "python"
    if pathlib.Path(sys.prefix).resolve() == VENV.resolve():
        raise
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    os.execv(python, [str(python), *sys.argv])

sys.path.insert(0, str(PUBLISHED))
from models.vit_nepa.configuration_vit_nepa import ViTNepaConfig
from models.vit_nepa.modeling_vit_nepa import ViTNepaForImageClassification, ViTNepaForPreTraining

CLASSES = ["ant", "big bee", "Käfer", "tench, Tinca tinca", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay", "kite"]
IMAGES = 23
B14 = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, image_size=224, patch_size=14,
           qk_norm=True, add_pooling_layer=True)
# Two steps of four images, with the published evaluation's pixels.
TUNING = ["train.batch=4", "train.micro_batch=4", "train.epochs=none", "train.steps=2", "finetune.head_lr=0.01",
          "finetune.eval.transform=squash-224-bilinear"]
# Greatest difference of a probability where no pixel is resized, of one where a pixel may be off by one level of 255, and of a loss.
SAME_PIXELS, RESIZED, LOSS = 2e-5, 2e-3, 1e-3


def nepa(*arguments):
    result = subprocess.run([NEPA, *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == 0, f"nepa {arguments} failed:\n{result.stdout}{result.stderr}"
    return result.stdout


def spread(model):
    """Random weights of which none is hidden: LayerScale near 1, a head that is not 0, every bias and norm its own."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn_like(weight)
            if name.endswith("lambda1") or (weight.ndim == 1 and name.endswith("weight")):
                weight.copy_(1 + 0.2 * noise)
            elif name.startswith("classifier.weight"):
                weight.copy_(0.3 * noise)
            else:
                weight.copy_((0.1 if weight.ndim == 1 else weight[0].numel() ** -0.5) * noise)
    return model.eval()


def pictures():
    """Smooth ones, every third as large as the model's and others whose shapes a squash and a crop show differently; PNG, so that
    decoding is exact."""
    random = np.random.default_rng(3)
    for number in range(IMAGES):
        small = random.integers(0, 256, (random.integers(4, 9), random.integers(4, 9), 3), dtype=np.uint8)
        size = (224, 224) if number % 3 == 0 else tuple(int(side) for side in random.integers(180, 420, 2))
        buffer = io.BytesIO()
        Image.fromarray(small).resize(size, Image.BICUBIC).save(buffer, "PNG")
        yield buffer.getvalue()


def write_shard(path, images, labels, names):
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    table = pa.table({"image": [{"bytes": image, "path": None} for image in images], "label": labels})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


@torch.no_grad()
def logits_of(model, images):
    processor = ViTImageProcessor()
    rows = []
    for image in images:
        pixels = processor(Image.open(io.BytesIO(image)).convert("RGB"), return_tensors="pt").pixel_values
        rows.append(model(pixel_values=pixels).logits[0].double())
    return torch.stack(rows)


def check_classifier(place, folder, logits, files, shard, labels, names=CLASSES):
    """The program's probabilities, accuracies and loss are those of `logits`."""
    found = [json.loads(line) for line in nepa("predict", folder, *files, "--top", len(CLASSES), "--json").splitlines()]
    same, resized = [0.0], [0.0]
    for number, (line, row) in enumerate(zip(found, logits.softmax(1), strict=True)):
        for entry in line["classes"]:
            assert entry["name"] == names[entry["class"]], entry
            (resized if number % 3 else same).append(abs(entry["probability"] - row[entry["class"]].item()))
    assert max(same) < SAME_PIXELS, f"{place}: a probability is off by {max(same)}"
    assert max(resized) < RESIZED, f"{place}: a probability of a resized picture is off by {max(resized)}"
    report = folder.parent / "top1.json"
    nepa("eval", "top1", "--checkpoint", folder, "--test", shard, "--json", report)
    result = json.loads(report.read_text())["results"][0]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).item()
    order = logits.argsort(1, descending=True)
    right = [sum(label in row[:count].tolist() for row, label in zip(order, labels)) for count in (1, 5)]
    assert [result[key]["right"] for key in ("top1", "top5")] == right, (place, result, right)
    assert abs(result["loss"] - loss) < LOSS, (place, result["loss"], loss)
    print(f"{place}: {len(files)} pictures, probabilities within {max(same):.1e}, resized {max(resized):.1e}; "
          f"top-1 {right[0]}, top-5 {right[1]}, loss {loss:.4f}")


def load_strictly(kind, folder):
    model = kind(ViTNepaConfig.from_pretrained(folder))
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    return model.eval()


def convert(place, folder, target, *arguments):
    """The published conversion of a model of pretraining to a classifier."""
    script = PUBLISHED / "init_nepa_cls_from_pretrain.py"
    command = [sys.executable, script, "--pretrained_model_id", folder, "--num_labels", str(len(CLASSES)), "--save_local",
               "--local_dir", target, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=PUBLISHED)
    assert result.returncode == 0, f"{place}: the published conversion failed:\n{result.stdout}{result.stderr}"
    assert "load_state_dict(missing_keys, unexpected_keys) = 0 0" in result.stdout, result.stdout
    model = load_strictly(ViTNepaForImageClassification, target)
    assert model.fc_norm is not None and not model.classifier.weight.any(), "pooling, and a head of zeros"
    print(f"{place}: through the published conversion, with pooling")
    return model


def main():
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        images = list(pictures())
        files = [scratch / f"{number}.png" for number in range(IMAGES)]
        for path, image in zip(files, images):
            path.write_bytes(image)

        names = dict(enumerate(CLASSES))
        config = ViTNepaConfig(**B14, is_causal=False, qk_norm_affine=True, drop_path_prob=0.1, id2label=names,
                               label2id={name: number for number, name in names.items()}, finetuning_task="image-classification")
        classifier = spread(ViTNepaForImageClassification(config))
        logits = logits_of(classifier, images)
        # Some labels right, some wrong; in the shard the classes have another order.
        order = logits.argsort(1, descending=True)
        labels = [order[row, [0, 0, 2, 7][row % 4]].item() for row in range(IMAGES)]
        others = CLASSES[::-1]
        shard = scratch / "test.parquet"
        write_shard(shard, images, [others.index(CLASSES[label]) for label in labels], others)
        for name, size in [("classifier", "10GB"), ("shards", "100MB")]:
            classifier.save_pretrained(scratch / name, max_shard_size=size)
            ViTImageProcessor().save_pretrained(scratch / name)
            check_classifier(f"published {name}", scratch / name, logits, files, shard, labels)
        assert (scratch / "shards/model.safetensors.index.json").is_file()

        nepa("export", scratch / "shards", scratch / "exported")
        again = load_strictly(ViTNepaForImageClassification, scratch / "exported")
        for name, weight in classifier.state_dict().items():
            assert torch.equal(weight, again.state_dict()[name]), name
        print("exported classifier: strict=True, every weight the same")
        nepa("export", scratch / "classifier", scratch / "folded", "--fold-layerscale")
        folded = logits_of(load_strictly(ViTNepaForImageClassification, scratch / "folded"), images)
        worst = (folded - logits).abs().max().item()
        assert worst < 1e-3 * logits.abs().max().item(), worst
        check_classifier("folded classifier", scratch / "folded", logits, files, shard, labels)
        del again, folded

        pretraining = spread(ViTNepaForPreTraining(ViTNepaConfig(**B14)))
        pretraining.save_pretrained(scratch / "pretraining")
        nepa("export", scratch / "pretraining", scratch / "exported-pretraining")
        again = load_strictly(ViTNepaForPreTraining, scratch / "exported-pretraining")
        for name, weight in pretraining.state_dict().items():
            assert torch.equal(weight, again.state_dict()[name]), name
        print("exported pretraining model: strict=True, every weight the same")
        convert("exported pretraining model", scratch / "exported-pretraining", scratch / "converted")

        # Fine-tuned here, read there.
        nepa("finetune", "nepa-b14-in1k-finetune", "--from", scratch / "pretraining", "--data", shard, "--test", shard,
             "--out", scratch / "tuned", *(f"--set={setting}" for setting in TUNING))
        nepa("export", scratch / "tuned", scratch / "tuned-exported")
        tuned = load_strictly(ViTNepaForImageClassification, scratch / "tuned-exported")
        logits = logits_of(tuned, images)
        assert logits.abs().max() > 0.01, "the head was trained"
        check_classifier("fine-tuned", scratch / "tuned-exported", logits, files, shard,
                         [others.index(CLASSES[label]) for label in labels], others)
        del tuned

        # A run of this program.
        nepa("pretrain", ROOT / "trainer/recipes/tiny.toml", "--data", shard, "--out", scratch / "run")
        for kind in [[], ["--ema"]]:
            target = scratch / f"run{''.join(kind)}-exported"
            nepa("export", scratch / "run", target, *kind)
            load_strictly(ViTNepaForPreTraining, target)
            converted = scratch / f"run{''.join(kind)}-converted"
            convert(f"run {' '.join(kind)}", target, converted)
            assert finds_all_alike(converted, files), "a head of zeros says otherwise"
    print("all agree")


def finds_all_alike(folder, files):
    """Whether the program finds all classes of a head of zeros alike, as it must."""
    lines = nepa("predict", folder, *files[:2], "--top", len(CLASSES), "--json").splitlines()
    shares = [entry["probability"] for line in lines for entry in json.loads(line)["classes"]]
    return all(abs(share - 1 / len(CLASSES)) < 1e-6 for share in shares)


if __name__ == "__main__":
    main()
