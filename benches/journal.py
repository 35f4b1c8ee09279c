#!/usr/bin/env python3
"""The journal beside `fio`: append and fdatasync, in turn, in one run, in one folder.

    make bench-journal SCALE=1 TURNS=3

Lakehead's line is `benches/journal_append.rs`: runs of 16 KiB, 256 KiB and 1 MiB, noise and rows, compressed,
encrypted, summed, appended to segments and fsynced in groups of up to 4 MiB. The peer writes as many bytes
of noise in blocks of the same size to one file that grows, `fdatasync` after each; and in blocks of 4 MiB,
as large as our groups, so that there are as few fsyncs. The latencies are those of fio's fdatasync
after each block, and of a commit of 1,000 bytes on the journal when it is idle.

`LAKEHEAD_JOURNAL_BENCH` is another command for the first line, as a binary that is built already.
A run counts only if the bench waited until its last run was durable (it panics if not) and shows
all six rows, and if fio wrote every byte and synced every block.
"""

import json
import os
import shlex
import shutil

import figures
import ground
import meter

SCALE = float(os.environ.get("SCALE", "1"))
MIB = max(8, int(512 * SCALE) // 4 * 4)
COMMAND = shlex.split(os.environ.get("LAKEHEAD_JOURNAL_BENCH", "cargo bench --locked --bench journal_append --"))
PEER = "fio"
RUNS_KIB, GROUP_KIB = (16, 256, 1024), 4096
FOLDER = ground.FOLDER / "journal"


def ran(command, name):
    """What it printed; its memory and CPU are not asked for."""
    path = FOLDER / f"{name}.out"
    with open(path, "w") as log:
        used = meter.Run(command, log).end()
    text = path.read_text()
    figures.demand(used.code == 0, f"{name} ended with {used.code}: {text[-2000:]}")
    return text


def fio(_):
    figure = {}
    for kib in (*RUNS_KIB, GROUP_KIB):
        words = f"--name=append --directory={FOLDER} --rw=write --bs={kib}k --size={MIB}m --fdatasync=1"
        words += " --ioengine=psync --fallocate=none --refill_buffers --thread --unlink=1 --output-format=json"
        said = ran(["fio", *shlex.split(words)], PEER)
        # Notes about itself may stand before the answer.
        job = json.loads(said[said.index("{") :])["jobs"][0]
        write, sync = job["write"], job["sync"]
        blocks = (MIB << 20) // (kib << 10)
        written = write["io_bytes"]
        figures.demand(written == MIB << 20 and job["error"] == 0, f"fio wrote {written} bytes")
        # The last one comes with the close.
        syncs = sync["lat_ns"]["N"]
        figures.demand(syncs >= blocks - 1, f"fio synced {syncs} times")
        seconds = write["runtime"] / 1000
        figure[f"noise {kib}"] = {
            "mb_per_s": written / seconds / 1e6,
            "cpu_s_per_gb": (job["usr_cpu"] + job["sys_cpu"]) / 100 * (job["job_runtime"] / 1000) / written * 1e9,
            "syncs": syncs,
            "sync_p50_ms": sync["lat_ns"]["percentile"]["50.000000"] / 1e6,
            "sync_p99_ms": sync["lat_ns"]["percentile"]["99.000000"] / 1e6,
        }
    return figure


def lakehead(_):
    figure = {}
    for line in ran([*COMMAND, str(FOLDER), str(MIB)], figures.OWN).splitlines():
        words = line.split()
        if len(words) == 9 and words[2] == "KiB":
            mb_per_s, cpu, amplification, syncs, p50, p99 = (float(word) for word in words[3:])
            figure[f"{words[0]} {words[1]}"] = {
                "mb_per_s": mb_per_s,
                "cpu_s_per_gb": cpu,
                "amplification": amplification,
                "syncs": int(syncs),
                "sync_p50_ms": p50,
                "sync_p99_ms": p99,
            }
    wanted = {f"{payload} {kib}" for payload in ("noise", "rows") for kib in RUNS_KIB}
    figures.demand(set(figure) == wanted, f"journal_append shows {sorted(figure)}")
    return figure


def main():
    columns = [
        ("MB/s", "mb_per_s", "{:.0f}"),
        ("CPU-s/GB", "cpu_s_per_gb", "{:.2f}"),
        ("written / payload", "amplification", "{:.3f}"),
        ("fsyncs", "syncs", "{:.0f}"),
        ("commit p50 ms", "sync_p50_ms", "{:.1f}"),
        ("p99 ms", "sync_p99_ms", "{:.1f}"),
    ]
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    with ground.guarded():
        runs = figures.alternate({PEER: fio, figures.OWN: lakehead}, ("noise 1024", "mb_per_s"))
    shutil.rmtree(FOLDER)
    results = {}
    for kib in RUNS_KIB:
        own = [run[f"noise {kib}"] for run in runs[figures.OWN]]
        peers = {PEER: kib, f"{PEER}, blocks of 4 MiB": GROUP_KIB}
        lines = {name: [run[f"noise {block}"] for run in runs[PEER]] for name, block in peers.items()}
        results[f"noise, {kib} KiB"] = figures.summary({**lines, figures.OWN: own}, ["mb_per_s"], "mb_per_s")
    for kib in RUNS_KIB:
        own = [run[f"rows {kib}"] for run in runs[figures.OWN]]
        results[f"rows, {kib} KiB"] = figures.summary({figures.OWN: own}, [], "mb_per_s")
    figures.keep("journal", results, None, SCALE)
    for name, result in results.items():
        print(figures.markdown(f"journal: {name} a run, {MIB} MiB", result, columns))


if __name__ == "__main__":
    main()
