#!/usr/bin/env python3
"""What each CUDA kernel needs of an H100 or H200 (sm_90), held to a checked-in budget.

    kernel_budgets.py FOLDER BUDGET [--update] [--nvcc-release 13.0]

FOLDER has of each file of kernels NAME.ptx, NAME.log (ptxas -v) and, where there is a
disassembler, NAME.sass (nvdisasm -c). check-kernels.sh fills it and calls this. Everything is read
from the compiler's output: nothing runs. Numbers of a budget that was made by another release of
nvcc are shown and not compared. Python's standard library only.
"""

import argparse
import pathlib
import re
import sys
from collections import Counter

# Of compute capability 9.0 (CUDA programming guide, table of technical specifications).
REGISTERS_AN_SM, REGISTERS_AT_ONCE = 65536, 256
WARPS_AN_SM, BLOCKS_AN_SM, WARP = 64, 32, 32
SHARED_AN_SM, SHARED_RESERVED, SHARED_AT_ONCE = 233472, 1024, 128

# Dynamic shared memory of a launch at T = 256, from the heads of the kernels' files.
DYNAMIC_SHARED = {
    "attention_forward": 288 * 256,
    "attention_backward": 296 * 256 + 14336,
}

# The loops of the attention kernels in the order of the code, and how much of each a causal head of
# T = 256 takes in all its eight warps: (name, units of work a head, instruction that tells how many
# units one trip of the loop does, number of these a unit). Without such an instruction a trip is a
# unit; with "switch" too, and it goes through one of so many blocks with tensor-core products, each
# as often as the others. A warp goes once through what is in no loop.
TILES = 16
WARPS = 8
# Tiles of keys that all queries of a tile see, over all tiles of queries.
SEEN = TILES * (TILES - 1) // 2
HEAD_LOOPS = {
    "attention_forward": [
        ("keys to shared memory, a tile", TILES, None, 0),
        ("values to shared memory, 32 vectors", 64, "STS", 4),
        ("a tile of queries, with 1 to 4 tiles of keys", TILES, "switch", 4),
        # Four tiles of queries have none before those, four have one, and so on.
        ("keys, 64", 4 * (0 + 1 + 2 + 3), "HMMA", 64),
        ("keys, 16 behind the last 64, not causal", 0, "HMMA", 16),
    ],
    "attention_backward": [
        ("sums cleared, 32", 8 * 14, "STS", 1),
        ("keys to shared memory, a tile", TILES, None, 0),
        ("values to shared memory, 32 vectors", 64, "STS", 4),
        ("a tile of queries, with one of keys", TILES, None, 0),
        ("keys, 16", SEEN, "HMMA", 24),
        ("queries to shared memory, a tile", TILES, None, 0),
        ("gradients to shared memory, 32 vectors", 64, "STS", 4),
        ("a tile of keys, with one of queries", TILES, None, 0),
        ("queries, 16", SEEN, "HMMA", 32),
        ("sums of the warps, 32", 14, "STG", 1),
    ],
}
# Of B/14 with a batch of 256: heads of a launch; SMs, issues a clock of each, and clock of an H200.
HEADS, SMS, ISSUES, CLOCK_HZ = 256 * 12, 132, 4, 1.98e9

COLUMNS = ["threads", "registers", "spill_bytes", "shared_bytes", "blocks_an_sm", "instructions"]
NOT_READ = "-"


def round_up(value, to):
    return -(-value // to) * to


def blocks_an_sm(threads, registers, shared_bytes):
    """How many blocks fit, as CUDA's occupancy calculator has it."""
    warps = round_up(threads, WARP) // WARP
    per_warp = round_up(registers * WARP, REGISTERS_AT_ONCE)
    # Each quarter of an SM has a quarter of the registers, and whole warps.
    by_registers = REGISTERS_AN_SM // 4 // per_warp * 4 // warps
    by_shared = SHARED_AN_SM // round_up(shared_bytes + SHARED_RESERVED, SHARED_AT_ONCE)
    return min(by_registers, by_shared, WARPS_AN_SM // warps, BLOCKS_AN_SM)


def read_ptx(text):
    """Kernel to threads of a block: the bound is what each is launched with."""
    threads = {}
    for name, head in re.findall(r"\.entry (\w+)\((.*?)\{", text, re.DOTALL):
        bound = re.search(r"\.maxntid (\d+), (\d+), (\d+)", head)
        if bound is None:
            sys.exit(f"error: {name} has no __launch_bounds__, so its block's size is not known")
        x, y, z = map(int, bound.groups())
        threads[name] = x * y * z
    return threads


def read_log(text):
    """Kernel to (registers, bytes of spill stores and loads, bytes of static shared memory)."""
    needs = {}
    for part in text.split("Compiling entry function '")[1:]:
        name = part.split("'", 1)[0]
        used = re.search(r"Used (\d+) registers", part)
        stores = re.search(r"(\d+) bytes spill stores", part)
        loads = re.search(r"(\d+) bytes spill loads", part)
        if used is None or stores is None or loads is None:
            sys.exit(f"error: ptxas -v says nothing of {name} that can be read")
        shared = re.search(r"(\d+) bytes smem", part)
        spills = int(stores.group(1)) + int(loads.group(1))
        needs[name] = (int(used.group(1)), spills, int(shared.group(1)) if shared else 0)
    return needs


class Instruction:
    def __init__(self, text):
        guard = re.match(r"@!?U?P(\d|T)\s+", text)
        self.opcode = (text[guard.end() :] if guard else text).split()[0]
        # BRA.DIV branches where a warp has diverged.
        self.conditional = guard is not None or ".DIV" in self.opcode
        # One, or of a jump by a table (BRX) all that it has.
        self.targets = re.findall(r"\.L_x_\d+", text)

    def is_a(self, name):
        return self.opcode.split(".")[0] == name


def read_sass(text):
    """Kernel to its instructions, the place of each label, and where its slow paths begin."""
    kernels = {}
    for section in re.split(r"^\.text\.", text, flags=re.MULTILINE)[1:]:
        name, body = section.split(":", 1)
        instructions, labels, slow = [], {}, None
        for line in body.splitlines():
            if line.startswith(("//----", "\t.section")):
                break
            label = re.match(r"^([.$][\w$.]+):", line)
            if label:
                labels[label.group(1)] = len(instructions)
                # Subroutines for the operands that square roots and divisions seldom meet.
                if label.group(1).startswith("$") and slow is None:
                    slow = len(instructions)
            match = re.match(r"^\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line)
            if match:
                instructions.append(Instruction(match.group(1).strip()))
        # The end is filled up with these, behind a branch to itself.
        while instructions and instructions[-1].is_a("NOP"):
            instructions.pop()
        kernels[name] = (instructions, labels, slow or len(instructions))
    return kernels


class Loop:
    def __init__(self, header, body):
        self.header, self.body, self.inner = header, body, []


def hot_loops(instructions, labels, slow):
    """Blocks of straight code that usual numbers meet, and their loops by place."""
    starts = {0} | {place for place in labels.values() if place < slow}
    for i, instruction in enumerate(instructions[:slow]):
        if instruction.opcode.split(".")[0] in ("BRA", "BRX", "EXIT", "RET"):
            starts.add(i + 1)
    starts = sorted(start for start in starts if start < slow)
    ends = dict(zip(starts, starts[1:] + [slow]))

    def is_cold(start):
        return any(
            instruction.is_a("CALL") or instruction.opcode.startswith("WARPSYNC.COLLECTIVE")
            for instruction in instructions[start : ends[start]]
        )

    following = {}
    for start in starts:
        last = instructions[ends[start] - 1]
        branch = last.is_a("BRA") or last.is_a("BRX")
        to = [labels[target] for target in last.targets if target in labels] if branch else []
        ends_here = (branch or last.is_a("EXIT") or last.is_a("RET")) and not last.conditional
        if not ends_here and ends[start] < slow:
            to.append(ends[start])
        following[start] = [block for block in to if block in ends and not is_cold(block)]

    order, seen = [], set()
    stack = [(0, iter(following[0]))]
    seen.add(0)
    while stack:
        block, rest = stack[-1]
        for block_after in rest:
            if block_after not in seen:
                seen.add(block_after)
                stack.append((block_after, iter(following[block_after])))
                break
        else:
            order.append(block)
            stack.pop()
    order.reverse()
    before = {block: [] for block in order}
    for block in order:
        for block_after in following[block]:
            before[block_after].append(block)
    dominators = {block: set(order) for block in order}
    dominators[0] = {0}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            common = set.intersection(*(dominators[b] for b in before[block])) | {block}
            if common != dominators[block]:
                dominators[block], changed = common, True

    loops = {}
    for block in order:
        for header in following[block]:
            if header not in dominators[block]:
                continue
            body, rest = {header}, [block]
            while rest:
                inside = rest.pop()
                if inside not in body:
                    body.add(inside)
                    rest.extend(before[inside])
            loops.setdefault(header, Loop(header, set())).body |= body
    # A branch to itself behind the last exit is no loop.
    loops = [loop for _, loop in sorted(loops.items())]
    in_loops = set()
    for loop in loops:
        in_loops |= loop.body
        inner = [other.body for other in loops if other is not loop and other.body < loop.body]
        loop.own = loop.body.difference(*inner)

    def count(blocks):
        """Opcodes of each block."""
        return [
            Counter(i.opcode.split(".")[0] for i in instructions[block : ends[block]])
            for block in sorted(blocks)
        ]

    return [count(loop.own) for loop in loops], count(set(order) - in_loops)


def head_instructions(name, kernel):
    """(what, instructions) of the parts of an attention kernel, and those of a whole head."""
    expected = HEAD_LOOPS[name]
    loops, straight = hot_loops(*kernel)
    if len(loops) != len(expected):
        found = "; ".join(
            f"{sum(l.values())} ({l['HMMA']} HMMA, {l['STS']} STS)"
            for l in (sum(blocks, Counter()) for blocks in loops)
        )
        sys.exit(
            f"error: {name} has {len(loops)} loops, but HEAD_LOOPS in {sys.argv[0]} names "
            f"{len(expected)}: say there what each is. Instructions of each: {found}"
        )
    parts, total = [], sum(sum(block.values()) for block in straight) * WARPS
    for (what, units, marker, per_unit), blocks in zip(expected, loops):
        loop = sum(blocks, Counter())
        alternatives = sum(block["HMMA"] > 0 for block in blocks) if marker == "switch" else 1
        if marker == "switch" and alternatives != per_unit:
            sys.exit(f"error: \"{what}\" of {name} has {alternatives} cases, not {per_unit}")
        size = sum(
            sum(block.values()) / (alternatives if block["HMMA"] else 1) for block in blocks
        )
        units_a_trip = 1 if marker in (None, "switch") else loop[marker] / per_unit
        if units_a_trip == 0:
            sys.exit(f"error: the loop \"{what}\" of {name} has no {marker}: see HEAD_LOOPS")
        total += units / units_a_trip * size
        parts.append((what, round(size / units_a_trip)))
    return parts + [("whole head", round(total))]


def measure(folder):
    rows = {}
    for ptx in sorted(folder.glob("*.ptx")):
        threads = read_ptx(ptx.read_text())
        needs = read_log(ptx.with_suffix(".log").read_text())
        sass = ptx.with_suffix(".sass")
        kernels = read_sass(sass.read_text()) if sass.exists() else {}
        for name in sorted(threads):
            registers, spills, shared = needs[name]
            blocks = blocks_an_sm(threads[name], registers, shared + DYNAMIC_SHARED.get(name, 0))
            size = len(kernels[name][0]) if name in kernels else NOT_READ
            rows[name] = [threads[name], registers, spills, shared, blocks, size]
            if name in kernels and name in HEAD_LOOPS:
                for what, count in head_instructions(name, kernels[name]):
                    rows[f"{name}: {what}"] = [NOT_READ] * (len(COLUMNS) - 1) + [count]
    return rows


HEAD = """\
# What each kernel needs on sm_90, from the compiler's output (scripts/check-kernels.sh --update).
# Threads and bytes of static shared memory are of a block; attention has 288 R and 296 R + 14336
# bytes of dynamic ones more, counted here for T = 256. Its parts are of a causal head at T = 256:
# warp-instructions of one unit of each loop, and of the whole head in all its warps.
"""


def write_budget(path, release, rows):
    lines = [f"# nvcc\t{release}\n", "\t".join(["kernel"] + COLUMNS) + "\n"]
    lines += ["\t".join([name] + list(map(str, row))) + "\n" for name, row in rows.items()]
    path.write_text(HEAD + "".join(lines))


def read_budget(path):
    release, rows, columns = None, {}, None
    for line in path.read_text().splitlines():
        fields = line.split("\t")
        if fields[0] == "# nvcc":
            release = fields[1]
        elif line.startswith("#") or not line:
            continue
        elif columns is None:
            columns = fields[1:]
        else:
            values = [NOT_READ if value == NOT_READ else int(value) for value in fields[1:]]
            rows[fields[0]] = dict(zip(columns, values))
    return release, rows


def compare(rows, budget):
    """What is worse, and what is better, as sentences."""
    worse, better = [], []
    for name in sorted(rows.keys() | budget.keys()):
        if name not in rows or name not in budget:
            worse.append(f"{name} is {'no kernel' if name not in rows else 'not in the budget'}")
            continue
        for column, now in zip(COLUMNS, rows[name]):
            then = budget[name].get(column, NOT_READ)
            if NOT_READ in (now, then) or now == then:
                continue
            text = f"{name}: {column} {'grew' if now > then else 'fell'} from {then} to {now}"
            gained = column == "blocks_an_sm"
            (better if (now > then) == gained else worse).append(text)
    return worse, better


def main():
    parser = argparse.ArgumentParser(description="compares kernels with their budget")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("budget", type=pathlib.Path)
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--nvcc-release", required=True)
    args = parser.parse_args()
    rows = measure(args.folder)
    if not rows:
        sys.exit(f"error: there is no kernel in {args.folder}")
    widths = [max(map(len, rows)) + 1] + [len(column) + 2 for column in COLUMNS]
    for row in [["kernel"] + COLUMNS] + [[name] + row for name, row in rows.items()]:
        name, *values = map(str, row)
        print(name.ljust(widths[0]) + "".join(v.rjust(w) for v, w in zip(values, widths[1:])))
    for name in HEAD_LOOPS:
        whole = rows.get(f"{name}: whole head")
        if whole:
            floor_us = whole[-1] * HEADS / (SMS * ISSUES * CLOCK_HZ) * 1e6
            print(f"{name}: at least {floor_us:.0f} us of issuing for B/14, batch 256, on an H200")
    without_sass = any(row[-1] == NOT_READ for row in rows.values())
    if without_sass:
        print("Instructions are NOT counted: nvdisasm was not found.")
    if args.update:
        if without_sass:
            sys.exit("error: a budget needs nvdisasm (scripts/cuda-toolkit.sh --compiler has it)")
        write_budget(args.budget, args.nvcc_release, rows)
        print(f"Wrote {args.budget}.")
        return
    release, budget = read_budget(args.budget)
    if release != args.nvcc_release:
        print(f"NOT compared with the budget: nvcc is {args.nvcc_release}, that was {release}.")
        return
    worse, better = compare(rows, budget)
    for text in better:
        print(f"better than its budget: {text}")
    if worse:
        lines = "\n".join(f"  {text}" for text in worse)
        sys.exit(
            f"error: kernels need more than {args.budget} allows:\n{lines}\n"
            "Where that is meant, scripts/check-kernels.sh --update rewrites the file."
        )
    print(f"All within {args.budget}.")


if __name__ == "__main__":
    main()
