"""Growth of the table: queries, ingest and dropping a day at 10^5 to 10^7 rows, by perf/storage."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from machine import PERF, PORT, BenchmarkError, Server, tree_cpu
from stored import NARROW_BUFFER, PAUSE_MS, stored_round


class EmbeddedCluster:
    """The private cluster of a running server, for its CPU time."""

    def __init__(self, data):
        pid_file = next(Path(data).rglob("postmaster.pid"))
        pid = int(pid_file.read_text().split()[0])
        self.cpu = lambda: tree_cpu(pid)


def rows(bench):
    # perf/storage runs its servers on private clusters; one cluster at a time.
    bench.end_cluster()
    base = Path(bench.work) / "storage"
    base.mkdir()
    base.chmod(0o755)
    half_batch, half_single = bench.half_of_maximum("batch"), bench.half_of_maximum("single")
    (base / "half_rates").write_text(f"100 {half_batch:.0f}\n1 {half_single:.0f}\n")
    env = {
        **os.environ,
        "WORK": str(base),
        "PORT": str(PORT),
        "ROUNDS": "10" if bench.quick else "100",
        "BESIDE": "100" if bench.quick else "400",
    }

    def storage(step, size):
        begin = time.monotonic()
        run = subprocess.run([PERF / "storage", step, str(size)], env=env, capture_output=True, text=True)
        if run.returncode:
            raise BenchmarkError(f"perf/storage {step} {size}: {run.stderr[-2000:]}")
        print(f"  {step} {size}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)

    sizes = (100_000, 300_000) if bench.quick else (100_000, 1_000_000, 10_000_000)
    for size in sizes:
        storage("fill", size)
        storage("measure", size)
        ingest(bench, base / str(size), size)
        if size == sizes[-1]:
            storage("drop", size)
        shutil.rmtree(base / str(size))
    for line in (base / "figures").read_text().splitlines():
        size, each, kind, *values = line.split("\t")
        load_name = {"0": "alone", "100": "batches", "1": "single"}[each]
        if kind == "accepted":
            bench.sample("accepted", rows=int(size), load=load_name, events_per_second=float(values[0]))
        else:
            p50, p99, longest = map(float, values)
            bench.sample(
                "drop" if kind.startswith("dropping") else "query",
                rows=int(size),
                load=load_name,
                kind=kind,
                p50_ms=p50,
                p99_ms=p99,
                max_ms=longest,
            )


def ingest(bench, directory, size):
    env = {**NARROW_BUFFER, "RETENTION_DAYS": "31"}
    with Server(directory, env, keep=True) as server:
        cluster = EmbeddedCluster(directory / "data/postgres")
        for _ in range(2):
            sample = stored_round(
                server, cluster, connections=64, seconds=bench.seconds(3), batch=100, **{"pause-ms": PAUSE_MS}
            )
            # The private cluster is a child of the server.
            sample["server_us"] -= sample["database_us"]
            bench.sample("ingest", rows=size, **sample)
