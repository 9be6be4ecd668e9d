"""NEPA in plain PyTorch, the other runner of the races: scaled_dot_product_attention, fused AdamW, EMA, and on a GPU bfloat16 autocast and torch.compile.

  nepa_torch.py check FOLDER      compares loss and gradients with a golden folder's tensors, so that the race is between equals
  nepa_torch.py work FOLDER       one step for each line of standard input, "ROPE_SCALE LR"; answers with one line of JSON.
                                  FOLDER holds config.json, model.safetensors and step.json, as the benchmark `step` writes them
  nepa_torch.py rate RECIPE       images a second and peak memory of whole steps with random weights, for --batches

Like our engines it runs the blocks on P tokens, because the last one changes neither the loss nor a gradient; the published code runs P + 1.
"""
import argparse
import contextlib
import json
import math
import os
import resource
import sys
import time
import traceback

import tomllib

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

NO_DECAY = ("bias", "layernorm", "rmsnorm", "layer_scale")


def decays(name):
    name = name.lower()
    return not (any(part in name for part in NO_DECAY) or any(p == "norm" or p.endswith("_norm") for p in name.split(".")))


class Nepa(torch.nn.Module):
    """Weights under their published names, dots replaced, since PyTorch allows none in a parameter's name."""

    def __init__(self, config, weights):
        super().__init__()
        self.config = config
        for name, value in weights.items():
            self.register_parameter(name.replace(".", "/"), torch.nn.Parameter(value))
        self.act = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu}[config["hidden_act"]]
        self.side = config["image_size"] // config["patch_size"]
        self.head = config["hidden_size"] // config["num_attention_heads"]

    @classmethod
    def read(cls, folder):
        return cls(json.load(open(os.path.join(folder, "config.json"))), load_file(os.path.join(folder, "model.safetensors")))

    @classmethod
    def random(cls, config):
        config = {"num_channels": 3, "image_size": 224, "patch_size": 14, "hidden_act": "gelu"} | config
        d, mlp, patch, embeddings = config["hidden_size"], config["intermediate_size"], config["patch_size"], "vit_nepa.embeddings"
        weights = {f"{embeddings}.cls_token": torch.randn(1, 1, d) * 0.02}

        def linear(name, out, *inputs):
            weights[f"{name}.weight"] = torch.randn(out, *inputs) * 0.02
            weights[f"{name}.bias"] = torch.zeros(out)

        def norm(name, width):
            weights[f"{name}.weight"], weights[f"{name}.bias"] = torch.ones(width), torch.zeros(width)

        linear(f"{embeddings}.patch_embeddings.projection", d, config["num_channels"], patch, patch)
        norm("vit_nepa.layernorm", d)
        for n in range(config["num_hidden_layers"]):
            layer = f"vit_nepa.encoder.layer.{n}"
            for part in ("query", "key", "value"):
                linear(f"{layer}.attention.attention.{part}", d, d)
            if config.get("qk_norm_affine", False):
                for part in ("q_norm", "k_norm"):
                    weights[f"{layer}.attention.attention.{part}.weight"] = torch.ones(d // config["num_attention_heads"])
            linear(f"{layer}.attention.output.dense", d, d)
            for part in ("up_proj", "gate_proj") if config.get("use_gated_mlp", False) else ("up_proj",):
                linear(f"{layer}.intermediate.{part}", mlp, d)
            linear(f"{layer}.output.dense", d, mlp)
            for part in ("layernorm_before", "layernorm_after"):
                norm(f"{layer}.{part}", d)
            for part in ("layer_scale", "output.layer_scale"):
                weights[f"{layer}.{part}.lambda1"] = torch.full((d,), 1e-5)
        return cls(config, weights)

    def __getitem__(self, name):
        return self._parameters.get(name.replace(".", "/"))

    def named(self):
        return {name.replace("/", "."): value for name, value in self.named_parameters()}

    def rotary(self, scale, tokens, device):
        centres = 2 * (torch.arange(self.side, dtype=torch.float64) + 0.5) / self.side - 1
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        quarter = self.head // 4
        frequencies = self.config.get("rope_theta", 100.0) ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
        angles = 2 * math.pi * scale * torch.cat([y.reshape(-1, 1) * frequencies, x.reshape(-1, 1) * frequencies], 1).repeat(1, 2)
        angles = torch.cat([torch.zeros(1, self.head, dtype=torch.float64), angles])[:tokens]
        return angles.cos().float().to(device), angles.sin().float().to(device)

    def linear(self, x, name):
        return F.linear(x, self[f"{name}.weight"], self[f"{name}.bias"])

    def norm(self, x, name, width):
        return F.layer_norm(x, (width,), self[f"{name}.weight"], self[f"{name}.bias"], self.config.get("layer_norm_eps", 1e-12))

    def forward(self, pixels, cos, sin):
        config = self.config
        width, heads, embeddings = config["hidden_size"], config["num_attention_heads"], "vit_nepa.embeddings"
        projection = f"{embeddings}.patch_embeddings.projection"
        patches = F.conv2d(pixels, self[f"{projection}.weight"], self[f"{projection}.bias"], stride=config["patch_size"])
        patches = patches.flatten(2).transpose(1, 2)
        batch = patches.shape[0]
        x = torch.cat([self[f"{embeddings}.cls_token"].expand(batch, -1, -1), patches[:, :-1]], 1)
        tokens = x.shape[1]

        def rotate(v):
            a, b = v.chunk(2, -1)
            return v * cos + torch.cat([-b, a], -1) * sin

        for n in range(config["num_hidden_layers"]):
            layer = f"vit_nepa.encoder.layer.{n}"
            attention = f"{layer}.attention.attention"
            h = self.norm(x, f"{layer}.layernorm_before", width)
            q, k, v = (self.linear(h, f"{attention}.{part}").view(batch, tokens, heads, self.head).transpose(1, 2) for part in ("query", "key", "value"))
            if config.get("qk_norm", True):
                q, k = self.norm(q, f"{attention}.q_norm", self.head), self.norm(k, f"{attention}.k_norm", self.head)
            q, k = rotate(q).to(v.dtype), rotate(k).to(v.dtype)
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, tokens, width)
            x = x + self[f"{layer}.layer_scale.lambda1"] * self.linear(o, f"{layer}.attention.output.dense")
            h = self.norm(x, f"{layer}.layernorm_after", width)
            up = self.linear(h, f"{layer}.intermediate.up_proj")
            if config.get("use_gated_mlp", False):
                up = self.act(self.linear(h, f"{layer}.intermediate.gate_proj")) * up
            else:
                up = self.act(up)
            x = x + self[f"{layer}.output.layer_scale.lambda1"] * self.linear(up, f"{layer}.output.dense")
        y = self.norm(x, "vit_nepa.layernorm", width)
        y, z = F.normalize(y.float(), dim=-1, eps=1e-12), F.normalize(patches.detach().float(), dim=-1, eps=1e-12)
        return -(y * z).sum(-1).mean()


def check(args):
    model, reference = Nepa.read(args.folder), load_file(os.path.join(args.folder, "reference.safetensors"))
    pixels, scale = reference["pixel_values"], reference["rope_scale"].item()
    cos, sin = model.rotary(scale, model.side**2, "cpu")
    loss = model(pixels, cos, sin)
    loss.backward()
    off = {"loss": abs(loss.item() - reference["loss"].item())}
    for name, value in model.named().items():
        expected = reference[f"grad.{name}"]
        off[name] = ((value.grad - expected).norm() / expected.norm()).item()
    worst = max(off, key=off.get)
    print(f"{args.folder}: loss off by {off['loss']:.1e}, worst of {len(off) - 1} gradients {off[worst]:.1e} ({worst})")
    return off["loss"] < 1e-6 and off[worst] < 1e-5


def peak_mib():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def cpu_s():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Trainer:
    """Forward, backward, clipping, AdamW and average of whole steps on one batch."""

    def __init__(self, model, run, pixels, args):
        self.model, self.run, self.pixels, self.bf16 = model, run, pixels, args.bf16
        self.names = model.named()
        groups = [
            {"params": [value for name, value in self.names.items() if decays(name)], "weight_decay": run["weight_decay"]},
            {"params": [value for name, value in self.names.items() if not decays(name)], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(run["beta1"], run["beta2"]), eps=run["eps"], fused=True)
        self.weights = [value.data for value in self.names.values()]
        self.average = None
        # Not dynamic: at the second size one slower graph for all sizes would be made.
        self.forward = torch.compile(model, dynamic=False) if args.compile else model

    def step(self, scale, lr):
        model, run, device = self.model, self.run, self.pixels.device
        cos, sin = model.rotary(scale, model.side**2, device)
        self.optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for part in self.pixels.split(run["micro_batch"]):
            with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                part = self.forward(part, cos, sin) * (run["micro_batch"] / run["batch"])
            part.backward()
            loss = loss + part.detach()
        torch.nn.utils.clip_grad_norm_(self.names.values(), run["max_grad_norm"])
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        if self.average is None:
            self.average = [value.clone() for value in self.weights]
        else:
            torch._foreach_lerp_(self.average, self.weights, 1 - run["ema_decay"])
        # Waits for the device.
        return loss.item()


def work(args):
    device = torch.device(args.device)
    model = Nepa.read(args.folder).to(device)
    run = json.load(open(os.path.join(args.folder, "step.json")))
    side, batch = model.config["image_size"], run["batch"]
    # The pixels of the benchmark `step`.
    pixels = (torch.arange(3 * side * side).unsqueeze(0) * 31 + torch.arange(batch).unsqueeze(1) * 7919) % 255
    pixels = (pixels.float() / 127.5 - 1).view(batch, 3, side, side).to(device)
    trainer = Trainer(model, run, pixels, args)
    print("ready", flush=True)
    for line in sys.stdin:
        scale, lr = map(float, line.split())
        wall, cpu = time.perf_counter(), cpu_s()
        loss = trainer.step(scale, lr)
        print(json.dumps({"wall_ms": 1e3 * (time.perf_counter() - wall), "cpu_ms": 1e3 * (cpu_s() - cpu), "peak_mib": peak_mib(), "loss": loss}), flush=True)
    return True


def attention(kind):
    """Where scaled_dot_product_attention is computed: as PyTorch chooses, or by cuDNN."""
    if kind == "default":
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.CUDNN_ATTENTION)


def one_rate(args, recipe, batch, kind, device):
    """Milliseconds of a step, images a second, GiB."""
    run = {"weight_decay": 0.05, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8}
    run |= {"max_grad_norm": 1.0, "ema_decay": 0.9999, "batch": batch, "micro_batch": batch}
    if kind == "cudnn" and device.type != "cuda":
        return ["not on a processor", "", ""]
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    # What was compiled for another kind of attention must not be taken again.
    torch.compiler.reset()
    model = Nepa.random(recipe["model"]).to(device)
    side = model.config["image_size"]
    pixels = torch.rand(batch, 3, side, side, device=device) * 2 - 1
    trainer = Trainer(model, run, pixels, args)
    times = []
    with attention(kind):
        for number in range(args.steps + 5):
            start = time.perf_counter()
            trainer.step(1.0, 1e-5)
            if number == 0:
                first = time.perf_counter() - start
                print(f"the first step took {first:.1f} s", file=sys.stderr, flush=True)
            if number >= 5:
                times.append(time.perf_counter() - start)
    seconds = sorted(times)[len(times) // 2]
    gpu = device.type == "cuda"
    memory = torch.cuda.max_memory_allocated() / 2**30 if gpu else peak_mib() / 1024
    return [f"{1e3 * seconds:.1f}", f"{batch / seconds:.0f}", f"{memory:.1f}"]


def rate(args):
    device = torch.device(args.device)
    with open(args.folder, "rb") as file:
        recipe = tomllib.load(file)
    passed = True
    for kind in args.attention or ["default"]:
        name = f"PyTorch {torch.__version__}"
        name += ", compiled" if args.compile else ""
        name += ", cuDNN attention" if kind == "cudnn" else ""
        for batch in map(int, args.batches.split(",")):
            try:
                cells = one_rate(args, recipe, batch, kind, device)
            except torch.OutOfMemoryError:
                cells = ["out of memory", "", ""]
            except RuntimeError as error:  # It must not hide the other rows.
                traceback.print_exc()
                reason = str(error).splitlines()[0].replace("|", "/")
                cells, passed = [f"FAILED: {reason}", "", ""], False
            print(f"| {recipe['name']} | {name} | {batch} | {' | '.join(cells)} |", flush=True)
    sys.exit(0 if passed else 3)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["check", "work", "rate"])
    parser.add_argument("folder", help="for `rate` a recipe")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    kinds = ["default", "cudnn"]
    parser.add_argument("--attention", action="append", choices=kinds, help="for `rate`")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batches", default="64,128,256")
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    sys.exit(0 if {"check": check, "work": work, "rate": rate}[args.command](args) else 1)


if __name__ == "__main__":
    main()
