"""Configuration of the embedded simulator: its scale, and one switch per effect."""

from datetime import UTC, datetime
from typing import Literal

from pydantic import AwareDatetime, Field, model_validator

from features.settings import Settings


def _switch(description: str, maximum: float | None = None) -> float:
    """A strength: 1 is the plausible default, 0 takes the effect out of the data."""
    return Field(default=1.0, ge=0.0, le=maximum, description=description)


class SimulatorConfig(Settings):
    """What the generated platform is made of.

    Scale first, then the switches: 1 is the plausible strength the behaviour was written for, 0 removes the effect
    (and with it whatever a model could gain from it). Switches that are shares of behaviour go from 0 to 1; the
    others may be raised above 1. The last two, `reversal` and `replays`, are off by default: they stand for what some
    platforms have and most have not.
    """

    kind: Literal["simulator"] = "simulator"
    seed: int = Field(default=1, ge=0, description="seed of everything that is drawn")
    start: AwareDatetime = Field(
        default=datetime(2025, 1, 6, tzinfo=UTC), description="first moment of the window (UTC)"
    )
    days: int = Field(default=28, ge=1, description="length of the window in days")
    users: int = Field(default=4_000, ge=1)
    videos: int = Field(default=3_000, ge=1)
    uploaders: int = Field(default=300, ge=1)
    topics: int = Field(default=24, ge=1)
    steps_per_user: float = Field(
        default=36.0,
        gt=0,
        description="mean number of visits to a page, searches and direct watches per user in the window",
    )
    device_models: int = Field(
        default=1, ge=1, description="models of each kind of device; each acts on taste in its own way"
    )
    main_device: float = Field(
        default=0.6, ge=0, le=1, description="share of a user's sessions on one device; the others are on any"
    )
    slots: int = Field(default=8, ge=1, description="videos shown on one page")
    back_catalogue: float = Field(default=0.6, ge=0, le=1, description="share of the videos uploaded before the window")
    popularity_bin_hours: float = Field(
        default=6.0,
        gt=0,
        description="how often popularity is renewed; an upload becomes watchable at the next renewal",
    )

    long_term_taste: float = _switch("spread of the users' stable tastes over topics")
    short_term_taste: float = _switch("pull of the topic a user is currently into; it changes between sessions")
    demographics: float = _switch("how much region, gender and age tell of taste")
    context: float = _switch("page and device multiply the user's taste (Beutel et al. 2018)")
    time_of_day: float = _switch("activity and topics follow the hour (UTC)")
    series: float = _switch("episodes are watched in order, and rarely out of it", 1.0)
    searches: float = _switch("share of watches that a search precedes", 1.0)
    external: float = _switch("share of watches from outside recommendations and search", 1.0)
    freshness: float = _switch("popularity rises after upload and decays with age")
    clickbait: float = _switch("some videos are clicked much and watched little")
    churn: float = _switch("a video shown before and ignored is clicked less")
    position: float = _switch("lower places on a page are looked at less")
    loyalty: float = _switch("users return to their favourite uploaders", 1.0)
    related: float = _switch("watch-next pages show videos related to the one just watched", 1.0)
    language: float = _switch("users prefer videos in their own language")
    durations: float = _switch("spread of the videos' durations; 0: all last seven minutes")
    duration_fit: float = _switch("devices have preferred durations; a wrong one weakens choice and completion")
    rewatch: float = _switch("a recently watched video is chosen less")
    heavy_users: float = _switch("a few users are very active (share 1% at strength 1)", 20.0)
    reversal: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="mean share of the topics whose liking, and pull for the moment, a device turns around; off by "
        "default",
    )
    replays: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of watches from outside that return, within a session, to the first video that the user "
        "completed of the uploader just watched, where that was another one; off by default",
    )

    @model_validator(mode="after")
    def _check_scale(self) -> "SimulatorConfig":
        if not self.topics <= self.uploaders <= self.videos:
            raise ValueError(
                f"expected topics <= uploaders <= videos, found {self.topics}, {self.uploaders}, {self.videos}: "
                "every topic needs an uploader and every uploader a video"
            )
        return self
