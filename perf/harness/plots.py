"""The plots of the parts."""

import plot

PERCENTILES = [("p50", "p50_ms"), ("p90", "p90_ms"), ("p99", "p99_ms"), ("p99.9", "p99_9_ms"), ("p99.99", "p99_99_ms")]


def million(size):
    return f"{size / 1e6:g} M"


def single(samples):
    rows = []
    for name in samples.variants():
        rate = samples.median(name, "events_per_second")
        cpu = [samples.median(name, field) for field in ("server_us", "database_us", "load_us")]
        rows.append((name, cpu, f"{sum(cpu):.1f} us, {rate:,.0f} events/s"))
    return plot.bars(
        "Single POSTs into PostgreSQL: CPU of an event",
        "us of CPU per event",
        rows,
        ["server", "PostgreSQL", "load generator"],
    )


def batch(samples):
    rows = []
    for name in samples.variants():
        rate = samples.median(name, "events_per_second")
        rows.append((name, [rate], f"{rate:,.0f}"))
    return plot.bars("Batches into PostgreSQL", "events/s stored", rows, ["events/s"])


def latency(samples):
    series = [
        (name, [(label, *samples.spread(name, field)) for label, field in PERCENTILES]) for name in samples.variants()
    ]
    return plot.lines(
        "Latency of a POST at a fixed rate (open loop)",
        "percentile",
        "ms; bars from the least to the greatest round",
        series,
        log_y=True,
        limit=(1.0, "goal for p99 at 5,000 ev/s"),
    )


def connections(samples):
    def points(field):
        return [(int(name), *samples.spread(name, field)) for name in sorted(samples.variants(), key=int)]

    return plot.lines(
        "Growth of connections: single POSTs at full speed",
        "connections",
        "events/s stored",
        [("events/s stored", points("events_per_second"))],
        log_x=True,
    )


def rows(samples):
    queries = [sample for sample in samples.samples if sample["variant"] == "query" and sample["load"] == "batches"]
    series = []
    for kind in dict.fromkeys(sample["kind"] for sample in queries):
        points = [
            (sample["rows"], sample["p99_ms"], sample["p99_ms"], sample["p99_ms"])
            for sample in queries
            if sample["kind"] == kind
        ]
        if ", 1 event in 1,000" not in kind:
            series.append((kind, points))
    return plot.lines(
        "Queries while batches come in at half of the maximum",
        "rows in the table",
        "p99, ms",
        series,
        log_x=True,
        log_y=True,
        limit=(10.0, "goal"),
    )


PLOTS = {"single": single, "batch": batch, "latency": latency, "connections": connections, "rows": rows}


def write(name, samples, directory):
    """Writes the plot of a part. Returns whether it has one."""
    if name not in PLOTS:
        return False
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.svg").write_text(PLOTS[name](samples))
    return True
