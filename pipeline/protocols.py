"""Label protocols of the papers, by name: who is trained on, which watches are labels, which are judged.

`protocol: NAME` in a configuration puts these settings in the place of the defaults; settings that the configuration
gives itself win. Weights w_l of labels are 1 in all of them (the papers leave them open): a user counts by the number
of labels, which the protocols bound.

| name | source |
| --- | --- |
| latent_cross_production | Beutel et al. 2018, sections 5.4 and 7.2.1 |
| latent_cross_comparative | Beutel et al. 2018, section 7.1.1 |
| m3_youtube | Tang et al. 2019, section 5.2 |
| m3_movielens | Tang et al. 2019, section 5.1 |
| m3_movielens_s, _m, _l, _xl | Tang et al. 2019, section 5.1.2, table 3 |
"""

import difflib
from collections.abc import Mapping
from typing import Any

_BY_USERS = {"test_days": None, "test_user_share": 0.1, "validation_user_share": 0.1}


def _movielens(least: int, most: int | None, window: int) -> dict[str, Any]:
    """Users 80/10/10, one target: the last watch. Sequences of `window` watches.

    Videos are those that the training users watched 20 times or more, with the validation users where `split.refit`;
    the paper counts the ratings of all users.
    """
    return {
        "split": _BY_USERS,
        "analysis": {"vocabularies": {"video": {"min_count": 20}}},
        "features": {"watch_window": window},
        "candidate_examples": {
            "evaluation_labels_per_user": 1,
            "evaluation_choice": "last",
            "evaluation_min_watches": least,
        },
        "sequence_examples": {
            "labels_per_user": None,
            "min_watches": least,
            "max_watches": most,
            "stride": window,
        },
    }


PROTOCOLS: Mapping[str, Mapping[str, Any]] = {
    # The 100 most recent watches inside (t0 - 7 days, t0]; users 90/10; tested after t0 + 4 h; vocabulary before t0.
    # Of these seven days the last one before t0 is validation. Its labels, at most 16 drawn of a user, join the others
    # in the refit, so that the final model has those of seven days and of a user up to 116.
    "latent_cross_production": {
        "split": {"test_days": 2, "gap_hours": 4, "test_user_share": 0.1},
        "features": {"watch_window": 100},
        "sequence_examples": {"labels_per_user": 100, "label_days": 7, "first_watch": True},
    },
    # Users with 50 watches or more; all but the first watch supervised; the last five predicted.
    "latent_cross_comparative": {
        "split": _BY_USERS,
        "features": {"watch_window": 100},
        "candidate_examples": {
            "evaluation_labels_per_user": 5,
            "evaluation_choice": "last",
            "evaluation_min_watches": 50,
        },
        "sequence_examples": {"labels_per_user": None, "min_watches": 50, "stride": 100},
    },
    # delta_min 150, delta_max 300; labels of the seven days before t0; tested on the last two; users 90/10.
    "m3_youtube": {
        "split": {"test_days": 2, "gap_hours": 0, "test_user_share": 0.1},
        "features": {"watch_window": 300},
        "candidate_examples": {"evaluation_min_watches": 150},
        "sequence_examples": {
            "labels_per_user": None,
            "label_days": 7,
            "min_watches": 150,
            "max_watches": 300,
            "stride": 300,
        },
    },
    "m3_movielens": _movielens(20, None, 300),
    "m3_movielens_s": _movielens(20, 50, 20),
    "m3_movielens_m": _movielens(50, 150, 50),
    "m3_movielens_l": _movielens(150, 300, 150),
    "m3_movielens_xl": _movielens(300, None, 300),
}
"""Name -> settings of a run."""


def with_protocol(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run with those of its protocol below them.

    Raises:
      ValueError: there is no such protocol.
    """
    name = settings.get("protocol")
    if name is None:
        return dict(settings)
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(str(name), PROTOCOLS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(PROTOCOLS)}"
        raise ValueError(f"protocol: no protocol {name!r}; {hint}")
    return _merged(PROTOCOLS[name], settings)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        known = merged.get(key)
        merged[key] = _merged(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return merged
