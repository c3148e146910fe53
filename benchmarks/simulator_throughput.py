"""How fast the simulator makes logs: events (watches, impressions, searches) per second of one core.

    python -m benchmarks.simulator_throughput [users ...]

Prints one line per number of users; memory is the process's peak so far.
"""

import resource
import sys
import time

from pipeline.sources.simulator import SimulatorConfig, simulate


def measure(users: int) -> str:
    """Simulates once and reports rows, seconds of CPU time, events per second and peak memory."""
    videos = max(users // 2, 500)
    config = SimulatorConfig(users=users, videos=videos, uploaders=videos // 10)
    begin = time.process_time()
    tables = simulate(config).tables
    seconds = time.process_time() - begin
    events = sum(tables[name].num_rows for name in ("watches", "impressions", "searches"))
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return f"{users:>8,} users {events:>10,} events {seconds:6.1f} s {events / seconds:>9,.0f}/s {peak_gib:5.2f} GiB"


if __name__ == "__main__":
    for argument in sys.argv[1:] or ["4000", "20000"]:
        print(measure(int(argument)))
