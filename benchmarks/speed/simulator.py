"""How fast the simulator makes logs: events (watches, impressions, searches) per second of one core."""

import resource
import time

from benchmarks.report import ResultTable, publish_result
from benchmarks.speed import Request
from pipeline.sources.simulator import SimulatorConfig, simulate


def run(request: Request) -> None:
    """Measures and publishes `simulator`."""
    rows = [measure(users) for users in ((200,) if request.smoke else (4_000, 20_000))]
    notes = ["CPU seconds of one core; memory is the process's peak so far."]
    table = ResultTable(
        "The simulated platform",
        ["users", "events", "CPU seconds", "events/s", "peak memory, GiB"],
        rows,
        notes,
        digits=2,
    )
    facts = {
        "command": f"python -m benchmarks.speed simulator --scale {request.scale}",
        "summary": [f"{rows[-1][3]:,} events/s at {rows[-1][0]} users"],
    }
    publish_result(request.results, "simulator", [table], None, facts)


def measure(users: int) -> list:
    """Simulates once: users, events, CPU seconds, events per second, peak memory."""
    videos = max(users // 2, 500)
    config = SimulatorConfig(users=users, videos=videos, uploaders=videos // 10)
    started = time.process_time()
    tables = simulate(config).tables
    seconds = time.process_time() - started
    events = sum(tables[name].num_rows for name in ("watches", "impressions", "searches"))
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return [f"{users:,}", events, seconds, round(events / seconds), peak_gib]
