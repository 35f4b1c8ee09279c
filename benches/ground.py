"""Where the benches stand: a PostgreSQL cluster, an S3 store, and boxes of Lakehead, all of their own,
all on loopback, below one folder. The cluster stays between runs, so that its data is loaded once.
"""

import base64
import contextlib
import glob
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import meter

HERE = Path(__file__).resolve().parent
BINARY = Path(os.environ.get("LAKEHEAD", HERE.parent / "target/release/lakehead")).resolve()
# Has the store, which the gateway as it is shipped has not.
STORE = Path(os.environ.get("LAKEHEAD_STORE", HERE.parent / "target/bench-store")).resolve()
AWS = HERE.parent / "target/bench-py/bin/aws"
# What comes before the command of a box and of a store: to have them wait for others.
BEHIND = []
FOLDER = Path(os.environ.get("BENCH_DIR", "/var/tmp/lakehead-bench")).resolve()
# Of all connections to PostgreSQL, the peers' too: `require` for TLS.
SSLMODE = os.environ.get("SSLMODE") or "disable"
if SSLMODE not in ("disable", "require"):
    sys.exit(f"SSLMODE={SSLMODE}: disable or require")
SERVER_OPTIONS = """
listen_addresses = '127.0.0.1'
wal_level = logical
max_replication_slots = 20
max_wal_senders = 20
shared_buffers = 1GB
max_wal_size = 16GB
checkpoint_timeout = 30min
logical_decoding_work_mem = 256MB
synchronous_commit = off
autovacuum = off
jit = off
max_parallel_workers_per_gather = 0
log_min_messages = warning
"""
# 1 KiB a row that nothing compresses, the same in every run.
NOISE = "CREATE TABLE noise (id bigint PRIMARY KEY, body bytea NOT NULL)"
NOISE_ROW_BYTES = 1024
FILL_NOISE = """
INSERT INTO noise SELECT n, (SELECT string_agg(sha512((n || '.' || i)::bytea), '') FROM generate_series(1, 16) i)
FROM generate_series({first}, {last}) n
"""
QUIET_S = 0.5


def say(text):
    print(text, file=sys.stderr, flush=True)


def shell(command, environment=None):
    """Runs a pipe to its end; gives what it printed."""
    words = ["bash", "-o", "pipefail", "-c", command]
    own = {**os.environ, **(environment or {})}
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=own)
    return done.stdout.strip()


def private(path, text):
    """A file that only its owner reads."""
    path.write_text(text)
    path.chmod(0o600)


def copy(source, to):
    """A folder as it is."""
    shutil.rmtree(to, ignore_errors=True)
    to.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", str(source), str(to)], check=True)


def lsn(text):
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def past(position, end):
    return lsn(position) > lsn(end)


def whole(snapshot):
    """Whether every part of every table is sealed."""
    return bool(snapshot) and all(part["chunks_done"] == part["chunks"] > 0 for part in snapshot.values())


def all_shipped(status):
    """Whether the snapshots are whole, and every object acknowledged."""
    sent = status["spool_bytes"] == 0 and status["shipped_objects"] == status["sealed_objects"] > 0
    return whole(status["snapshot"]) and sent and status["entry"] > 0


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Cluster:
    """A PostgreSQL server. Root runs it as the user postgres."""

    def __init__(self, folder):
        self.folder = folder / "postgres"
        found = glob.glob("/usr/lib/postgresql/*/bin/initdb")
        self.bin = Path(max(found, key=lambda path: int(path.split("/")[4]))).parent
        self.user = "postgres" if os.geteuid() == 0 else None
        self.password_file = folder / "postgres.password"

    def _tool(self, *words):
        prefix = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups"]
        command = [*(prefix if self.user else []), str(self.bin / words[0]), *words[1:]]
        return subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL)

    def start(self):
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "PG_VERSION").exists():
            self._create()
        self._certify()
        self.password = self.password_file.read_text()
        if (self.folder / "postmaster.pid").exists():
            with contextlib.suppress(subprocess.CalledProcessError):
                self.stop()
        self.port = free_port()
        options = f"-p {self.port} -c unix_socket_directories={self.folder} -c ssl=on"
        log = str(self.folder / "server.log")
        self._tool("pg_ctl", "-D", str(self.folder), "-l", log, "-o", options, "-w", "start")
        self.pid = int((self.folder / "postmaster.pid").read_text().split()[0])
        os.environ.update(
            PGHOST="127.0.0.1",
            PGPORT=str(self.port),
            PGUSER="postgres",
            PGPASSWORD=self.password,
            PGSSLMODE=SSLMODE,
            PATH=f"{self.bin}:{os.environ['PATH']}",
        )
        self.version = self.sql("postgres", "SHOW server_version").split()[0]

    def _create(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(mode=0o700)
        private(self.password_file, secrets.token_hex(16))
        if self.user:
            owner = pwd.getpwnam(self.user)
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
            os.chown(self.password_file, owner.pw_uid, owner.pw_gid)
        words = ("-U", "postgres", "-A", "scram-sha-256", "-E", "UTF8", "--no-locale")
        self._tool("initdb", "-D", str(self.folder), *words, "--pwfile", str(self.password_file))
        with open(self.folder / "postgresql.conf", "a") as file:
            file.write(SERVER_OPTIONS)

    def _certify(self):
        """A certificate that it signs itself, so that it speaks TLS to whoever asks for it."""
        certificate, key = self.folder / "server.crt", self.folder / "server.key"
        if certificate.exists():
            return
        made = self.folder / "made.crt"
        words = ["openssl", "req", "-x509", "-nodes", "-days", "3650", "-subj", "/CN=localhost"]
        words += ["-keyout", str(key), "-out", str(made)]
        subprocess.run(words, check=True, stderr=subprocess.DEVNULL)
        key.chmod(0o600)
        if self.user:
            owner = pwd.getpwnam(self.user)
            os.chown(made, owner.pw_uid, owner.pw_gid)
            os.chown(key, owner.pw_uid, owner.pw_gid)
        made.rename(certificate)

    def stop(self):
        self._tool("pg_ctl", "-D", str(self.folder), "-m", "fast", "-w", "stop")

    def sql(self, database, *statements):
        """Runs statements one by one; gives what the last one printed."""
        said = ""
        for statement in statements:
            words = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", statement]
            own = {**os.environ, "PGOPTIONS": "-c client_min_messages=warning"}
            said = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=own).stdout
        return said.strip()

    def has_database(self, name):
        return self.sql("postgres", f"SELECT 1 FROM pg_database WHERE datname = '{name}'") == "1"

    def drop_slot(self, name):
        self.sql(
            "postgres",
            f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{name}'",
        )

    def copy_slot(self, database, source, to):
        self.drop_slot(to)
        self.sql(database, f"SELECT pg_copy_logical_replication_slot('{source}', '{to}', false, 'pgoutput')")

    def drop_database(self, name):
        """And its slots: a slot keeps the server's log for as long as it is there."""
        slots = f"FROM pg_replication_slots WHERE database = '{name}'"
        drop = f"DROP DATABASE IF EXISTS {name}"
        self.sql("postgres", f"SELECT pg_drop_replication_slot(slot_name) {slots}", drop)

    def fresh_database(self, name, *schema):
        self.drop_database(name)
        self.sql("postgres", f"CREATE DATABASE {name}")
        self.sql(name, *schema)

    def cpu_s(self):
        return meter.tree_cpu(self.pid)


class Store:
    """The S3 double of the feature `demo`, as a process of its own, over TLS."""

    def __init__(self, folder):
        self.folder = folder
        self.process = None

    def start(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [*BEHIND, str(STORE), "store", "--json", "--dir", str(self.folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        meter.LIVE.append(self)
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"no store: {STORE} is a build without the feature demo, or cannot listen")
        said = json.loads(line)
        self.endpoint, self.bucket, self.region = said["endpoint"], said["bucket"], said["region"]

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait()
            self.process = None
            meter.LIVE.remove(self)

    kill = stop

    def cpu_s(self):
        return meter.process_cpu(self.process.pid)

    def stored_bytes(self):
        return sum(path.stat().st_size for path in (self.folder / "stored/bodies").iterdir())

    def environment(self, credentials):
        """What the AWS command line needs: `lake` writes, `audit` reads."""
        return {
            "AWS_SHARED_CREDENTIALS_FILE": str(self.folder / f"{credentials}.credentials"),
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_CA_BUNDLE": str(self.folder / "lake-ca.pem"),
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


class Box:
    """One Lakehead with a data folder of its own."""

    def __init__(self, folder, cluster, database, store, source, tables, more="", object_age="60 s", pace="full"):
        self.folder, self.cluster, self.database = folder, cluster, database
        self.source, self.slot = source, f"lakehead_bench_{source}"
        folder.mkdir(parents=True, exist_ok=True)
        private(folder / "source.password", cluster.password)
        key = folder / "lake.key"
        if not key.exists():
            private(key, base64.b64encode(secrets.token_bytes(32)).decode())
        for name, credentials in (("site.toml", "lake"), ("audit.toml", "audit")):
            private(
                folder / name,
                f"""[appliance]
name = "bench"
data_dir = "{folder}/data"

[[source]]
name = "{source}"
kind = "postgres"
url = "postgresql://postgres@127.0.0.1:{cluster.port}/{database}?sslmode={SSLMODE}"
password_file = "{folder}/source.password"
tables = {json.dumps(tables)}
snapshot_pace = "{pace}"
{more}

[lake]
bucket = "{store.bucket}"
prefix = "raw"
region = "{store.region}"
endpoint = "{store.endpoint}"
path_style = true
credentials_file = "{store.folder}/{credentials}.credentials"
ca_file = "{store.folder}/lake-ca.pem"

[encryption]
mode = "client"
key_file = "{key}"

[seal]
object_age = "{object_age}"
""",
            )

    def start(self, environment=None, **watched):
        (self.folder / "data").mkdir(mode=0o700, exist_ok=True)
        with open(self.folder / "gateway.log", "a") as log:
            command = [*BEHIND, str(BINARY), "run", "--config", str(self.folder / "site.toml")]
            self.run = meter.Run(command, log, environment, **watched)

    def status(self):
        """What it says of its source, asked at its socket; None before it answers."""
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(10)
            try:
                line.connect(str(self.folder / "data/admin.sock"))
                line.sendall(b'{"do":"status"}\n')
                said = json.loads(line.makefile().readline())
            except (OSError, ValueError):
                return None
        return said.get("sources", {}).get(self.source)

    def until(self, reached, seconds_max=900):
        """Waits until `reached` says so of its status; gives the status, and when that was."""
        told, began = None, time.monotonic()
        while True:
            status = self.status()
            if status and reached(status):
                return status, self.run.seconds()
            causes = {alarm["cause"] for alarm in status["alarms"].values()} if status else None
            if causes and causes != told:
                say(f"alarm: {status['alarms']}")
                told = causes
            if self.run.ended() or time.monotonic() - began > seconds_max:
                log = (self.folder / "gateway.log").read_text()[-4000:]
                self.run.kill()
                sys.exit(f"the gateway did not get there:\n{log}")
            time.sleep(0.1)

    def until_shipped(self, reached=all_shipped):
        """Waits until it stays so; gives the status, and when that began."""
        status, shipped_s = self.until(reached)
        entry, since = status["entry"], time.monotonic()
        while time.monotonic() - since < QUIET_S:
            # Each question costs the one that is measured.
            time.sleep(0.1)
            status, now_s = self.until(reached)
            if status["entry"] != entry:
                entry, since, shipped_s = status["entry"], time.monotonic(), now_s
        return status, shipped_s

    def stop(self):
        return self.run.end(signal.SIGTERM)

    def verify(self):
        """Reads every object again; gives the report, or ends if it is not PROVEN."""
        command = [str(BINARY), "verify", "--deep", "--json"]
        command += ["--config", str(self.folder / "audit.toml")]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        said = json.loads(done.stdout)
        if done.returncode != 0 or not said["proven"]:
            sys.exit(f"not PROVEN: {done.stdout}")
        return said["sources"][0]

    def leave(self):
        """Takes away what it made on the server."""
        self.cluster.drop_slot(self.slot)
        for name in (self.slot, f"{self.slot}_append"):
            self.cluster.sql(self.database, f"DROP PUBLICATION IF EXISTS {name}")


def _terminated(*_):
    sys.exit("terminated")


@contextlib.contextmanager
def guarded():
    """In the end, whatever that is, nothing runs any more that a bench started."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    finally:
        meter.kill_all()


@contextlib.contextmanager
def standing():
    """The cluster, started; in the end it is stopped, after all that still runs."""
    for binary in (BINARY, STORE):
        if not binary.exists():
            sys.exit(f"{binary} is not there: make bench-binaries")
    cluster = Cluster(FOLDER)
    signal.signal(signal.SIGTERM, _terminated)
    cluster.start()
    try:
        with guarded():
            yield cluster
    finally:
        cluster.stop()
