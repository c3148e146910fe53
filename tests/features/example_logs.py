"""Small logs and the features folder made of them, for the tests of example sets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features import example_sets
from features.artifacts import publish
from features.catalogue import build_catalogue
from features.encoding import Encoder, load_encoder, make_encoder
from features.example_reader import SPEC
from features.example_sets import ExamplesJob
from features.feature_lists import (
    FeatureListConfig,
    columns_of,
    default_candidate_features,
    default_ranking_features,
    default_sequence_features,
    id_sources,
)
from features.search_tokens import search_tokens
from features.shards import ShardConfig, num_shards, times_us, write_shards
from features.spec import FeatureSpec, write_specs
from features.splits import PARTS, Split, SplitConfig, resolve
from features.tables import TABLES
from features.vocabulary import Vocabulary, VocabularyConfig, count_values, serving_rows
from features.vocabulary_requests import vocabulary_requests

DAY_US = 86_400_000_000
START_US = 1_700_006_400_000_000  # 2023-11-15 00:00 UTC

PARTITIONED = ("watches", "impressions", "searches")


def table(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as a canonical table with the columns that any row has; `time_us` becomes `timestamp`."""
    rows = [{("timestamp" if k == "time_us" else k): v for k, v in row.items()} for row in rows]
    names = list(dict.fromkeys(key for row in rows for key in row))
    schema = TABLES[name].schema
    fields = [schema.field(n) if n in schema.names else None for n in names]
    columns = [
        pa.array([row.get(n) for row in rows], f.type if f is not None else None)
        for n, f in zip(names, fields, strict=True)
    ]
    return pa.table(columns, names=names)


def write_tables(folder: Path, tables: Mapping[str, pa.Table]) -> Path:
    """Writes canonical tables, each in two parts so that a user's events are spread over files."""
    for name, rows in tables.items():
        half = len(rows) // 2
        for number, part in enumerate([rows.slice(0, half), rows.slice(half)]):
            path = folder / name / (f"day=2023-11-{15 + number}" if name in PARTITIONED else "")
            path.mkdir(parents=True, exist_ok=True)
            pq.write_table(part, path / f"part-{number:05d}.parquet")
    return folder


def vocabularies(
    tables: Mapping[str, pa.Table], split: Split, specs: Mapping[Any, FeatureSpec]
) -> dict[str, Vocabulary]:
    """Vocabularies of the training part, counted without Beam."""
    counted: dict[str, list[pa.ChunkedArray]] = {}
    for request in vocabulary_requests(id_sources(specs)):
        rows = tables[request.table]
        if request.table in PARTITIONED:
            rows = rows.filter(pa.array(split.fits(times_us(rows), rows["user_id"].combine_chunks())))
        if request.only == "clicked":
            rows = rows.filter(rows["clicked"])
        values = rows[request.column].combine_chunks()
        counted.setdefault(request.space, []).append(search_tokens(values) if request.tokens else values)
    made = {"hour": Vocabulary.of([str(hour) for hour in range(24)])}
    for space, columns_of_space in counted.items():
        flat = [v.flatten() if pa.types.is_list(v.type) else v for v in columns_of_space]
        counts = count_values(pa.concat_arrays([v.cast(pa.string()) for v in flat]))
        made[space] = Vocabulary.from_counts(counts, VocabularyConfig())
    return made


@dataclass
class Run:
    """A run's folders up to the features, made from tables."""

    folder: Path
    tables: dict[str, pa.Table]
    split: Split
    lists: FeatureListConfig = field(default_factory=FeatureListConfig)

    def __post_init__(self) -> None:
        write_tables(self.folder / "tables", self.tables)
        columns = columns_of(self.folder / "tables")
        self.specs = {
            "candidate_generator": default_candidate_features(columns, self.lists).spec,
            "sequence_generator": default_sequence_features(columns, self.lists).spec,
        }
        if "impressions" in columns:
            self.specs["ranker"] = default_ranking_features(columns, self.lists).spec
        self.publish_features(vocabularies(self.tables, self.split, self.specs))
        write_shards(self.folder / "tables", self.shards, ShardConfig(num_shards=3))

    def publish_features(self, made: Mapping[str, Vocabulary], split: Split | None = None) -> None:
        with publish(self.features / "vocabularies", {"split": (split or self.split).as_json()}) as folder:
            for space, vocabulary in made.items():
                vocabulary.write(folder / f"{space}.parquet")
        build_catalogue(self.folder / "tables", self.features, made, self.specs.values())

    @property
    def features(self) -> Path:
        return self.folder / "features"

    @property
    def shards(self) -> Path:
        return self.folder / "shards"


def encoder_of(folder: Path, tables: Mapping[str, pa.Table], split: Split, specs: Mapping[Any, FeatureSpec]) -> Encoder:
    """The encoder of these tables, written under `folder` for the catalogue only."""
    made = vocabularies(tables, split, specs)
    write_tables(folder, tables)
    build_catalogue(folder, folder / "features", made, specs.values())
    return make_encoder(made, pq.read_table(folder / "features" / "catalogue" / "catalogue.parquet"))


def platform(users: int = 40, days: int = 6, seed: int = 0, request_ids: bool = True) -> dict[str, pa.Table]:
    """A small platform: page requests of five impressions, the watches they led to, external watches and searches."""
    rng = np.random.default_rng(seed)
    videos = 60
    impressions, watches, searches = [], [], []
    for user in range(users):
        for _ in range(int(rng.integers(4, 14))):
            time_us = START_US + int(rng.integers(0, days * 86_400)) * 1_000_000
            page = ["home", "watch_next"][int(rng.integers(2))]
            request = f"r{len(impressions)}"
            for position in range(5):
                video = f"v{int(rng.integers(videos))}"
                clicked = bool(rng.random() < 0.4)
                shown = {
                    "user_id": f"u{user}", "video_id": video, "time_us": time_us + position * 20_000_000,
                    "clicked": clicked, "page": page, "device": f"d{user % 3}", "position": position,
                    "impression_id": f"i{len(impressions)}",
                    "candidate_sources": [f"s{int(s)}" for s in rng.integers(0, 3, 2)],
                    "candidate_scores": [float(rng.random()), float(rng.random())],
                }  # fmt: skip
                if request_ids:
                    shown["request_id"] = request
                if page == "watch_next":
                    shown["seed_video_id"] = f"v{int(rng.integers(videos))}"
                impressions.append(shown)
                if clicked:
                    watches.append(
                        {
                            "user_id": f"u{user}", "video_id": video, "time_us": shown["time_us"] + 3_000_000,
                            "watch_time_s": float(rng.integers(1, 300)), "completed": bool(rng.random() < 0.6),
                            "device": f"d{user % 3}", "impression_id": shown["impression_id"],
                        }
                    )  # fmt: skip
        for _ in range(4):
            watches.append(
                {
                    "user_id": f"u{user}", "video_id": f"v{int(rng.integers(videos))}",
                    "time_us": START_US + int(rng.integers(0, days * 86_400)) * 1_000_000,
                    "watch_time_s": float(rng.integers(1, 300)), "completed": True, "device": "tv",
                }
            )  # fmt: skip
            searches.append(
                {
                    "user_id": f"u{user}", "time_us": START_US + int(rng.integers(0, days * 86_400)) * 1_000_000,
                    "query": " ".join(f"w{int(w)}" for w in rng.integers(0, 12, 3)),
                }
            )  # fmt: skip
    people = [
        {"user_id": f"u{u}", "region": f"g{u % 4}", "gender": u % 2, "age": 20.0 + u, "logged_in": u % 3 > 0}
        for u in range(users)
    ]
    catalogue = [
        {
            "video_id": f"v{v}", "uploader_id": f"c{v % 7}", "upload_time": START_US - v * 3_600_000_000,
            "duration_s": 30.0 * v, "language": f"l{v % 3}", "topics": [f"t{v % 5}", f"t{v % 3}"][: 1 + v % 2],
        }
        for v in range(videos)
    ]  # fmt: skip
    return {
        "watches": table("watches", watches),
        "impressions": table("impressions", impressions),
        "searches": table("searches", searches),
        "users": table("users", people),
        "videos": table("videos", catalogue),
    }


def split_of(tables: Mapping[str, pa.Table], config: SplitConfig | None = None) -> Split:
    """The split of a platform: two test days, a validation day before them."""
    latest = max(int(times_us(tables[name]).max()) for name in ("watches", "impressions") if name in tables)
    return resolve(config or SplitConfig(), latest)


def build_here(job: ExamplesJob, run: Run, output: Path) -> Path:
    """What `build_examples` publishes, written in this process without Beam."""
    manifest = job.as_json()
    with publish(output, manifest) as folder:
        for part in PARTS:
            (folder / part.folder).mkdir()
        totals_of = example_sets._Totals(job, run.shards, run.features)
        writer = example_sets._WriteExamples(job, run.shards, run.features, folder)
        totals_of.setup()
        writer.setup()
        shards = range(num_shards(run.shards))
        totals = example_sets._sum_totals([t for shard in shards for t in totals_of.process(shard)])
        for shard in shards:
            writer.process(shard, totals)
        write_specs(folder / SPEC, {job.model: job.spec})
        manifest["serving_rows"] = serving_rows(job.spec, load_encoder(run.features).vocabularies)
        manifest.update(example_sets._gather(folder, shards))
        example_sets._check_counts(output, manifest)
    return output
