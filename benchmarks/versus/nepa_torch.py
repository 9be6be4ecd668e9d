"""NEPA in plain PyTorch, the other runner of the races: scaled_dot_product_attention, fused AdamW, EMA, and on a GPU bfloat16 autocast and torch.compile.

  nepa_torch.py check FOLDER      compares loss and gradients with a golden folder's tensors, so that the race is between equals
  nepa_torch.py work FOLDER       one step for each line of standard input, "ROPE_SCALE LR"; answers with one line of JSON.
                                  FOLDER holds config.json, model.safetensors and step.json, as the benchmark `step` writes them

Like our engines it runs the blocks on P tokens, because the last one changes neither the loss nor a gradient; the published code runs P + 1.
"""
import argparse
import json
import math
import os
import resource
import sys
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

NO_DECAY = ("bias", "layernorm", "rmsnorm", "layer_scale")


def decays(name):
    name = name.lower()
    return not (any(part in name for part in NO_DECAY) or any(p == "norm" or p.endswith("_norm") for p in name.split(".")))


class Nepa(torch.nn.Module):
    """Weights under their published names, dots replaced, since PyTorch allows none in a parameter's name."""

    def __init__(self, folder):
        super().__init__()
        self.config = json.load(open(os.path.join(folder, "config.json")))
        for name, value in load_file(os.path.join(folder, "model.safetensors")).items():
            self.register_parameter(name.replace(".", "/"), torch.nn.Parameter(value))
        config = self.config
        self.act = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu}[config["hidden_act"]]
        self.side = config["image_size"] // config["patch_size"]
        self.head = config["hidden_size"] // config["num_attention_heads"]

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
    model, reference = Nepa(args.folder), load_file(os.path.join(args.folder, "reference.safetensors"))
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


def work(args):
    device = torch.device(args.device)
    model = Nepa(args.folder).to(device)
    run = json.load(open(os.path.join(args.folder, "step.json")))
    names = model.named()
    groups = [
        {"params": [value for name, value in names.items() if decays(name)], "weight_decay": run["weight_decay"]},
        {"params": [value for name, value in names.items() if not decays(name)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(run["beta1"], run["beta2"]), eps=run["eps"], fused=True)
    weights = [value.data for value in names.values()]
    average = None
    side, batch, micro_batch = model.config["image_size"], run["batch"], run["micro_batch"]
    length = 3 * side * side
    # The pixels of the benchmark `step`.
    pixels = (torch.arange(length).unsqueeze(0) * 31 + torch.arange(batch).unsqueeze(1) * 7919) % 255
    pixels = (pixels.float() / 127.5 - 1).view(batch, 3, side, side).to(device)
    forward = torch.compile(model) if args.compile else model
    gpu = device.type == "cuda"
    print("ready", flush=True)
    for line in sys.stdin:
        scale, lr = map(float, line.split())
        if gpu:
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter(), cpu_s()
        cos, sin = model.rotary(scale, model.side**2, device)
        optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for part in pixels.split(micro_batch):
            with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
                part = forward(part, cos, sin) * (micro_batch / batch)
            part.backward()
            loss = loss + part.detach()
        torch.nn.utils.clip_grad_norm_(names.values(), run["max_grad_norm"])
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        if average is None:
            average = [value.clone() for value in weights]
        else:
            torch._foreach_lerp_(average, weights, 1 - run["ema_decay"])
        loss = loss.item()
        print(json.dumps({"wall_ms": 1e3 * (time.perf_counter() - wall), "cpu_ms": 1e3 * (cpu_s() - cpu), "peak_mib": peak_mib(), "loss": loss}), flush=True)
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["check", "work"])
    parser.add_argument("folder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    sys.exit(0 if {"check": check, "work": work}[args.command](args) else 1)


if __name__ == "__main__":
    main()
