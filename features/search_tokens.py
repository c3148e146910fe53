"""Search tokens: queries as unigrams and bigrams (Covington et al. 2016, section 3.2).

The rule must give the same tokens in the Beam jobs and inside a TensorFlow graph, so it is one table from code point
to code point and nothing else depends on a library's idea of Unicode:

1. every code point of the query is replaced by the table's: a letter by its lower-case base letter (É, é and
   e + U+0301 all become e; İ becomes i; ß and ı stay; Σ becomes σ wherever it stands, ς stays), white space,
   punctuation and signs (+, $, ^) by a space; apostrophes, soft hyphens, combining accents (U+0300 to U+036F),
   variation selectors and invisible formatting are dropped; digits, other marks, joiners, emoji and all other code
   points stay;
2. the unigrams are the non-empty parts between spaces;
3. the bigrams are every two neighbouring unigrams joined by one space, listed after the unigrams.

The table is made from Python's frozen Unicode 3.2 database, so it is the same in every Python; case pairs and canonical
decompositions of assigned characters never change (Unicode stability policies). A code point assigned later, or beyond
the table's end at U+10450 (emoji are there), stays as it is. In a graph: `tf.strings.unicode_decode`, gather from
`code_point_table()`, drop `DROPPED`, `tf.strings.unicode_encode`, `tf.strings.split`, `tf.strings.ngrams`.
"""

import functools
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

DROPPED = -1
SPACE = 0x20

_TABLE_SIZE = 0x10450  # the basic plane and the last block with case, Deseret

_ACCENTS = range(0x0300, 0x0370)
_WITHIN_WORDS = frozenset({0x27, 0x2019, 0xAD})  # apostrophes, soft hyphen
_VARIATION_SELECTORS = range(0xFE00, 0xFE10)
_JOINERS = frozenset({0x200C, 0x200D})  # inside emoji and Indic words
_LETTERS_ADDED_SINCE = {0x1E9E: 0xDF}  # ẞ
_REPLACEMENT_CHARACTER = 0xFFFD  # what a decoder puts in place of bytes that are not UTF-8
_SEPARATORS = frozenset({"Zs", "Zl", "Zp", "Cc", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk"})


@functools.cache
def code_point_table() -> np.ndarray:
    """What each code point becomes: int32 `[66640]`; `DROPPED` removes it; code points beyond it stay."""
    table = np.array([_replacement(code) for code in range(_TABLE_SIZE)], np.int32)
    table.setflags(write=False)
    return table


def _replacement(code: int) -> int:
    category = unicodedata.ucd_3_2_0.category(chr(code))
    if code in _ACCENTS or code in _WITHIN_WORDS or code in _VARIATION_SELECTORS:
        return DROPPED
    if code in _LETTERS_ADDED_SINCE:
        return _LETTERS_ADDED_SINCE[code]
    if category in _SEPARATORS or code == _REPLACEMENT_CHARACTER:
        return SPACE
    if category == "Cf":
        return code if code in _JOINERS else DROPPED
    if category in {"Lu", "Ll", "Lt", "Lo"}:
        letter = unicodedata.normalize("NFD", chr(code))
        if all(ord(mark) in _ACCENTS for mark in letter[1:]):
            lower = letter[0].lower()
            return ord(lower) if len(lower) == 1 else code
    return code


def normalise_queries(queries: pa.Array) -> pa.Array:
    """Queries as their unigrams joined by single spaces: string `[n]` to string `[n]`; null becomes empty."""
    queries = pc.fill_null(_strings(queries), "")
    codes = np.frombuffer(_text(queries).encode("utf-32-le"), np.uint32).astype(np.int32)
    row = np.repeat(np.arange(len(queries)), pc.utf8_length(queries).to_numpy(zero_copy_only=False))
    table = code_point_table()
    inside = codes < len(table)
    codes[inside] = table[codes[inside]]
    kept = codes != DROPPED
    codes, row = codes[kept], row[kept]
    width = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    offsets = np.zeros(len(queries) + 1, np.int64)
    np.cumsum(np.bincount(row, weights=width, minlength=len(queries)).astype(np.int64), out=offsets[1:])
    data = codes.astype("<u4").tobytes().decode("utf-32-le").encode()
    replaced = pa.LargeStringArray.from_buffers(
        len(queries), pa.py_buffer(offsets), pa.py_buffer(data), null_count=0
    ).cast(pa.string())
    return pc.ascii_trim(pc.replace_substring_regex(replaced, " +", " "), " ")


def search_tokens(queries: pa.Array) -> pa.Array:
    """Unigrams, then bigrams, of every query, in the order of the query; repeats are kept.

    Args:
      queries: string `[n]`, nulls allowed.

    Returns:
      list<string> `[n]`; an empty list for a null query or one without any token.

    >>> search_tokens(pa.array(["Café  del Mar!", None])).to_pylist()
    [['cafe', 'del', 'mar', 'cafe del', 'del mar'], []]
    """
    words = pc.split_pattern(normalise_queries(queries), " ")
    unigrams, row = pc.list_flatten(words), pc.list_parent_indices(words).to_numpy()
    present = pc.not_equal(unigrams, "").to_numpy(zero_copy_only=False)
    unigrams, row = unigrams.filter(pa.array(present)), row[present]
    pairs = np.flatnonzero(row[:-1] == row[1:])
    bigrams = pc.binary_join_element_wise(unigrams.take(pa.array(pairs)), unigrams.take(pa.array(pairs + 1)), " ")
    rows = np.concatenate([row, row[pairs]])
    order = np.argsort(rows, kind="stable")
    tokens = pa.concat_arrays([unigrams, bigrams]).take(pa.array(order))
    offsets = np.zeros(len(queries) + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=len(queries)), out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), tokens)


def _strings(queries: pa.Array) -> pa.Array:
    if isinstance(queries, pa.ChunkedArray):
        queries = queries.combine_chunks()
    return queries.cast(pa.string())


def _text(queries: pa.Array) -> str:
    """All strings of an array without nulls, one after the other."""
    offsets = np.frombuffer(queries.buffers()[1], np.int32)[queries.offset : queries.offset + len(queries) + 1]
    if len(queries) == 0 or offsets[0] == offsets[-1]:
        return ""
    return bytes(memoryview(queries.buffers()[2])[offsets[0] : offsets[-1]]).decode()
