"""What a run used, from the kernel's accounting: wall, CPU of a whole process tree, memory.

A run is started in a session of its own. Its CPU is what wait4 gives for its first process: that
process waits for all others, so the kernel's sums hold the whole tree, whatever happened in between.
The memory of several processes is the greatest sum of their proportional shares (PSS), looked at ten
times a second; that of one process is the kernel's high-water mark.
"""

import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
SAMPLE_S = 0.1
# No run of a bench takes as long: one that does hangs, and is killed.
RUN_SECONDS_MAX = 3600
# What runs, and has to be ended if the bench ends before it.
LIVE = []


@dataclass
class Used:
    """What one run used."""

    code: int
    wall_s: float
    user_s: float
    system_s: float
    peak_mib: float
    largest_mib: float
    server_cpu_s: float = 0.0
    store_cpu_s: float = 0.0

    @property
    def cpu_s(self):
        return self.user_s + self.system_s


class Run:
    """A command that runs, and what it uses. `watched`: functions that give CPU-seconds by name."""

    def __init__(self, command, log, environment=None, **watched):
        self.watched = watched
        self.before = {name: read() for name, read in watched.items()}
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        LIVE.append(self)
        self.peak_kib = 0
        self.over = threading.Event()
        self.sampler = threading.Thread(target=self._sample, daemon=True)
        self.sampler.start()

    def _sample(self):
        while not self.over.wait(SAMPLE_S):
            self.peak_kib = max(self.peak_kib, session_kib(self.process.pid))
            if self.seconds() > RUN_SECONDS_MAX:
                os.killpg(self.process.pid, signal.SIGKILL)

    def seconds(self):
        return time.monotonic() - self.began

    def ended(self):
        """Whether the first process is no more, without taking its usage."""
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def end(self, how=None):
        """Waits for the end, which `how`, a signal, brings about. Gives what was used."""
        if how is not None and not self.ended():
            self.process.send_signal(how)
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        wall = self.seconds()
        self.over.set()
        self.sampler.join()
        LIVE.remove(self)
        used = {name: read() - self.before[name] for name, read in self.watched.items()}
        return Used(
            code=self.process.returncode,
            wall_s=wall,
            user_s=usage.ru_utime,
            system_s=usage.ru_stime,
            peak_mib=self.peak_kib / 1024,
            largest_mib=usage.ru_maxrss / 1024,
            server_cpu_s=used.get("server", 0.0),
            store_cpu_s=used.get("store", 0.0),
        )

    def kill(self):
        if self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.end()


def kill_all():
    for run in LIVE[::-1]:
        run.kill()


def stat(pid):
    """Parent, own CPU-seconds, and those of the children that it waited for."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    user, system, children_user, children_system = (int(n) / TICKS_PER_S for n in fields[11:15])
    return int(fields[1]), user + system, children_user + children_system


def pids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def process_cpu(pid):
    found = stat(pid)
    return found[1] + found[2] if found else 0.0


def resident_mib(pid):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:")) / 1024


def tree_cpu(pid):
    """A server and its children, those that are gone included."""
    while True:
        before = process_cpu(pid)
        total = before
        for other in pids():
            found = stat(other)
            if found and found[0] == pid:
                total += found[1] + found[2]
        # A child that went meanwhile is counted twice or not at all.
        if process_cpu(pid) == before:
            return total


def session_kib(session):
    total = 0
    for pid in pids():
        try:
            if os.getsid(pid) != session:
                continue
            with open(f"/proc/{pid}/smaps_rollup") as file:
                total += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
        except (OSError, StopIteration):
            continue
    return total
