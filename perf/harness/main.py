"""Runs the parts of the benchmark and writes perf/results.md. Started by perf/run."""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import edge
import latency
import operations
import report
import rows
import stored
from machine import PERF, BenchmarkError, Cluster

# In this order: `latency` and `rows` use the maximum that `single` and `batch` find.
PARTS = {
    "edge": edge.edge,
    "single": stored.single,
    "batch": stored.batch,
    "otlp": stored.otlp,
    "levels": stored.levels,
    "latency": latency.latency,
    "connections": stored.connections,
    "memory": operations.memory,
    "recovery": operations.recovery,
    "visible": operations.visible,
    "rows": rows.rows,
}
RESULTS = Path(os.environ.get("CARGO_TARGET_DIR", PERF.parent / "target")) / "perf"
# Events per second if no part has measured the maximum.
ASSUMED_MAXIMUM = {"single": 80_000, "batch": 150_000}


class Bench:
    """One part of the run: its samples and the cluster that the parts share."""

    def __init__(self, quick):
        self.quick = quick
        self.work = tempfile.mkdtemp(prefix="aurore-perf-")
        # The user of the cluster must be able to traverse it.
        os.chmod(self.work, 0o755)
        self._cluster = None
        self.samples = []

    def cluster(self):
        if self._cluster is None:
            self._cluster = Cluster(self.work)
            self._cluster.start()
        return self._cluster

    def end_cluster(self):
        if self._cluster:
            self._cluster.stop()
            shutil.rmtree(Path(self.work) / "cluster", ignore_errors=True)
            self._cluster = None

    def close(self):
        self.end_cluster()
        shutil.rmtree(self.work, ignore_errors=True)

    def rounds(self, count):
        return min(count, 2) if self.quick else count

    def seconds(self, count):
        return min(count, 1.5) if self.quick else count

    def sample(self, variant, **figures):
        self.samples.append({"variant": variant, **figures})
        shown = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items()
        )
        print(f"  {variant}: {shown}", file=sys.stderr, flush=True)

    def half_of_maximum(self, part):
        path = RESULTS / f"{part}.json"
        if not path.exists():
            return ASSUMED_MAXIMUM[part] / 2
        variant = {"single": "server", "batch": "batches of 100"}[part]
        return report.Samples(json.loads(path.read_text())["samples"]).median(variant, "events_per_second") / 2


def main():
    parser = argparse.ArgumentParser(
        prog="perf/run", description="Measures the rows of the table of performance goals."
    )
    parser.add_argument("--quick", action="store_true", help="short rounds, to check the script; the figures are noise")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}, or report; default: all")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - {*PARTS, "report"}
    if unknown:
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    wanted = [part for part in PARTS if part in arguments.parts] if arguments.parts else list(PARTS)
    # So that a signal ends the programs that were started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by a signal"))
    bench = Bench(arguments.quick)
    failed = []
    try:
        for part in wanted:
            begin, bench.samples = time.monotonic(), []
            print(f"{part}:", file=sys.stderr)
            try:
                PARTS[part](bench)
            except BenchmarkError as error:
                print(f"  {part} failed: {error}", file=sys.stderr)
                failed.append(part)
                bench.end_cluster()
                continue
            result = {
                "part": part,
                "quick": arguments.quick,
                "seconds": round(time.monotonic() - begin, 1),
                "when": datetime.now(UTC).isoformat(timespec="seconds"),
                "samples": bench.samples,
            }
            (RESULTS / f"{part}.json").write_text(json.dumps(result, indent=1))
            print(f"  {result['seconds']:.0f} s", file=sys.stderr)
    finally:
        bench.close()
    report.write(RESULTS, PERF)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
