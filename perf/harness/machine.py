"""Processes of a benchmark: PostgreSQL, the server, its peers and the load generator.

Everything runs on this machine and is reached over loopback or a Unix socket.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

PERF = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", PERF.parent / "target")) / "release"
AXUM = Path(os.environ.get("PEER_TARGET", TARGET.parent / "peer-axum")) / "release/aurore-events-peer-axum"
# The server may come from another build, to compare two builds.
SERVER = Path(os.environ.get("SERVER", TARGET / "aurore-events"))
# Settings of the server besides those of the parts, as in "DRAIN_INTERVAL=20 WRITER_CONNECTIONS=1".
SETTINGS = dict(setting.split("=", 1) for setting in os.environ.get("SERVER_SETTINGS", "").split())
PORT = int(os.environ.get("PORT", "3998"))
TICKS = os.sysconf("SC_CLK_TCK")
# A buffer that holds a whole round, so that no event is refused.
WIDE_BUFFER = {"BUFFER_MAX_SIZE": "10000000", "BUFFER_MAX_BYTES": "8000000000"}


class BenchmarkError(Exception):
    """The measurement cannot go on."""


def until(condition, what, seconds=120.0, pause=0.01):
    """Waits until `condition` returns something true, and returns it."""
    end = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > end:
            raise BenchmarkError(f"waited {seconds:.0f} s for {what}")
        time.sleep(pause)


def get(path, port=PORT):
    """The body of a GET, or None if there is no answer or another status than 200."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return response.read()
    except (urllib.error.URLError, OSError):
        return None


def own_cpu(pid):
    """CPU seconds of a process and of the children that it has waited for."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(map(int, stat.rpartition(")")[2].split()[11:15])) / TICKS


def family(pid):
    """A process and its descendants."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found.extend(map(int, (task / "children").read_text().split()))
    return found


def tree_cpu(pid):
    return sum(map(own_cpu, family(pid)))


def rss_bytes(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise BenchmarkError(f"no VmRSS of {pid}")


class Cluster:
    """A PostgreSQL with the settings of the server's private cluster.

    The server creates it. After that it is run with the server's command line, apart from the server,
    so that peers can use it too and so that it can be stopped while the server runs.
    """

    def __init__(self, work):
        self.work = Path(work)
        self.log = open(self.work / "postgres.log", "ab")
        with Server(self.work, {}, data="cluster") as server:
            pid_file = self.work / "cluster/postgres/postmaster.pid"
            if not pid_file.exists():
                pid_file = next((self.work / "cluster/postgres").rglob("postmaster.pid"))
            pid = int(pid_file.read_text().split()[0])
            self.command = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            self.program = os.readlink(f"/proc/{pid}/exe")
            owner = os.stat(f"/proc/{pid}")
            self.user, self.group = owner.st_uid, owner.st_gid
            server.stop()
        self.socket = str(pid_file.parent)
        for nth, argument in enumerate(self.command):
            if argument == b"-k":
                self.socket = self.command[nth + 1].decode()
            elif b"unix_socket_directories=" in argument:
                self.socket = argument.split(b"=", 1)[1].decode()
        self.directory = str(pid_file.parent)
        self.process = None

    @property
    def url(self):
        return f"postgresql://postgres@{self.socket.replace('/', '%2F')}/aurore_events"

    def start(self):
        as_user = {"user": self.user, "group": self.group, "extra_groups": []} if os.geteuid() == 0 else {}
        self.process = subprocess.Popen(
            self.command,
            executable=self.program,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
            **as_user,
        )
        until(lambda: self.sql("SELECT 1", check=False) == "1", "PostgreSQL")

    def stop(self):
        if self.process:
            self.resume()
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)
            self.process = None

    def sql(self, query, check=True):
        psql = Path(self.program).with_name("psql")
        command = [
            str(psql if psql.exists() else "psql"),
            "-h",
            self.socket,
            "-U",
            "postgres",
            "-d",
            "aurore_events",
            "-v",
            "ON_ERROR_STOP=1",
            "-qAt",
        ]
        run = subprocess.run(command, input=query, capture_output=True, text=True)
        if check and run.returncode:
            raise BenchmarkError(run.stderr)
        return run.stdout.strip()

    def cpu(self):
        return tree_cpu(self.process.pid)

    def empty(self):
        """Empties the tables, so that each measurement begins alike."""
        self.sql("TRUNCATE events, event_counts, event_minutes; CHECKPOINT;")
        self.sql("DO $$ BEGIN IF to_regclass('peer.events') IS NOT NULL THEN TRUNCATE peer.events; END IF; END $$")

    def create_peer_table(self):
        self.sql("DROP SCHEMA IF EXISTS peer CASCADE;" + (PERF / "peers/schema.sql").read_text())

    def _signal(self, number):
        for pid in reversed(family(self.process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def suspend(self):
        """Stops all processes of PostgreSQL where they are."""
        self._signal(signal.SIGSTOP)

    def resume(self):
        self._signal(signal.SIGCONT)


class Program:
    """A process that serves HTTP on PORT."""

    def __init__(self, work, name, command, ready, env, port=PORT):
        self.log_path = Path(work) / f"{name}.log"
        log = open(self.log_path, "ab")
        inherited = {
            key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG", "TMPDIR", "USER")
        }
        self.process = subprocess.Popen(
            [str(part) for part in command], env={**inherited, **env}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        log.close()
        began = time.monotonic()

        def answers():
            if self.process.poll() is not None:
                raise BenchmarkError(f"{name} does not start:\n{self.log_path.read_text()[-2000:]}")
            return get(ready, port) is not None

        until(answers, f"{name} to be ready", pause=0.002)
        self.ready_after = time.monotonic() - began

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def cpu(self):
        return tree_cpu(self.process.pid)

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def wait_for_drain(self):
        until(lambda: self.accepted() == self.stored(), "all events to be stored", 180)


class Server(Program):
    def __init__(self, work, env, data="data", keep=False):
        directory = Path(work) / data
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)
        env = {
            "PORT": str(PORT),
            "HOST": "127.0.0.1",
            "DATA_DIR": str(directory),
            "RATE_LIMIT_QUERY": "0",
            "RETENTION_CRON_SCHEDULE": "0 0 1 1 *",
            **SETTINGS,
            **env,
        }
        super().__init__(work, "server", [SERVER, "serve"], "/ready", env)

    def metrics(self):
        text = get("/metrics/prometheus")
        if text is None:
            raise BenchmarkError("the server does not answer a scrape")
        lines = (line.rpartition(" ") for line in text.decode().splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def accepted(self):
        return self.metrics()["events_received_total"]

    def stored(self):
        return self.metrics()["events_stored_total"]


class Axum(Program):
    def __init__(self, work, env):
        super().__init__(work, "axum", [AXUM], "/count", {"PORT": str(PORT), **env})

    def _count(self, name):
        return json.loads(get("/count") or b"{}").get(name, -1)

    def accepted(self):
        return self._count("accepted")

    def stored(self):
        return self._count("stored")


class Fastify(Program):
    def __init__(self, work, env):
        command = ["node", "--max-semi-space-size=64", PERF / "peers/fastify/server.js"]
        super().__init__(work, "fastify", command, "/", {"PORT": str(PORT), "NODE_ENV": "production", **env}, PORT + 1)

    def _count(self, name):
        return json.loads(get("/", PORT + 1) or b"{}").get(name, -1)

    def accepted(self):
        return self._count("accepted")

    def stored(self):
        return self._count("stored")

    def wait_for_drain(self):
        # The workers report their counts every 20 ms.
        time.sleep(0.05)
        super().wait_for_drain()


class Bare(Program):
    """The responder on may_minihttp that only reads the body."""

    def __init__(self, work, workers):
        super().__init__(work, "bare", [TARGET / "examples/bare", f"127.0.0.1:{PORT}", str(workers)], "/", {})


def load_command(**options):
    command = [str(TARGET / "examples/load"), "--address", f"127.0.0.1:{PORT}"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    return command


def load(**options):
    """Runs the load generator and returns its figures."""
    run = subprocess.run(load_command(**options), capture_output=True, text=True)
    if run.returncode:
        raise BenchmarkError(f"load: {run.stderr}")
    return json.loads(run.stdout)


def bare_copy(cluster, seconds, *more):
    url = f"host={cluster.socket} user=postgres dbname=aurore_events"
    run = subprocess.run([str(TARGET / "examples/bare_copy"), url, str(seconds), *more], capture_output=True, text=True)
    if run.returncode:
        raise BenchmarkError(f"bare_copy: {run.stderr}")
    return json.loads(run.stdout)
