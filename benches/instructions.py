#!/usr/bin/env python3
"""Instructions that a row takes, counted, beside those that were written down: a guard against what makes it dearer.

    make instructions            compares; ends with 1 if one is more than 3 % above or below
    make instructions UPDATE=1   writes them down

Counted by valgrind's callgrind in the benches `decode` and `seal_encrypt`, built as the tests are (dev profile), so
that nothing has to be built twice. Only Rust functions count: libraries in C choose their code by the processor, as
do the crates in ELSEWHERE. Each bench runs with one and with three MiB of rows; what the two more took is that
of their rows, without what is done once. That a column's distinct values are counted, once in sixteen row groups, would
be much of so few rows, and is left out. The rows themselves are made outside of what is counted. The counts are of one
compiler: another one is told, and fails nothing.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import figures

HERE = Path(__file__).resolve().parent
KNOWN = HERE / "instructions.json"
TOLERANCE = 0.03
MIB = (1, 3)
ROWS = {
    "decode copy orders": ("decode", "copy", "orders", "columns"),
    "decode copy wide": ("decode", "copy", "wide", "columns"),
    "decode stream orders": ("decode", "stream", "orders", "columns"),
    "decode stream wide": ("decode", "stream", "wide", "columns"),
    "seal orders": ("seal_encrypt", "orders", "client"),
    "seal wide": ("seal_encrypt", "wide", "client"),
}
ONCE = "*seal::distinct::Distinct::of*"
# Crates that look at the processor.
ELSEWHERE = re.compile(r"\b(memchr|crc_fast|crc32c|sha2|zstd|zstd_safe|aws_lc_rs|aws_lc_sys|std_detect)::")


def built():
    """The benches' binaries, by name."""
    command = ["cargo", "build", "--locked", "--all-features", "--message-format=json", "--quiet"]
    command += ["--bench", "decode", "--bench", "seal_encrypt"]
    said = subprocess.run(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True, check=True).stdout
    messages = (json.loads(line) for line in said.splitlines())
    return {
        message["target"]["name"]: message["executable"]
        for message in messages
        if message.get("executable") and "bench" in message["target"]["kind"]
    }


def counted(words, within):
    """Instructions of the Rust functions in one run, below those of the name, and what it said."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind"
        tool = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"]
        # Within the one it begins to count, and in the other it does not.
        tool += [f"--toggle-collect={name}" for name in (within, ONCE)]
        done = subprocess.run(tool + words, cwd=folder, capture_output=True, text=True)
        figures.demand(done.returncode == 0, done.stderr)
        return sum(cost for name, cost in own_costs(out) if "::" in name and not ELSEWHERE.search(name)), done.stdout


def own_costs(path):
    """Each function's own cost, in the pieces in which the file tells it.

    https://valgrind.org/docs/manual/cl-format.html
    """
    names, name, of_call = {}, "", False
    with open(path) as file:
        for line in file:
            if function := re.match(r"fn=\((\d+)\)(?: (.*))?$", line):
                number, said = function.groups()
                name = names.setdefault(number, said) if said else names[number]
            elif called := re.match(r"cfn=\((\d+)\) (.*)$", line):
                names.setdefault(*called.groups())
            elif line.startswith("calls="):
                of_call = True
            elif line[0] in "+-*0123456789":
                # The line behind `calls=` is what the callee took.
                if not of_call:
                    yield name, int(line.split()[-1])
                of_call = False


def per_row(binary, names):
    """Instructions a row, without those that do not grow with the rows."""
    few, many = (run(binary, names, mib) for mib in MIB)
    return (many[0] - few[0]) / (many[1] - few[1])


def run(binary, names, mib):
    """Instructions and rows."""
    decode = Path(binary).name.startswith("decode")
    folder, within = ([], "decode::measure*") if decode else (["."], "*Sealer::run_snapshots*")
    cost, said = counted([binary, *folder, str(mib), *names], within)
    header, line = (text.split() for text in said.splitlines()[-2:])
    figures.demand(header[3] == "rows", f"a bench says {header}")
    return cost, int(line[3])


def main():
    binaries = built()
    found = {name: round(per_row(binaries[bench], names)) for name, (bench, *names) in ROWS.items()}
    compiler = subprocess.run(["rustc", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    if os.environ.get("UPDATE"):
        KNOWN.write_text(json.dumps({"compiler": compiler, "instructions_per_row": found}, indent=2) + "\n")
    known = json.loads(KNOWN.read_text())
    ratios = {name: count / known["instructions_per_row"][name] for name, count in found.items()}
    for name, count in found.items():
        print(f"{name:22} {count:9,} instructions a row, {100 * (ratios[name] - 1):+.1f} %")
    off = [name for name, ratio in ratios.items() if abs(ratio - 1) > TOLERANCE]
    if not off:
        return
    if compiler != known["compiler"]:
        print(f"counted with {known['compiler']}, this is {compiler}: make instructions UPDATE=1")
        return
    sys.exit(f"{', '.join(off)}: more than {TOLERANCE:.0%} off; if it has to be so: make instructions UPDATE=1")


if __name__ == "__main__":
    main()
