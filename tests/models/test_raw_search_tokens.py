"""The graph's tokens against the golden file and against the Beam job's on wild strings."""

import json
from pathlib import Path

import pyarrow as pa
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from features.search_tokens import search_tokens as beam_search_tokens
from models.raw_search_tokens import search_tokens

GOLDEN = json.loads((Path(__file__).parents[1] / "features/golden/search_tokens.json").read_text())

compiled = tf.function(search_tokens, input_signature=[tf.TensorSpec([None], tf.string)])


def tokens(queries: list[str]) -> list[list[str]]:
    return [[token.decode() for token in row] for row in compiled(tf.constant(queries, tf.string)).to_list()]


def test_golden_file():
    assert tokens([entry["query"] for entry in GOLDEN]) == [entry["tokens"] for entry in GOLDEN]


@settings(max_examples=200)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1, max_size=5))
def test_any_text_gives_the_tokens_of_the_beam_job(queries):
    assert tokens(queries) == beam_search_tokens(pa.array(queries)).to_pylist()


def test_every_code_point_gives_the_tokens_of_the_beam_job():
    queries = ["a" + chr(code) + "b" for code in range(0x20000) if not 0xD800 <= code < 0xE000]
    assert tokens(queries) == beam_search_tokens(pa.array(queries)).to_pylist()


def test_no_queries():
    assert tokens([]) == []


def test_bytes_that_are_not_utf8_separate_words():
    assert compiled(tf.constant([b"caf\xff\xfe del"])).to_list() == [[b"caf", b"del", b"caf del"]]
