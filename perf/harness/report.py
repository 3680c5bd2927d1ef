"""Writes perf/results.md and the plots from the samples of the parts."""

import json
import platform
import subprocess
from pathlib import Path
from statistics import median

import goals
import plots


class Samples:
    """The samples of one part."""

    def __init__(self, samples):
        self.samples = samples

    def variants(self):
        return list(dict.fromkeys(sample["variant"] for sample in self.samples))

    def values(self, variant, field, **where):
        return [
            sample[field]
            for sample in self.samples
            if sample["variant"] == variant
            and field in sample
            and all(sample.get(key) == value for key, value in where.items())
        ]

    def median(self, variant, field, **where):
        values = self.values(variant, field, **where)
        return median(values) if values else float("nan")

    def spread(self, variant, field, **where):
        """Median, min and max, as plots take them."""
        values = self.values(variant, field, **where)
        return (median(values), min(values), max(values))

    def ratios(self, one, other, field):
        """The ratio of the medians, and those of each round: the n-th of one to the n-th of the other."""
        first, second = self.values(one, field), self.values(other, field)
        pairs = [a / b for a, b in zip(first, second, strict=False) if b]
        if not pairs:
            return None
        return (median(first) / median(second), min(pairs), max(pairs))


def read(results):
    """Part name to its JSON, with `Samples`."""
    parts = {}
    for path in sorted(Path(results).glob("*.json")):
        part = json.loads(path.read_text())
        part["samples"] = Samples(part["samples"])
        parts[part["part"]] = part
    return parts


def spread_text(values, form):
    """`12.3 (11.9 to 13.0)`."""
    if not values:
        return ""
    shown = [format(value, form) for value in (median(values), min(values), max(values))]
    return f"{shown[0]} ({shown[1]} to {shown[2]})" if shown[1] != shown[2] else shown[0]


def table(samples, columns, first="variant"):
    """A Markdown table: a line per variant, and of each column (title, field, format) the median with min and max."""
    rows = [f"| {first} | " + " | ".join(title for title, _, _ in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for variant in samples.variants():
        cells = (spread_text(samples.values(variant, field), form) for _, field, form in columns)
        rows.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


STORED = [
    ("events/s stored", "events_per_second", ",.0f"),
    ("server", "server_us", ".2f"),
    ("PostgreSQL", "database_us", ".2f"),
    ("load generator", "load_us", ".2f"),
    ("refused", "refused", ",.0f"),
    ("errors", "errors", ",.0f"),
]
LATENCY = [
    ("ev/s", "rate", ",.0f"),
    *(
        (name, field, ".2f")
        for name, field in (
            ("p50", "p50_ms"),
            ("p90", "p90_ms"),
            ("p99", "p99_ms"),
            ("p99.9", "p99_9_ms"),
            ("p99.99", "p99_99_ms"),
            ("max", "max_ms"),
        )
    ),
    ("refused", "refused", ",.0f"),
    ("unanswered", "unanswered", ",.0f"),
    ("server us", "server_us", ".1f"),
]
SECTIONS = {
    "edge": (
        "The HTTP front end alone",
        "Single POSTs, 64 connections; the whole path of an event up to buffer and journal, PostgreSQL suspended.",
        [
            ("requests/s", "requests_per_second", ",.0f"),
            ("requests per CPU-second of the server", "requests_per_cpu_second", ",.0f"),
            ("us of the load generator", "load_us", ".2f"),
            ("refused", "refused", ",.0f"),
        ],
    ),
    "single": ("Single POSTs, end to end", "64 connections; us of CPU per event.", STORED),
    "batch": (
        "Batches, end to end",
        "64 connections (1,000: 16); us of CPU per event. The bare COPY is one connection without a server.",
        STORED,
    ),
    "otlp": (
        "OpenTelemetry's logs, end to end",
        "Batches of 512 over 16 connections; us of CPU per event. dedup=body gives each record a key from a hash of "
        "its request, so it is compared with NDJSON whose events have keys. Decoding and encoding alone: `perf/otlp`.",
        STORED,
    ),
    "levels": ("Durability", "Single POSTs, 64 connections; us of CPU per event.", STORED),
    "latency": (
        "Latency at a fixed rate",
        "Open loop, single POSTs over 64 connections, ms from the time at which a request was due. Slow: PostgreSQL "
        "is suspended for 150 of each 200 ms. Bare responder: the noise of this machine and of the load generator.",
        LATENCY,
    ),
    "connections": (
        "Growth of connections",
        "Single POSTs at full speed; us of CPU per event.",
        [*STORED[:4], ("p50, ms", "p50_ms", ".2f"), ("p99, ms", "p99_ms", ".2f"), *STORED[4:]],
    ),
    "memory": (
        "Memory",
        "",
        [
            ("idle, MiB", "idle_mib", ".1f"),
            ("bytes per idle connection", "bytes_per_connection", ",.0f"),
            ("buffered, MiB", "buffered_mib", ".0f"),
            ("resident then, MiB", "loaded_mib", ".0f"),
            ("share of 64 MiB + 1.5 x buffered", "share_of_bound", ".2f"),
            ("after the drain, MiB", "after_drain_mib", ".0f"),
        ],
    ),
    "recovery": (
        "Recovery of 50,000 events",
        "From the start of the process, ms.",
        [
            ("ready, nothing to recover", "ready_empty_ms", ".0f"),
            ("ready", "ready_ms", ".0f"),
            ("all stored", "stored_ms", ".0f"),
        ],
    ),
    "visible": ("POST to visible in GET", "On an idle server, ms.", [("ms", "ms", ".1f")]),
}


def query_table(samples):
    queries = [sample for sample in samples.samples if sample["variant"] in ("query", "drop")]
    columns = list(dict.fromkeys((sample["rows"], sample["load"]) for sample in queries))
    rows = [
        "| p50 / p99, ms | " + " | ".join(f"{plots.million(size)}, {load}" for size, load in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for kind in dict.fromkeys(sample["kind"] for sample in queries):
        cells = []
        for size, load in columns:
            found = [
                sample for sample in queries if (sample["rows"], sample["load"], sample["kind"]) == (size, load, kind)
            ]
            cells.append(f"{found[0]['p50_ms']:g} / {found[0]['p99_ms']:g}" if found else "")
        rows.append(f"| {kind} | " + " | ".join(cells) + " |")
    sizes = dict.fromkeys(sample["rows"] for sample in samples.samples if sample["variant"] == "ingest")
    ingest = "; ".join(
        f"{plots.million(size)}: {spread_text(samples.values('ingest', 'events_per_second', rows=size), ',.0f')}"
        for size in sizes
    )
    return "\n".join(rows) + f"\n\nEvents/s stored in batches of 100 into a table of that size: {ingest}."


def machine():
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    cores = sum(line.startswith("processor") for line in Path("/proc/cpuinfo").read_text().splitlines())
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    return f"{cores} cores ({model}) shared by load generator, server and PostgreSQL; commit {commit or 'unknown'}"


def write(results, perf):
    parts = read(results)
    if not parts:
        return
    begin, end = min(part["when"] for part in parts.values()), max(part["when"] for part in parts.values())
    minutes = sum(part["seconds"] for part in parts.values()) / 60
    lines = [
        "# Results",
        "",
        "<!-- Written by perf/run. -->",
        f"{begin} to {end}; {machine()}. {minutes:.0f} minutes of measurements.",
        "Medians, with the least and the greatest in brackets. Variants were measured in turn (A B, B A, ...);",
        "the range of a ratio is that of the pairs of rounds. Method and programs: [README.md](README.md).",
        "",
    ]
    if any(part["quick"] for part in parts.values()):
        lines += ["**Written with --quick: the figures are noise.**", ""]
    lines += ["## The goals", "", *goals.table(parts), ""]
    for name, (title, text, columns) in SECTIONS.items():
        if name not in parts:
            continue
        lines += [f"## {title}", "", *([text, ""] if text else []), table(parts[name]["samples"], columns), ""]
        lines += (
            [f"![{title}](plots/{name}.svg)", ""] if plots.write(name, parts[name]["samples"], perf / "plots") else []
        )
    if "rows" in parts:
        lines += [
            "## Growth of the table",
            "",
            "Queries alone, and while events come in at half of the maximum; the longest of three dropped days.",
            "",
            query_table(parts["rows"]["samples"]),
            "",
        ]
        plots.write("rows", parts["rows"]["samples"], perf / "plots")
        lines += ["![Growth of the table](plots/rows.svg)", ""]
    (perf / "results.md").write_text("\n".join(lines))
