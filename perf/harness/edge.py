"""The HTTP front end alone: requests per CPU-second, compared with a bare may_minihttp responder."""

import signal

from machine import WIDE_BUFFER, Bare, Server, load
from stored import there_and_back


def edge(bench):
    cluster = bench.cluster()
    variants = [(who, workers) for workers in (1, 2) for who in ("bare", "server")]
    for _, (who, workers) in there_and_back(variants, bench.rounds(3)):
        seconds, name = bench.seconds(4), f"{workers} worker{'s' if workers > 1 else ''}"
        if who == "bare":
            with Bare(bench.work, workers) as bare:
                load(connections=64, threads=2, seconds=1)
                measure(bench, f"bare, {name}", bare, seconds)
            continue
        cluster.empty()
        with Server(bench.work, {"DATABASE_URL": cluster.url, "ACCEPTORS": str(workers), **WIDE_BUFFER}) as server:
            # Touches the memory that the measured events will be in: a first load fills the buffer
            # while PostgreSQL is suspended, and is stored after that.
            cluster.suspend()
            load(connections=64, threads=2, seconds=seconds + 1)
            cluster.resume()
            server.wait_for_drain()
            cluster.suspend()
            load(connections=64, threads=2, seconds=0.5)
            measure(bench, f"server, {name}", server, seconds)
            server.stop(signal.SIGKILL)
            cluster.resume()


def measure(bench, name, program, seconds):
    cpu = program.cpu()
    figures = load(connections=64, threads=2, seconds=seconds)
    requests = figures["statuses"].get("202", 0)
    bench.sample(
        name,
        requests_per_second=requests / figures["seconds"],
        requests_per_cpu_second=requests / (program.cpu() - cpu),
        load_us=figures["cpu_seconds"] / requests * 1e6,
        refused=figures["refused"],
        errors=figures["errors"] + figures["unanswered"],
    )
