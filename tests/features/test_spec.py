"""One specification file describes every input of every model."""

from pathlib import Path

import pyarrow as pa
import pytest

from features.errors import ConfigError
from features.spec import Feature, FeatureSpec, Kind, Normaliser, Side, read_specs, write_specs

WATCHED = Feature("watched", Kind.CATEGORICAL, Side.QUERY, "history.watched_video_ids", id_space="video", max_length=50)
PAGE = Feature("page", Kind.CATEGORICAL, Side.QUERY, "request.page", id_space="page")
AGE = Feature("video_age", Kind.CONTINUOUS, Side.IMPRESSION, "history.video_age_s", normaliser=Normaliser.QUANTILE)
SPEC = FeatureSpec((WATCHED, PAGE, AGE))


def test_specs_survive_the_file(tmp_path: Path) -> None:
    write_specs(tmp_path / "spec.json", {"ranker": SPEC})
    assert read_specs(tmp_path / "spec.json") == {"ranker": SPEC}


def test_record_schema_follows_from_the_spec() -> None:
    assert SPEC.arrow_schema == pa.schema(
        [("watched", pa.list_(pa.int32())), ("page", pa.int32()), ("video_age", pa.float32())]
    )


def test_features_are_found_by_side_kind_and_name() -> None:
    assert SPEC.side(Side.IMPRESSION) == (AGE,)
    assert SPEC.kind(Kind.CATEGORICAL) == (WATCHED, PAGE)
    assert SPEC["page"] is PAGE and "page" in SPEC and "other" not in SPEC
    assert SPEC.id_spaces == ("page", "video")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": Kind.CATEGORICAL, "source": "users.x"}, "needs an id_space"),
        ({"kind": Kind.CONTINUOUS, "source": "users.x"}, "has a normaliser"),
        (
            {"kind": Kind.CONTINUOUS, "source": "users.x", "normaliser": Normaliser.SCALE, "max_length": 3},
            "is one number",
        ),
        (
            {"kind": Kind.CONTINUOUS, "source": "users.x", "normaliser": Normaliser.SCALE, "low": 2.5, "high": 2.5},
            "expected low below high, .* found 2.5 and 2.5",
        ),
        (
            {"kind": Kind.CONTINUOUS, "source": "users.x", "normaliser": Normaliser.QUANTILE, "serving_value": "two"},
            "expected a number as serving_value, found 'two'",
        ),
        ({"kind": Kind.CATEGORICAL, "source": "elsewhere.x", "id_space": "x"}, "is not users.X"),
        ({"kind": Kind.CATEGORICAL, "source": "watches.page", "id_space": "page"}, "one value for each watch"),
    ],
)
def test_impossible_features_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Feature(name="f", side=Side.QUERY, **arguments)


def sent(name: str, source: str, kind: str = "categorical", **more: object) -> Feature:
    space = name if kind == "categorical" else None
    normaliser = None if space else Normaliser.QUANTILE
    return Feature(name, Kind(kind), more.pop("side", Side.QUERY), source, space, normaliser=normaliser, **more)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            sent("age", "users.age", "continuous"),
            sent("age_id", "users.age"),
            r"'age' \(users.age, continuous\) and 'age_id' \(users.age, categorical\) would be one raw input 'age'",
        ),
        (sent("plan", "users.plan"), sent("request_plan", "request.plan"), "would be one raw input 'plan'"),
        (
            sent("page", "request.page"),
            sent("pages", "request.page", side=Side.IMPRESSION),
            r"'pages' \(request.page, categorical, of each candidate\) would be one raw input 'page'",
        ),
        (sent("tags", "users.tags"), sent("tag", "users.tags", max_length=3), r"users.tags, a list, categorical\)"),
        (sent("by", "watches.by", max_length=3), sent("b", "users.watched_by", max_length=3), "'watched_by'"),
        (sent("l", "users.language"), sent("m", "request.user_language"), "raw input 'user_language'"),
        (sent("p", "users.plan"), sent("q", "users.Plan"), r"\(users.plan, .* \(users.Plan, .* one raw input 'Plan'"),
        (PAGE, sent("shown", "users.shown_video_ids"), "'shown': users.shown_video_ids .* 'shown_video_ids', .* taken"),
    ],
)
def test_one_raw_input_for_two_things_is_refused(first: Feature, second: Feature, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FeatureSpec((first, second))


def test_features_may_share_a_raw_input_of_one_form() -> None:
    spec = FeatureSpec(
        (
            sent("short", "users.tags", max_length=2),
            sent("long", "users.tags", max_length=9),
            sent("tags_of_user", "users.tags", max_length=9, side=Side.IMPRESSION),
            sent("position", "request.position", "continuous", side=Side.IMPRESSION, serving_value=0.0),
            sent("users_position", "users.position", "continuous"),  # the request's is fixed, and no input
            sent("language", "request.language"),
            sent("user_language", "users.language"),
            sent("video_language", "videos.language", side=Side.IMPRESSION),
        )
    )
    inputs = [feature.column_input for feature in spec.features]
    assert inputs == ["tags", "tags", "tags", None, "position", "language", "user_language", None]


@pytest.mark.parametrize("column", ["signup channel", "2nd", "a.b", "class", "Größe", "self", "_x", ""])
@pytest.mark.parametrize("room", ["users", "request"])
def test_a_column_whose_name_no_exported_model_could_take_is_refused(room: str, column: str) -> None:
    message = f"^feature 'f': {room}.{column} would be the raw input {column!r}; expected .* by `columns` of the source"
    with pytest.raises(ConfigError, match=message):
        FeatureSpec((sent("f", f"{room}.{column}"),))


def test_columns_that_are_no_inputs_by_their_own_name_may_have_any() -> None:
    spec = FeatureSpec(
        (
            sent("size", "videos.Größe", side=Side.IMPRESSION),
            sent("fixed", "request.2nd", serving_value=0),
            sent("watched_class", "watches.class", max_length=3),
            sent("plan_1", "users.plan_1"),
        )
    )
    assert [feature.column_input for feature in spec.features] == [None, None, "watched_class", "plan_1"]


def test_a_name_used_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="more than once: page"):
        FeatureSpec((PAGE, PAGE))
