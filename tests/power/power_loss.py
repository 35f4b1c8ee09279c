#!/usr/bin/env python3
"""Cuts the power of a journal, again and again, and looks whether anything acknowledged is gone.

A file system on a loop file, mounted with a long commit interval so that nothing becomes durable by
chance. `power_journal write` appends to a journal there and says through a pipe what it sends and what
the journal calls durable. At a random moment the file system is shut down without writing its own
journal (EXT4_IOC_SHUTDOWN, NOLOGFLUSH): what was not synced is gone, as at a power cut. Then the writer
is killed, the file system mounted again, and the journal opened: every acknowledged transaction and
fact must be there, nothing may be there that was never sent, opening again must find the same, and
`journal check` must find it whole. Every second time the power is cut once more during the recovery.

  power_loss.py --journal target/debug/examples/power_journal --trials 20 [--fs ext4|xfs] [--seed N]

Needs root. The folder is --dir (target/power); loop device and mount are gone when it ends.
"""
import argparse
import fcntl
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import threading
import time

SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32): ext4 and xfs
NO_LOG_FLUSH = struct.pack("I", 2)
CUTS_PER_DISK = 4
DISK_MIB = 512


class Lost(Exception):
    """What was promised does not hold."""


class Disk:
    """A file system on a loop file."""

    def __init__(self, folder, kind):
        self.kind, self.image = kind, f"{folder}/disk.img"
        self.at = f"{folder}/mnt"
        self.unmount()
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(self.at)

    def make(self):
        self.unmount()
        with open(self.image, "wb") as image:
            image.truncate(DISK_MIB << 20)
        quiet = ["-q", "-F"] if self.kind == "ext4" else ["-q", "-f"]
        subprocess.run([f"mkfs.{self.kind}", *quiet, self.image], check=True)
        self.mount()

    def mount(self):
        options = "loop,noatime" + (",commit=300" if self.kind == "ext4" else "")
        subprocess.run(["mount", "-o", options, self.image, self.at], check=True)

    def cut(self):
        place = os.open(self.at, os.O_RDONLY)
        fcntl.ioctl(place, SHUTDOWN, NO_LOG_FLUSH)
        os.close(place)

    def unmount(self):
        for _ in range(100):
            if not os.path.ismount(self.at):
                return
            if subprocess.run(["umount", self.at], stderr=subprocess.DEVNULL).returncode:
                time.sleep(0.1)
        subprocess.run(["umount", "--lazy", self.at], check=True)

    def power_on(self):
        self.unmount()
        self.mount()


class Expected:
    """What the writer said, and so what must be there."""

    def __init__(self):
        self.sent = {}  # position -> crc, in order
        self.durable = 0
        self.trimmed = (0, 0)  # batch, position
        self.facts = {}  # key -> durable number
        self.puts = {}  # key -> numbers sent since
        self.acknowledged = 0

    def hear(self, line):
        word, *rest = line.split()
        if word == "sent":
            self.sent[int(rest[0])] = int(rest[1])
        elif word == "durable":
            self.durable = max(self.durable, int(rest[0]))
            self.acknowledged += 1
        elif word == "trim":
            self.trimmed = int(rest[0]), int(rest[1])
        elif word == "put":
            self.puts.setdefault(rest[0], []).append(int(rest[1]))
        elif word == "fact":
            number = int(rest[1])
            numbers = self.puts[rest[0]]
            del numbers[: numbers.index(number) + 1]
            self.facts[rest[0]] = number
            self.acknowledged += 1

    def compare(self, found):
        """Holds what was found against what was said, and takes it for the truth from here on."""
        if found.damage:
            raise Lost(f"damage: {found.damage}")
        if found.durable < self.durable:
            raise Lost(f"durable through {self.durable}, found {found.durable}")
        kept = [(at, crc) for at, crc in self.sent.items() if self.trimmed[1] < at <= found.durable]
        if found.transactions != kept:
            missing = [at for at, crc in kept if (at, crc) not in found.transactions]
            strange = [at for at, crc in found.transactions if (at, crc) not in kept]
            raise Lost(f"transactions missing: {missing[:5]}; never sent so: {strange[:5]}")
        for key in self.facts.keys() | self.puts.keys() | found.facts.keys():
            may = [self.facts.get(key, 0), *self.puts.get(key, [])]
            if found.facts.get(key, 0) not in may:
                raise Lost(f"fact {key} is {found.facts.get(key, 0)}, not one of {may}")
        self.sent = {at: crc for at, crc in self.sent.items() if at <= found.durable}
        self.durable, self.facts, self.puts = found.durable, dict(found.facts), {}


class Found:
    """What `power_journal read` says."""

    def __init__(self, text):
        self.durable, self.transactions, self.facts, self.damage = 0, [], {}, []
        for line in text.splitlines():
            word, *rest = line.split(maxsplit=1)
            first, *second = rest[0].rsplit(maxsplit=1) if rest else [""]
            if word == "durable":
                self.durable = int(first)
            elif word == "transaction":
                self.transactions.append((int(first), int(second[0])))
            elif word == "fact":
                self.facts[first] = int(second[0])
            elif word == "damage":
                self.damage.append(rest[0])


class Trials:
    def __init__(self, program, disk, rng):
        self.program, self.disk, self.rng = program, disk, rng
        self.folder = f"{disk.at}/erp"
        self.expected = None
        self.torn = self.acknowledged = self.checked = 0

    def run(self, trial):
        if trial % CUTS_PER_DISK == 0:
            self.disk.make()
            self.expected = Expected()
        before = self.expected.acknowledged
        self.write(trial)
        self.disk.power_on()
        torn = self.check()
        if trial % 2:
            self.cut_recovery()
        found = self.read()
        self.expected.compare(found)
        again = self.read()
        if vars(again) != vars(found):
            raise Lost("opening again finds something else")
        self.check()
        acknowledged = self.expected.acknowledged - before
        self.acknowledged += acknowledged
        self.torn += torn > 0
        self.checked += len(found.transactions) + len(found.facts)
        print(
            f"trial {trial + 1:3}: {acknowledged:5} acknowledgements, {len(found.transactions):4} transactions "
            f"and {len(found.facts):2} facts held, {torn:7} B torn, whole",
            flush=True,
        )

    def write(self, trial):
        """Lets the writer work for a while, cuts the power, and kills it."""
        words = [self.program, "write", self.folder, str(self.rng.randrange(1 << 32))]
        writer = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=QUIET
        )
        begun = threading.Event()

        def listen():
            for line in writer.stdout:
                self.expected.hear(line)
                if line.startswith("durable"):
                    begun.set()
            begun.set()

        listener = threading.Thread(target=listen)
        listener.start()
        begun.wait()
        time.sleep(self.rng.uniform(0.05, 4.0))
        ended_before = writer.poll()
        try:
            self.disk.cut()
            # Whatever is acknowledged from here on is a lie, and is held against the journal, too.
            time.sleep(0.05)
        finally:
            writer.kill()
            writer.wait()
            listener.join()
        if ended_before is not None:
            raise Lost(f"the writer ended with {ended_before} before the cut")

    def cut_recovery(self):
        reader = self.start(["read", self.folder, str(self.expected.trimmed[0])])
        time.sleep(self.rng.uniform(0.0, 0.12))
        self.disk.cut()
        reader.kill()
        reader.communicate()
        self.disk.power_on()

    def check(self):
        report = json.loads(self.ask(["check", self.folder]))
        if report["damage"]:
            raise Lost(f"journal check: {report['damage']}")
        return report["torn_bytes"]

    def read(self):
        return Found(self.ask(["read", self.folder, str(self.expected.trimmed[0])]))

    def start(self, words):
        pipe = subprocess.PIPE
        return subprocess.Popen([self.program, *words], stdout=pipe, stderr=pipe, text=True, env=QUIET)

    def ask(self, words):
        process = self.start(words)
        out, err = process.communicate()
        if process.returncode:
            raise Lost(f"{words[0]} ended with {process.returncode}: {err.strip()[-600:]}")
        return out


# sled runs `sync` when it is opened, which would make durable what nobody asked for.
QUIET = {"PATH": "/nowhere", "RUST_BACKTRACE": "0"}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--journal", required=True)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--fs", choices=["ext4", "xfs"], default="ext4")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--dir", default="target/power")
    args = parser.parse_args()
    if os.geteuid():
        sys.exit("power_loss.py: mounting needs root")
    seed = random.randrange(1 << 32) if args.seed is None else args.seed
    print(f"seed {seed}, {args.fs}", flush=True)
    disk = Disk(os.path.abspath(args.dir), args.fs)
    trials = Trials(os.path.abspath(args.journal), disk, random.Random(seed))
    try:
        for trial in range(args.trials):
            trials.run(trial)
    except Lost as lost:
        print(f"trial {trial + 1}: LOST: {lost}", flush=True)
        disk.unmount()
        print(f"the disk is kept: {disk.image}")
        return 1
    finally:
        disk.unmount()
    print(
        f"{args.trials} of {args.trials} trials: nothing lost, nothing strange; {trials.acknowledged} "
        f"acknowledgements, {trials.checked} records looked at, {trials.torn} torn tails cut"
    )
    shutil.rmtree(args.dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
