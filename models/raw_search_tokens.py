"""Search tokens inside a TensorFlow graph: the twin of `features/search_tokens.py`, from TensorFlow's core operations.

Both sides replace code points by the same table, so they agree on every string; the golden file of the tests holds
what they must agree on.
"""

import tensorflow as tf

from features.search_tokens import code_point_table


def search_tokens(queries: tf.Tensor) -> tf.RaggedTensor:
    """Unigrams, then bigrams, of every query, in the order of the query; repeats are kept.

    Args:
      queries: string `[n]`, UTF-8. Bytes that are not UTF-8 separate words.

    Returns:
      Ragged string `[n, (tokens)]`; a query without any token has none.
    """
    table = tf.constant(code_point_table())
    codes = tf.strings.unicode_decode(queries, "UTF-8")
    inside = codes.flat_values < tf.size(table)
    replaced = tf.gather(table, tf.where(inside, codes.flat_values, 0))
    replaced = tf.where(inside, replaced, codes.flat_values)
    # DROPPED is no code point, so the encoding leaves it out; a ragged mask would cost fifty operations.
    codes = codes.with_flat_values(replaced)
    unigrams = tf.strings.split(tf.strings.unicode_encode(codes, "UTF-8", errors="ignore"))
    # Of every query first the n-grams of the first width, then those of the second.
    return tf.strings.ngrams(unigrams, (1, 2), separator=" ")
