#!/usr/bin/env python3
"""How large the firmware's binary is, and what it costs to build it.

    make sizes            # the binary, and a build after a change of one file of ours
    make sizes COLD=1     # before that a build from nothing, in a folder of its own

CPU is that of cargo and all it starts, from the kernel's accounting; wall depends on who else is there.
"""

import datetime
import json
import os
import resource
import subprocess
import time

import figures
import ground

ROOT = ground.HERE.parent
COLD = ROOT / "target/bench/cold"


def built(what, target, *more):
    """One build: what it took."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    words = ["cargo", "--quiet", *what, "--locked", "--target-dir", str(target), *more]
    subprocess.run(words, check=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(time.monotonic() - began, 1), "cpu_s": round(cpu, 1)}


def changed(what, target):
    """As [`built`], when all is there but one file of ours is new."""
    built(what, target)
    os.utime(ROOT / "src/units.rs")
    return built(what, target)


def main():
    release, check = ["build", "--release"], ["check"]
    found = {}
    if os.environ.get("COLD"):
        subprocess.run(["rm", "-rf", str(COLD)], check=True)
        found["release, from nothing"] = built(release, COLD)
        found["check, from nothing"] = built(check, COLD)
    target = COLD if COLD.exists() else ROOT / "target"
    found["release, one file changed"] = changed(release, target)
    found["check, one file changed"] = changed(check, target)
    binary = target / "release/lakehead"
    stripped = ROOT / "target/bench/stripped"
    stripped.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["strip", "-o", str(stripped), str(binary)], check=True)
    sizes = {"with line tables": binary.stat().st_size, "stripped": stripped.stat().st_size}
    document = {"machine": figures.machine(), "date": datetime.date.today().isoformat(), "bytes": sizes, "builds": found}
    (ROOT / "target/bench/sizes.json").write_text(json.dumps(document, indent=1) + "\n")
    for name, size in sizes.items():
        print(f"| binary, {name} | {size / 1e6:.1f} MB |")
    for name, took in found.items():
        print(f"| {name} | {took['wall_s']} s, {took['cpu_s']} CPU-s |")


if __name__ == "__main__":
    main()
