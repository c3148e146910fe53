import hashlib
import itertools
import json
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.search_tokens import DROPPED, SPACE, code_point_table, normalise_queries, search_tokens

GOLDEN = Path(__file__).parent / "golden" / "search_tokens.json"


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text()), ids=lambda case: ascii(case["query"])[:40])
def test_golden_queries(case):
    assert search_tokens(pa.array([case["query"]])).to_pylist() == [case["tokens"]]


def test_the_table_is_the_same_in_every_python():
    digest = hashlib.sha256(code_point_table().astype("<i4").tobytes()).hexdigest()
    assert digest == "d0a8643e77c70290f51e7f87b85579617aa04cd83b46ea4b5f64b844d0e50710"


def test_applying_the_table_twice_changes_nothing():
    table = code_point_table()
    kept = table[table != DROPPED]
    np.testing.assert_array_equal(table[kept], kept)


def test_composed_and_decomposed_accents_give_equal_tokens():
    for word in ["Crème Brûlée", "Ångström", "Ελλάδα", "Йод", "İstanbul", "Tiếng Việt"]:
        composed, decomposed = (unicodedata.normalize(form, word) for form in ("NFC", "NFD"))
        one, two = search_tokens(pa.array([composed, decomposed])).to_pylist()
        assert one == two


def one_query_at_a_time(query: str | None) -> list[str]:
    """The rule of the module's text, a code point at a time."""
    table = code_point_table()
    codes = [int(table[ord(c)]) if ord(c) < len(table) else ord(c) for c in query or ""]
    words = [word for word in "".join(chr(c) for c in codes if c != DROPPED).split(chr(SPACE)) if word]
    return words + [f"{a} {b}" for a, b in itertools.pairwise(words)]


QUERIES = st.lists(
    st.none() | st.text(st.characters(codec="utf-8") | st.sampled_from("aB É́'\u2019-\u200d🙂 "), max_size=12)
)


@given(QUERIES, st.integers(0, 3))
def test_vectorised_equals_one_query_at_a_time(queries, start):
    array = pa.array(queries, pa.string()).slice(start)
    tokens = search_tokens(array)
    assert tokens.type == pa.list_(pa.string())
    assert tokens.to_pylist() == [one_query_at_a_time(query) for query in queries[start:]]


@given(QUERIES)
def test_normalising_is_idempotent(queries):
    once = normalise_queries(pa.array(queries, pa.string()))
    assert normalise_queries(once).equals(once)


def test_chunked_and_dictionary_arrays_are_accepted():
    chunked = pa.chunked_array([["Big Cat"], [None, "dog"]])
    expected = [["big", "cat", "big cat"], [], ["dog"]]
    assert search_tokens(chunked).to_pylist() == expected
    assert search_tokens(chunked.dictionary_encode().combine_chunks()).to_pylist() == expected
