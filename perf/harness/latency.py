"""Latency at fixed rates (open loop), with the database up, slow and down."""

import contextlib
import threading

from machine import Bare, Server, load
from stored import there_and_back

# Of each 200 ms, PostgreSQL is suspended for 150: a database at a quarter of its speed.
SLOW_PERIOD, SLOW_SUSPENDED = 0.2, 0.15


@contextlib.contextmanager
def slow(cluster):
    """Suspends all processes of PostgreSQL for a part of each period."""
    over = threading.Event()

    def alternate():
        while not over.is_set():
            cluster.suspend()
            over.wait(SLOW_SUSPENDED)
            cluster.resume()
            over.wait(SLOW_PERIOD - SLOW_SUSPENDED)

    thread = threading.Thread(target=alternate)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        cluster.resume()


@contextlib.contextmanager
def down(cluster):
    cluster.stop()
    try:
        yield
    finally:
        cluster.start()


STATES = {"up": lambda _: contextlib.nullcontext(), "slow": slow, "down": down}


def latency(bench):
    """Single POSTs at 5,000 events/s and at half of the maximum. The settings are the defaults."""
    cluster = bench.cluster()
    half = bench.half_of_maximum("single")
    variants = [(rate, state) for rate in (5000, half) for state in ("up", "slow", "down")]
    for _nth, (rate, state) in there_and_back(variants, bench.rounds(3)):
        cluster.empty()
        with Server(bench.work, {"DATABASE_URL": cluster.url, "CIRCUIT_BREAKER_TIMEOUT_MS": "1000"}) as server:
            load(connections=64, seconds=1, rate=rate)
            server.wait_for_drain()
            with STATES[state](cluster):
                name = "5,000" if rate == 5000 else "half of the maximum"
                open_loop(bench, f"{name}, {state}", server, rate)
            server.wait_for_drain()
    with Bare(bench.work, 2) as bare:
        for _ in range(bench.rounds(3)):
            open_loop(bench, "5,000, bare responder", bare, 5000)


def open_loop(bench, name, program, rate):
    cpu = program.cpu()
    seconds = bench.seconds(6)
    figures = load(connections=64, seconds=seconds, warmup=1, rate=rate)
    kept = ("p50_ms", "p90_ms", "p99_ms", "p99_9_ms", "p99_99_ms", "max_ms", "latencies", "refused", "unanswered")
    bench.sample(
        name,
        rate=rate,
        server_us=(program.cpu() - cpu) / max(figures["accepted"], 1) * 1e6,
        load_us=figures["cpu_seconds"] / max(figures["accepted"], 1) * 1e6,
        errors=figures["errors"],
        **{field: figures[field] for field in kept},
    )
