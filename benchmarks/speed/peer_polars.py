"""Polars on the job of `benchmarks/speed/job_shapes.py`: runs in the peers' environment, imports nothing of ours.

python peer_polars.py TABLES
"""

import json
import sys
import time

import polars as pl


def main(tables: str) -> None:
    started = time.perf_counter()
    columns = ["video_id", "watch_time_s"]
    files = [f"{tables}/{name}/**/*.parquet" for name in ("watches", "impressions")]
    rows = pl.concat(pl.scan_parquet(file).select(columns) for file in files)
    top, times = pl.collect_all(
        [
            rows.group_by("video_id").len().sort(["len", "video_id"], descending=[True, False]).head(10_000),
            rows.select(pl.col("watch_time_s").drop_nulls().sort()),
        ]
    )
    ranks = [round(rank / 100 * (len(times) - 1)) for rank in range(101)]
    quantiles = times["watch_time_s"].gather(ranks)
    seconds = time.perf_counter() - started
    first = top.rows()[0]
    print(json.dumps({"seconds": seconds, "top": list(first), "median": quantiles[50]}))


if __name__ == "__main__":
    main(sys.argv[1])
