"""Parts that measure events stored per second, end to end into PostgreSQL, and their CPU."""

import time

from machine import WIDE_BUFFER, Axum, Fastify, Server, bare_copy, load


def stored_round(program, cluster, **options):
    """One measurement: from the beginning of the load to the commit of the last event."""
    begin, stored = time.monotonic(), program.stored()
    server, database = program.cpu(), cluster.cpu()
    figures = load(**options)
    program.wait_for_drain()
    seconds = time.monotonic() - begin
    events = program.stored() - stored
    return {
        "events_per_second": events / seconds,
        "events": events,
        "server_us": (program.cpu() - server) / events * 1e6,
        "database_us": (cluster.cpu() - database) / events * 1e6,
        "load_us": figures["cpu_seconds"] / events * 1e6,
        "refused": figures["refused"],
        "errors": figures["errors"] + figures["unanswered"],
        "p50_ms": figures["p50_ms"],
        "p99_ms": figures["p99_ms"],
    }


def there_and_back(variants, rounds):
    """The variants in turn, each second time in reverse order: A B C, C B A, A B C, ..."""
    for nth in range(rounds):
        yield from ((nth, variant) for variant in (variants if nth % 2 == 0 else variants[::-1]))


# Events of 200 bytes each, with which some of the goals were set.
SMALL = {"size": "200"}


def single(bench):
    """Single POSTs: the server and its peers, each alone on the same cluster."""
    cluster, options = bench.cluster(), {"connections": 64, "seconds": bench.seconds(4)}
    cluster.create_peer_table()
    programs = {
        "server": lambda: Server(bench.work, {"DATABASE_URL": cluster.url, **WIDE_BUFFER}),
        "axum": lambda: Axum(bench.work, {"DATABASE_URL": cluster.url, "BUFFER_MAX_SIZE": "2000000"}),
        "fastify": lambda: Fastify(bench.work, {"DATABASE_URL": cluster.url, "BUFFER_MAX_SIZE": "2000000"}),
    }
    for _, name in there_and_back(list(programs), bench.rounds(3)):
        cluster.empty()
        with programs[name]() as program:
            load(connections=64, seconds=1)
            program.wait_for_drain()
            bench.sample(name, **stored_round(program, cluster, **options))
            cluster.empty()
            bench.sample(f"{name}, 200 bytes", **stored_round(program, cluster, **options, **SMALL))


BATCHES = {
    "batches of 100": {"batch": 100},
    "batches of 100, 200 bytes": {"batch": 100, **SMALL},
    "equal timestamps": {"batch": 100, "time": "equal"},
    "timestamps of whole seconds": {"batch": 100, "time": "second"},
    "with idempotency keys": {"batch": 100, "keyed": "yes"},
    "batches of 10": {"batch": 10},
    "batches of 1,000": {"batch": 1000, "connections": 16},
}
COPIES = {
    "bare COPY": ("advancing", "life"),
    "bare COPY, 200 bytes": ("advancing", "200"),
    "bare COPY, equal timestamps": ("equal", "life"),
}
# Batches are accepted several times as fast as they are stored. A producer that is refused pauses.
# The buffer lasts for longer than the pause, and refusals, whose bodies are read too, stay cheap.
PAUSE_MS = 100
NARROW_BUFFER = {"BUFFER_MAX_SIZE": "100000", "SPILL_MAX_BYTES": "0"}


def batch(bench):
    """Batches, in turn with a bare COPY BINARY of the same rows on one connection."""
    cluster = bench.cluster()
    cluster.create_peer_table()
    # The first rows of a new cluster touch its shared memory: they cost half as much again.
    bare_copy(cluster, 2)
    with Server(bench.work, {"DATABASE_URL": cluster.url, **NARROW_BUFFER}) as server:
        load(connections=64, seconds=1, batch=100, **{"pause-ms": PAUSE_MS})
        server.wait_for_drain()
        for _, name in there_and_back([*COPIES, *BATCHES], bench.rounds(4)):
            cluster.empty()
            if name in BATCHES:
                options = {"connections": 64, "seconds": bench.seconds(3), "pause-ms": PAUSE_MS, **BATCHES[name]}
                bench.sample(name, **stored_round(server, cluster, **options))
                continue
            database = cluster.cpu()
            rows = bare_copy(cluster, bench.seconds(3), *COPIES[name])
            bench.sample(
                name,
                events_per_second=rows["rows_per_second"],
                events=rows["rows"],
                database_us=(cluster.cpu() - database) / rows["rows"] * 1e6,
                load_us=rows["cpu_seconds"] / rows["rows"] * 1e6,
            )


# The size of the batches of OpenTelemetry's SDKs. Without keys, as NDJSON without them is stored, and
# with the default, a hash of the request, by which a retry is stored once.
OTLP = {"batch": 512, "connections": 16, "format": "otlp"}
FORMS = {
    "NDJSON": {"batch": 512, "connections": 16},
    "OTLP, dedup=none": {**OTLP, "path": "/v1/logs?otlp_dedup=none"},
    "NDJSON with keys": {"batch": 512, "connections": 16, "keyed": "yes"},
    "OTLP, dedup=body": {**OTLP, "path": "/v1/logs?otlp_dedup=body"},
}


def otlp(bench):
    """Batches of OTLP in protobuf, in turn with NDJSON of the same events."""
    cluster = bench.cluster()
    with Server(bench.work, {"DATABASE_URL": cluster.url, **NARROW_BUFFER}) as server:
        load(connections=64, seconds=1, batch=100, **{"pause-ms": PAUSE_MS})
        server.wait_for_drain()
        for _, name in there_and_back(list(FORMS), bench.rounds(4)):
            cluster.empty()
            options = {"seconds": bench.seconds(3), "pause-ms": PAUSE_MS, **FORMS[name]}
            bench.sample(name, **stored_round(server, cluster, **options))


def levels(bench):
    """The durability levels, in turn on the same server."""
    cluster = bench.cluster()
    with Server(bench.work, {"DATABASE_URL": cluster.url, **WIDE_BUFFER}) as server:
        load(connections=64, seconds=1)
        server.wait_for_drain()
        for _, level in there_and_back(["memory", "written", "synced"], bench.rounds(3)):
            cluster.empty()
            options = {"connections": 64, "seconds": bench.seconds(4), "durability": level}
            bench.sample(level, **stored_round(server, cluster, **options))


def connections(bench):
    """Growth of connections: single POSTs at full speed."""
    cluster = bench.cluster()
    with Server(bench.work, {"DATABASE_URL": cluster.url, **WIDE_BUFFER}) as server:
        load(connections=64, seconds=1)
        server.wait_for_drain()
        for _, count in there_and_back([1, 4, 16, 64, 256, 1024, 4096], bench.rounds(2)):
            cluster.empty()
            options = {"connections": count, "seconds": bench.seconds(3)}
            bench.sample(str(count), **stored_round(server, cluster, **options))
