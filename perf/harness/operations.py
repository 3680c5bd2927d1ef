"""Parts that measure one property each: memory, recovery, visibility."""

import http.client
import json
import signal
import socket
import time
from datetime import UTC, datetime

from machine import PORT, Server, load, rss_bytes, until

MIB = 1 << 20


def memory(bench):
    """Resident memory: idle, with idle connections, and while the buffer fills."""
    cluster = bench.cluster()
    for _ in range(bench.rounds(3)):
        cluster.empty()
        with Server(bench.work, {"DATABASE_URL": cluster.url}) as server:
            time.sleep(2)
            idle = rss_bytes(server.process.pid)
            opened = open_idle_connections(4000)
            time.sleep(0.5)
            with_connections = rss_bytes(server.process.pid)
            for connection in opened:
                connection.close()
        # A buffer that is full at its limit of bytes, 256 MiB.
        env = {"DATABASE_URL": cluster.url, "BUFFER_MAX_SIZE": "1000000", "SPILL_MAX_BYTES": "0"}
        with Server(bench.work, env) as server:
            cluster.suspend()
            load(connections=64, seconds=bench.seconds(4), batch=10, **{"pause-ms": 100})
            buffered, loaded = server.metrics()["buffer_bytes"], rss_bytes(server.process.pid)
            cluster.resume()
            server.wait_for_drain()
            bench.sample(
                "memory",
                idle_mib=idle / MIB,
                bytes_per_connection=(with_connections - idle) / len(opened),
                buffered_mib=buffered / MIB,
                loaded_mib=loaded / MIB,
                # Of the bound of 64 MiB and 1.5 times the bytes buffered.
                share_of_bound=loaded / (64 * MIB + 1.5 * buffered),
                after_drain_mib=rss_bytes(server.process.pid) / MIB,
            )


def open_idle_connections(count):
    """Connections that have had one response each."""
    opened = []
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", PORT))
        connection.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        opened.append(connection)
    for connection in opened:
        connection.recv(4096)
    return opened


def recovery(bench):
    """Start to ready, and the time until 50,000 events of a killed server are stored."""
    cluster, events = bench.cluster(), 50_000
    env = {"DATABASE_URL": cluster.url, "BUFFER_MAX_SIZE": str(2 * events)}
    for _ in range(bench.rounds(5)):
        cluster.empty()
        server = Server(bench.work, env)
        ready_empty = server.ready_after
        cluster.suspend()
        # Suspended before the first event: none of them is stored by the first process.
        post_batches(events)
        server.stop(signal.SIGKILL)
        cluster.resume()
        cluster.sql("SELECT 1")
        begin = time.monotonic()
        with Server(bench.work, env, keep=True) as server:
            ready = server.ready_after
            until(lambda server=server: server.stored() >= events, "recovery", pause=0.002)
            bench.sample(
                "recovery",
                ready_empty_ms=ready_empty * 1e3,
                ready_ms=ready * 1e3,
                stored_ms=(time.monotonic() - begin) * 1e3,
            )


def now():
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def post_batches(events, size=5000):
    connection = http.client.HTTPConnection("127.0.0.1", PORT)
    headers = {"Content-Type": "application/x-ndjson", "Durability": "written"}
    for first in range(0, events, size):
        lines = (
            json.dumps({"timestamp": now(), "service": f"service-{nth % 20}", "message": f"order {nth} " + "x" * 150})
            for nth in range(first, first + size)
        )
        connection.request("POST", "/events", "\n".join(lines), headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
        assert response.status == 202 and answer["accepted"] == size, answer


def visible(bench):
    """From a POST on an idle server until a GET returns the event."""
    cluster = bench.cluster()
    cluster.empty()
    with Server(bench.work, {"DATABASE_URL": cluster.url}) as server:
        connection = http.client.HTTPConnection("127.0.0.1", PORT)

        def find(nth):
            connection.request("GET", f"/events?service=visible-{nth}&count=none")
            return json.loads(connection.getresponse().read())["events"]

        for nth in range(bench.rounds(20)):
            server.wait_for_drain()
            time.sleep(0.3)
            event = json.dumps({"timestamp": now(), "service": f"visible-{nth}", "message": "visible"})
            begin = time.monotonic()
            connection.request("POST", "/events", event, {"Content-Type": "application/json"})
            connection.getresponse().read()
            until(lambda nth=nth: find(nth), "the event", pause=0.001)
            bench.sample("visible", ms=(time.monotonic() - begin) * 1e3)
