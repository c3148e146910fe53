import subprocess
import sys

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from features.hashing import combine, hash_strings, mix, shares

WORDS = ["", "a", "12345678", "123456789", "ü ß 🎬", "a" * 40, "a" * 41]


def test_hashes_are_the_same_in_another_process() -> None:
    program = (
        "import pyarrow as pa; from features.hashing import hash_strings;"
        f"print(hash_strings(pa.array({WORDS!r}), 3).tolist())"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert other.strip() == str(hash_strings(pa.array(WORDS), 3).tolist())


@given(st.lists(st.text(max_size=30), max_size=20), st.integers(0, 5))
def test_a_hash_depends_on_the_bytes_alone_and_not_on_the_neighbours(words: list[str], start: int) -> None:
    whole = hash_strings(pa.array(words, pa.string()))
    assert whole.tolist() == [int(hash_strings(pa.array([word]))[0]) for word in words]
    assert hash_strings(pa.array(words, pa.string()).slice(start)).tolist() == whole[start:].tolist()
    chunks = pa.chunked_array([pa.array(words[:start], pa.string()), pa.array(words[start:], pa.string())])
    assert hash_strings(chunks).tolist() == whole.tolist()


def test_a_null_hashes_as_the_empty_string() -> None:
    found = hash_strings(pa.array([None, "", "x"]))
    assert found[0] == found[1] != found[2]


def test_words_that_differ_little_spread_evenly() -> None:
    words = pa.array([f"user-{i}" for i in range(40_000)])
    hashes = hash_strings(words)
    assert len(np.unique(hashes)) == len(words)
    for seed in range(3):
        share = (shares(combine(hashes, np.asarray(seed))) < 0.1).mean()
        assert abs(share - 0.1) < 4 * (0.1 * 0.9 / len(words)) ** 0.5
    counts = np.bincount((hashes % np.uint64(16)).astype(int))
    assert abs(counts - 2500).max() < 5 * 2500**0.5


def test_mix_is_a_bijection_on_a_sample() -> None:
    assert len(np.unique(mix(np.arange(1 << 16, dtype=np.uint64)))) == 1 << 16
