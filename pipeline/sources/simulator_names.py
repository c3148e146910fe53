"""Names of topics, uploaders and series, and the words people search for."""

import numpy as np

# topic: the words its queries and titles are made of
TOPICS: dict[str, tuple[str, ...]] = {
    "jazz": ("jazz", "saxophone", "improvisation", "quartet"),
    "cooking": ("recipe", "kitchen", "dinner", "baking"),
    "football": ("football", "goals", "league", "highlights"),
    "astronomy": ("galaxy", "telescope", "planets", "stars"),
    "gardening": ("garden", "tomatoes", "pruning", "seeds"),
    "chess": ("chess", "opening", "endgame", "gambit"),
    "cats": ("cats", "kitten", "purring", "whiskers"),
    "history": ("history", "empire", "castle", "ancient"),
    "woodworking": ("wood", "joinery", "plane", "workshop"),
    "travel": ("travel", "backpacking", "city", "train"),
    "fitness": ("workout", "stretching", "strength", "running"),
    "news": ("news", "election", "economy", "report"),
    "comedy": ("comedy", "sketch", "standup", "jokes"),
    "electronics": ("circuit", "soldering", "arduino", "repair"),
    "painting": ("painting", "watercolour", "portrait", "brush"),
    "mathematics": ("mathematics", "proof", "geometry", "primes"),
    "cars": ("cars", "engine", "restoration", "racing"),
    "fashion": ("fashion", "outfit", "vintage", "sewing"),
    "speedrun": ("speedrun", "glitch", "record", "console"),
    "birds": ("birds", "owl", "nesting", "migration"),
    "cycling": ("cycling", "bike", "climb", "gravel"),
    "opera": ("opera", "aria", "soprano", "orchestra"),
    "biology": ("biology", "cells", "evolution", "microscope"),
    "film": ("film", "trailer", "director", "scene"),
}

_ADJECTIVES = [
    "Amber",
    "Brave",
    "Calm",
    "Daring",
    "Early",
    "Faint",
    "Gentle",
    "Hidden",
    "Iron",
    "Jolly",
    "Keen",
    "Lucky",
    "Misty",
    "Noble",
    "Open",
    "Proud",
    "Quiet",
    "Rapid",
    "Silver",
    "Tall",
    "Urban",
    "Vivid",
    "Wild",
    "Young",
    "Zesty",
]
_NOUNS = [
    "Anchor",
    "Bridge",
    "Comet",
    "Dune",
    "Ember",
    "Forest",
    "Garden",
    "Harbour",
    "Island",
    "Junction",
    "Kite",
    "Lantern",
    "Meadow",
    "North",
    "Orchard",
    "Pine",
    "Quarry",
    "River",
    "Studio",
    "Tower",
    "Union",
    "Valley",
    "Window",
    "Yard",
    "Zenith",
]


def topic_names(count: int) -> list[str]:
    """`count` distinct topic names; past the list they are numbered."""
    names = list(TOPICS)
    return [names[i % len(names)] + (f" {i // len(names) + 1}" if i >= len(names) else "") for i in range(count)]


def topic_words(count: int) -> list[tuple[str, ...]]:
    """The four words of each topic; past the list they carry the topic's number."""
    words = list(TOPICS.values())
    return [
        tuple(word + (str(i // len(words) + 1) if i >= len(words) else "") for word in words[i % len(words)])
        for i in range(count)
    ]


def _pairs(count: int, offset: int) -> list[str]:
    names = []
    for i in range(count):
        round_, adjective = divmod(i, len(_ADJECTIVES))
        noun = _NOUNS[(round_ + adjective + offset) % len(_NOUNS)]
        number = round_ // len(_NOUNS) + 1
        names.append(f"{_ADJECTIVES[adjective]} {noun}" + (f" {number}" if number > 1 else ""))
    return names


def uploader_names(count: int) -> list[str]:
    """`count` distinct two-word names."""
    return _pairs(count, 0)


def series_names(count: int) -> list[str]:
    """`count` distinct series titles."""
    return [f"Tales of {name}" for name in _pairs(count, 7)]


def topic_queries(words: tuple[str, ...]) -> list[str]:
    """The queries people type for one topic."""
    return [words[0], f"{words[0]} {words[1]}", f"best {words[2]}", f"{words[3]} {words[1]}"]


def video_titles(
    topic: np.ndarray, uploader: np.ndarray, series: np.ndarray, episode: np.ndarray, topics: int
) -> list[str]:
    """A readable title for every video: "Tales of Amber Anchor, episode 3" or "Jazz saxophone 17 by Calm Comet".

    Args:
      topic, uploader, series, episode: int `[videos]`; series -1 where the video is not an episode.
      topics: number of topics.
    """
    words = topic_words(topics)
    names = uploader_names(int(uploader.max()) + 1)
    shows = series_names(int(series.max()) + 1) if series.max() >= 0 else []
    return [
        f"{shows[s]}, episode {e}" if s >= 0 else f"{words[t][0].capitalize()} {words[t][1 + i % 3]} {i} by {names[u]}"
        for i, (t, u, s, e) in enumerate(
            zip(topic.tolist(), uploader.tolist(), series.tolist(), episode.tolist(), strict=True)
        )
    ]
