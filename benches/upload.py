#!/usr/bin/env python3
"""Upload alone, over TLS: Lakehead beside `aws s3 cp`, in turn, in one run.

    make bench-upload SCALE=1 TURNS=3

A box seals a snapshot of rows that nothing compresses into its spool while no store is there, and is
stopped; every round begins from that box, with a store that is new. Both lines are a process of
their own from start to end: Lakehead recovers, sends its spool and signs the ledger, the peer copies the
same objects from files, with the AWS command line's own concurrency. A box that was started anew does not
wait out a pause, so the time until the first body is answered is its start, recovery and that body; its
time ends when the last entry is in the store, its CPU when the process has stopped. GB are 10^9 bytes of
objects sent.

A run counts only if `lakehead verify --deep` says PROVEN with as many rows as the table has; that of the
peer, if every file that comes back is as it was.
"""

import os
import shlex
import shutil

import figures
import ground
import meter

SCALE = float(os.environ.get("SCALE", "1"))
ROWS = max(1000, int(1_000_000 * SCALE))
PEER = "aws s3 cp --recursive"
SOURCE = "upload"


class Upload:
    """A sealed spool, and the lines that send it."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.folder = ground.FOLDER / "upload"
        self.store = ground.Store(self.folder / "store")
        self.files = self.folder / "files"
        self.base = f"bench_{SOURCE}"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.database = load(cluster)
        self._seal()
        self._fetch()

    def _box(self):
        return ground.Box(
            self.folder / "box", self.cluster, self.database, self.store, SOURCE, ["public.noise"]
        )

    def _fresh_store(self):
        shutil.rmtree(self.store.folder, ignore_errors=True)
        self.store.start()

    def _seal(self):
        """The box's folder and slot when all is sealed and nothing sent."""
        self._fresh_store()
        self.store.stop()
        ground.say("sealing")
        box = self._box()
        box.leave()
        box.start()
        status, _ = box.until(lambda status: ground.whole(status["snapshot"]))
        figures.demand(status["shipped_objects"] == 0, "something was sent")
        self.sealed = status["sealed_objects"]
        figures.demand(box.stop().code == 0, "the gateway did not stop")
        shutil.copytree(box.folder, self.folder / "seed", symlinks=True)
        self.cluster.copy_slot(self.database, box.slot, self.base)

    def _fetch(self):
        """The objects as files, from a store that a box has sent them to: for the peer."""
        self._send()
        self._aws(f"s3://{self.store.bucket}/raw", self.files, "audit")
        self.store.stop()
        self.bytes = sum(path.stat().st_size for path in self.files.rglob("*") if path.is_file())
        self.objects = sum(path.is_file() for path in self.files.rglob("*"))

    def _aws(self, source, to, credentials):
        ground.shell(self._copy(source, to), self.store.environment(credentials))

    def _copy(self, source, to):
        words = [str(ground.AWS), "--endpoint-url", self.store.endpoint, "s3", "cp", "--recursive", "--quiet"]
        return shlex.join([*words, str(source), str(to)])

    def _send(self):
        """Starts the box from its seed beside a fresh store, until all is in it."""
        ground.copy(self.folder / "seed", self.folder / "box")
        self._fresh_store()
        box = self._box()
        self.cluster.copy_slot(self.database, self.base, box.slot)
        box.start(server=self.cluster.cpu_s, store=self.store.cpu_s)
        _, first_s = box.until(lambda status: status["sent_bytes"] > 0)
        status, shipped_s = box.until_shipped(self._all_sent)
        used = box.stop()
        figures.demand(used.code == 0, f"the gateway ended with {used.code}")
        rows = box.verify()["rows"].get("S", 0)
        figures.demand(rows == ROWS, f"{rows} rows are proven of {ROWS}")
        return used, status, first_s, shipped_s

    def _all_sent(self, status):
        return status["spool_bytes"] == 0 and status["shipped_objects"] >= self.sealed and status["entry"] > 0

    def result(self, used, sent, wall_s, first_s):
        return {
            "wall_s": wall_s,
            "first_s": first_s,
            "cpu_s": used.cpu_s,
            "cpu_s_per_gb": used.cpu_s / sent * 1e9,
            "store_cpu_s": used.store_cpu_s,
            "peak_mib": used.largest_mib,
            "bytes_sent": sent,
            "mb_per_s": sent / wall_s / 1e6,
        }

    def peer(self, number):
        self._fresh_store()
        place = f"s3://{self.store.bucket}/raw"
        with open(ground.FOLDER / "peer.log", "a") as log:
            words = ["bash", "-c", f"exec {self._copy(self.files, place)}"]
            used = meter.Run(words, log, self.store.environment("lake"), store=self.store.cpu_s).end()
        figures.demand(used.code == 0, f"aws ended with {used.code}")
        back = self.folder / "back"
        shutil.rmtree(back, ignore_errors=True)
        self._aws(place, back, "audit")
        self.store.stop()
        ground.shell(shlex.join(["diff", "-r", str(self.files), str(back)]))
        shutil.rmtree(back)
        return self.result(used, self.bytes, used.wall_s, 0.0)

    def lakehead(self, number):
        used, status, first_s, shipped_s = self._send()
        self.store.stop()
        return self.result(used, status["sent_bytes"], shipped_s, first_s)


def load(cluster):
    """Fills the database, unless an earlier run did."""
    database = f"upload_{ROWS}"
    if not cluster.has_database(database):
        ground.say(f"loading {ROWS} rows")
        making = f"{database}_making"
        cluster.fresh_database(making, ground.NOISE, ground.FILL_NOISE.format(first=1, last=ROWS))
        cluster.sql(making, "VACUUM (ANALYZE, FREEZE) noise", "CHECKPOINT")
        cluster.sql("postgres", f"ALTER DATABASE {making} RENAME TO {database}")
    return database


def main():
    columns = [
        ("CPU-s/GB", "cpu_s_per_gb", "{:.2f}"),
        ("CPU-s", "cpu_s", "{:.2f}"),
        ("store CPU-s", "store_cpu_s", "{:.2f}"),
        ("wall s", "wall_s", "{:.1f}"),
        ("first answer s", "first_s", "{:.2f}"),
        ("MB/s", "mb_per_s", "{:.0f}"),
        ("peak MiB", "peak_mib", "{:.0f}"),
        ("bytes sent", "bytes_sent", "{:,.0f}"),
    ]
    with ground.standing() as cluster:
        upload = Upload(cluster)
        runs = figures.alternate({PEER: upload.peer, figures.OWN: upload.lakehead})
        upload._box().leave()
        cluster.drop_slot(upload.base)
        result = figures.summary(runs, ["cpu_s_per_gb", "wall_s", "store_cpu_s", "peak_mib"])
        title = f"upload: {upload.bytes / 1e6:,.0f} MB in {upload.objects} objects, over TLS"
        figures.keep("upload", {"upload": result}, cluster, SCALE)
        shutil.rmtree(upload.folder)
    print(figures.markdown(title, result, columns))


if __name__ == "__main__":
    main()
