from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from features.errors import ConfigError
from features.feature_lists import (
    FeatureList,
    FeatureListConfig,
    IdSource,
    columns_of,
    default_candidate_features,
    default_ranking_features,
    default_sequence_features,
    id_sources,
)
from features.history import REQUIREMENTS
from features.spec import Feature, FeatureConfig, Kind, Model, Normaliser, Side

FULL = {
    "watches": {"user_id", "video_id", "timestamp", "watch_time_s", "device"},
    "impressions": {"user_id", "video_id", "timestamp", "clicked", "page", "device", "position", "seed_video_id",
                    "candidate_sources", "candidate_scores"},
    "searches": {"user_id", "timestamp", "query"},
    "users": {"user_id", "region", "gender", "age", "logged_in", "language"},
    "videos": {"video_id", "uploader_id", "upload_time", "duration_s", "language", "topics"},
}  # fmt: skip


@pytest.mark.parametrize("name", ["watched_video_ids", "watch_count"])
def test_what_sequences_are_made_of_cannot_be_left_out(name: str) -> None:
    config = FeatureListConfig(without=(name,))
    with pytest.raises(ConfigError, match=f"generators of sequences cannot do without {name}"):
        default_sequence_features({"watches": ["video_id"]}, config)


def test_the_histories_that_peers_are_asked_with_cannot_be_left_out() -> None:
    with pytest.raises(ConfigError, match=r"watched_video_ids are also the histories .* leave other features out"):
        default_candidate_features({"watches": ["video_id"]}, FeatureListConfig(without=("watched_video_ids",)))


@pytest.mark.parametrize(
    "name",
    [
        "watch_window", "impression_window", "search_window", "max_watched_videos", "max_recent_videos",
        "max_sequence_length", "max_search_tokens", "max_topics", "max_candidate_sources",
    ],
)  # fmt: skip
def test_a_window_or_list_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=rf"{name}\n.*greater than or equal to 1"):
        FeatureListConfig.model_validate({name: 0})
    assert getattr(FeatureListConfig.model_validate({name: 1}), name) == 1


def test_a_configured_list_of_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        FeatureConfig(name="mine", source="users.tags", kind=Kind.CATEGORICAL, max_length=0)


def test_a_bag_or_sequence_holds_no_more_than_the_window() -> None:
    assert FeatureListConfig(watch_window=20).bag_length == 20
    assert FeatureListConfig(watch_window=200).bag_length == 50
    for name in ("max_watched_videos", "max_sequence_length"):
        with pytest.raises(ValidationError, match=rf"{name} 21 is more .* set watch_window to 21 or more \(it is 20\)"):
            FeatureListConfig(watch_window=20, **{name: 21})


@pytest.mark.parametrize("model", ["candidate_generator", "sequence_generator"])
def test_an_attribute_of_video_vectors_is_a_categorical_column_of_videos(model: Model) -> None:
    def listed(**given: object) -> FeatureList:
        entry = {"name": "studio", "source": "videos.studio", "kind": "categorical", "side": "impression", **given}
        config = FeatureListConfig.model_validate({"extra": [entry | {"models": [model]}]})
        columns = {"watches": ["user_id", "video_id", "studio"], "videos": ["video_id", "studio"]}
        of_sequences = model == "sequence_generator"
        return (default_sequence_features if of_sequences else default_candidate_features)(columns, config)

    attributes = listed().spec.side(Side.IMPRESSION)
    assert [(feature.name, feature.id_space) for feature in attributes] == [("studio", "studio")]
    number = {"kind": "continuous", "normaliser": "scale", "low": 0, "high": 1}
    for given in (number, {"source": "request.studio"}):
        with pytest.raises(ConfigError, match="set kind: categorical, or side: query"):
            listed(**given)


def test_nothing_is_left_out_of_a_full_log() -> None:
    assert default_candidate_features(FULL).left_out == []
    assert default_ranking_features(FULL).left_out == []


def test_a_feature_whose_column_or_table_is_absent_is_left_out_with_the_reason() -> None:
    columns = {**FULL, "users": {"user_id", "regions"}}
    del columns["searches"]
    spec, left_out = default_candidate_features(columns)
    assert dict(left_out) == {
        "search_tokens": "there is no table 'searches'",
        "region": "table 'users' has no column 'region'; the nearest is 'regions'",
        "gender": "table 'users' has no column 'gender'",
        "logged_in": "table 'users' has no column 'logged_in'",
        "age": "table 'users' has no column 'age'",
    }
    assert [feature.name for feature in spec.features] == [
        "watched_video_ids", "device", "example_age", "recent_watched_video_ids", "uploader", "topics",
    ]  # fmt: skip


def test_watches_alone_are_enough_for_the_candidate_generator() -> None:
    config = FeatureListConfig(max_watched_videos=20, max_recent_videos=3)
    spec, _ = default_candidate_features({"watches": {"user_id", "video_id", "timestamp"}}, config)
    lengths = {feature.name: feature.max_length for feature in spec.features}
    assert lengths == {"watched_video_ids": 20, "example_age": None, "recent_watched_video_ids": 3}


def test_the_generators_inputs_are_of_the_query_and_attributes_of_the_video() -> None:
    spec = default_candidate_features(FULL).spec
    assert [feature.name for feature in spec.side(Side.IMPRESSION)] == ["uploader", "topics"]
    assert spec["example_age"].serving_value == 0.0
    assert all(feature.normaliser == Normaliser.SCALE for feature in spec.kind(Kind.CONTINUOUS))


def test_the_ranker_shares_id_spaces_and_fixes_the_position_at_serving() -> None:
    spec = default_ranking_features(FULL).spec
    videos = {feature.name for feature in spec.features if feature.id_space == "clicked_video"}
    assert videos == {"watched_video_ids", "last_watched_video_id", "seed_video_id", "impression_video_id"}
    assert {f.name for f in spec.features if f.id_space == "language"} == {"user_language", "video_language"}
    assert spec["position"].serving_value is not None
    assert all(feature.normaliser == Normaliser.QUANTILE for feature in spec.kind(Kind.CONTINUOUS))


def test_default_features_can_be_left_out_by_name() -> None:
    spec, left_out = default_ranking_features(FULL, FeatureListConfig(without=("click_rate",)))
    assert "click_rate" not in spec
    assert left_out == [("click_rate", "left out by configuration")]


def test_a_configured_feature_is_added_to_the_models_it_names() -> None:
    extra = FeatureConfig(name="activity", source="users.activity", kind=Kind.CATEGORICAL, models=("ranker",))
    columns = {**FULL, "users": {*FULL["users"], "activity"}}
    config = FeatureListConfig(extra=(extra,))
    assert default_ranking_features(columns, config).spec["activity"].id_space == "activity"
    assert "activity" not in default_candidate_features(columns, config).spec


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"source": "users.regoin", "kind": "categorical"}, "no column 'regoin'; the nearest is 'region'"),
        ({"source": "history.watch_cuont", "kind": "continuous"}, "history.watch_cuont: no such derivation"),
        ({"source": "request.clicked", "kind": "continuous"}, "is the outcome that models predict"),
        ({"source": "watches.watch_time_s", "kind": "continuous", "max_length": 5}, "history.watched_time_s"),
        ({"source": "request.hour", "kind": "categorical"}, "'mine': request.hour is one .* and id_space: hour$"),
        ({"source": "request.hour", "kind": "continuous"}, "set kind: categorical and id_space: hour$"),
        ({"source": "request.hour", "kind": "categorical", "id_space": "hour", "max_length": 2}, "leave max_length"),
        ({"source": "request.time_of_week", "kind": "categorical"}, "is one continuous value; set kind: continuous$"),
        ({"source": "request.example_age", "kind": "continuous"}, "of candidate generators alone, found ranker"),
        ({"source": "history.seconds_to_next_watch", "kind": "continuous", "max_length": 5}, "a list of numbers"),
        ({"source": "users.region", "kind": "categorical", "name": "user_id"}, "taken by a column of examples"),
        ({"source": "users.region", "kind": "categorical", "name": "label_weights"}, "taken by a column of examples"),
        ({"source": "users.region", "kind": "categorical", "name": "page"}, "ranker has a feature of this name"),
    ],
)  # fmt: skip
def test_a_wrong_configured_feature_is_refused_with_the_reason(entry: dict, message: str) -> None:
    config = FeatureListConfig(extra=(FeatureConfig(**{"name": "mine", **entry}),))
    with pytest.raises(ConfigError, match=message):
        default_ranking_features(FULL, config)


def test_a_column_of_watches_shares_the_id_space_of_the_requests_column() -> None:
    columns = {"watches": {"video_id", "origin"}}
    extra = (
        {"name": "watched_origin", "source": "watches.origin", "kind": "categorical", "max_length": 4},
        {"name": "origin", "source": "request.origin", "kind": "categorical"},
    )
    config = FeatureListConfig(extra=[{**entry, "models": ["sequence_generator"]} for entry in extra])
    spec = default_sequence_features(columns, config).spec
    assert spec["watched_origin"].id_space == spec["origin"].id_space == "origin"


def test_the_candidate_generator_has_no_quantiles() -> None:
    entry = {"name": "mine", "source": "users.age", "kind": "continuous", "models": ("candidate_generator",)}
    with pytest.raises(ConfigError, match="set normaliser: scale"):
        default_candidate_features(FULL, FeatureListConfig(extra=(FeatureConfig(**entry),)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs low and high, .* set low and high"),
        ({"high": 90.0}, "set low"),
        ({"low": 0.0}, "set high"),
    ],
)
def test_scale_needs_both_ends_of_its_range(given: dict, message: str) -> None:
    entry = {"name": "mine", "source": "users.age", "kind": "continuous", "normaliser": "scale", **given}
    with pytest.raises(ValidationError, match=message):
        FeatureConfig.model_validate(entry)
    whole = FeatureConfig.model_validate({**entry, "low": 10, "high": 90}).feature()
    assert (whole.low, whole.high) == (10.0, 90.0)


def test_an_empty_range_of_a_default_feature_is_refused() -> None:
    with pytest.raises(ConfigError, match="feature 'age': expected low below high"):
        default_candidate_features(FULL, FeatureListConfig(oldest_age_years=0))


@pytest.mark.parametrize("model", ["candidate_generator", "sequence_generator"])
def test_the_label_itself_is_no_input_of_a_generator(model: Model) -> None:
    entry = {"name": "mine", "source": "request.video_id", "kind": "categorical", "id_space": "video"}
    config = FeatureListConfig(extra=(FeatureConfig.model_validate({**entry, "models": [model]}),))
    make = default_candidate_features if model == "candidate_generator" else default_sequence_features
    with pytest.raises(ConfigError, match=rf"'mine': request\.video_id is the watch that {model} predicts"):
        make(FULL, config)


def test_what_is_made_of_the_moment_can_be_added_as_what_it_is() -> None:
    entries = (
        {"name": "local_hour", "source": "request.hour", "kind": "categorical", "id_space": "hour"},
        {"name": "time_of_week", "source": "request.time_of_week", "kind": "continuous"},
    )
    spec = default_ranking_features(FULL, FeatureListConfig(extra=entries)).spec
    assert spec["local_hour"].id_space == "hour" and "time_of_week" in spec


def test_what_histories_are_matched_by_is_counted_though_no_feature_shows_it() -> None:
    shown = default_ranking_features(FULL, FeatureListConfig(without=("uploader", "topics")))
    found = id_sources({"ranker": shown.spec})
    assert {"uploader", "topics"}.isdisjoint(feature.name for feature in shown.spec.features)
    assert IdSource("uploader", "videos", "uploader_id") in found
    assert IdSource("topic", "videos", "topics") in found

    matched = (*(d.value for d, need in REQUIREMENTS.items() if ("videos", "topics") in need.columns), "topics")
    spec = default_ranking_features(FULL, FeatureListConfig(without=matched)).spec
    assert not [source for source in id_sources({"ranker": spec}) if source.column == "topics"]

    channel = FeatureConfig(
        name="channel", source="videos.uploader_id", kind=Kind.CATEGORICAL, side=Side.IMPRESSION, id_space="channel"
    )
    spec = default_ranking_features(FULL, FeatureListConfig(without=("uploader",), extra=(channel,))).spec
    assert [s.id_space for s in id_sources({"ranker": spec}) if s.column == "uploader_id"] == ["channel"]


TEXTS, NUMBERS = pa.list_(pa.string()), pa.list_(pa.float64())
TYPED = {
    "users": {"plan": pa.string(), "tags": TEXTS, "scores": NUMBERS, "born": pa.timestamp("us"), "fans": pa.int32(),
              "nothing": pa.null(), "price": pa.decimal128(9, 2)},
    "videos": {"kind": pa.string(), "tags": TEXTS, "scores": NUMBERS, "hd": pa.bool_()},
    "watches": {"page": pa.string(), "tags": TEXTS},
    "impressions": {"tab": pa.string(), "tags": pa.large_list(pa.string()), "trail": pa.list_(TEXTS)},
}  # fmt: skip


def ranker_feature(source: str, kind: str, length: int | None = None, columns: dict = TYPED) -> Feature:
    side = Side.IMPRESSION if source.startswith("videos.") else Side.QUERY
    entry = FeatureConfig(name="mine", source=source, kind=Kind(kind), max_length=length, side=side)
    return default_ranking_features(columns, FeatureListConfig(extra=(entry,))).spec["mine"]


@pytest.mark.parametrize(
    ("source", "kind", "length", "message"),
    [
        ("users.tags", "categorical", None, "users.tags is a list: set max_length$"),
        ("request.tags", "categorical", None, "request.tags is a list: set max_length$"),
        ("videos.tags", "categorical", None, "videos.tags is a list: set max_length$"),
        ("watches.tags", "categorical", 5, "watches.tags is a list at each watch; expected one value"),
        ("videos.kind", "categorical", 4, "videos.kind is one value: leave max_length out"),
        ("users.plan", "continuous", None, "users.plan is text: set kind: categorical"),
        ("users.tags", "continuous", None, "users.tags is text"),
        ("videos.kind", "continuous", None, "videos.kind is text"),
        ("videos.scores", "continuous", None, "videos.scores is a list; expected one number"),
        ("users.born", "continuous", None, "users.born is of type timestamp.us.; expected numbers"),
        ("request.trail", "categorical", 3, "request.trail is of type list.*; expected one value or a list of values"),
    ],
)
def test_a_column_of_another_type_is_refused_when_the_features_are_listed(
    source: str, kind: str, length: int | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ranker_feature(source, kind, length)


@pytest.mark.parametrize(
    ("source", "kind", "length"),
    [
        ("users.plan", "categorical", 3),
        ("users.tags", "categorical", 3),
        ("users.fans", "categorical", None),
        ("users.nothing", "continuous", None),
        ("users.price", "continuous", None),
        ("users.fans", "continuous", None),
        ("users.scores", "continuous", None),  # the largest
        ("videos.hd", "continuous", None),
        ("videos.tags", "categorical", 2),
        ("request.tags", "categorical", 2),
        ("watches.page", "categorical", 7),
    ],
)
def test_a_column_of_a_fitting_type_is_taken(source: str, kind: str, length: int | None) -> None:
    assert ranker_feature(source, kind, length).max_length == length


def test_the_types_of_columns_are_read_off_the_tables(tmp_path: Path) -> None:
    (tmp_path / "users").mkdir()
    users = pa.table({"user_id": ["u"], "tags": pa.array([["x"]], pa.list_(pa.string()))})
    pq.write_table(users, tmp_path / "users" / "part-0.parquet")
    columns = columns_of(tmp_path)
    assert columns == {"users": {"user_id": pa.string(), "tags": TEXTS}}
    with pytest.raises(ConfigError, match="is a list: set max_length"):
        ranker_feature("users.tags", "categorical", None, columns)


@pytest.mark.parametrize("value", [True, 1, 1.5, "1", "true"])
def test_a_serving_value_keeps_its_type(value: bool | int | float | str) -> None:
    entry = {"name": "mine", "source": "request.page", "kind": "categorical", "serving_value": value}
    found = FeatureConfig.model_validate(entry).feature().serving_value
    assert found == value and type(found) is type(value)


def test_ids_are_counted_where_the_features_take_them_from() -> None:
    specs = {
        "candidate_generator": default_candidate_features(FULL).spec,
        "ranker": default_ranking_features(FULL).spec,
    }
    found = set(id_sources(specs))
    assert found == {
        IdSource("video", "watches", "video_id"),
        IdSource("clicked_video", "impressions", "video_id"),
        IdSource("search_token", "searches", "query"),
        IdSource("region", "users", "region"),
        IdSource("device", "watches", "device"),
        IdSource("device", "impressions", "device"),
        IdSource("page", "impressions", "page"),
        IdSource("language", "users", "language"),
        IdSource("language", "videos", "language"),
        IdSource("uploader", "videos", "uploader_id"),
        IdSource("topic", "videos", "topics"),
        IdSource("source", "impressions", "candidate_sources"),
    }
