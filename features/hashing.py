"""Hashes of strings and integers that are the same in every process, run and machine.

They pick shards, split users and choose examples, so they must never change with the interpreter's hash seed.
"""

import numpy as np
import pyarrow as pa

_PRIME = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def hash_strings(strings: pa.Array | pa.ChunkedArray, seed: int = 0) -> np.ndarray:
    """uint64 `[n]` hashes of the UTF-8 bytes of `strings` `[n]`; a null hashes as the empty string.

    Eight bytes of all strings are mixed in at a time, so the cost grows with the longest string, not with `n` steps.
    """
    if isinstance(strings, pa.ChunkedArray):
        strings = strings.combine_chunks()
    strings = strings.cast(pa.large_string())
    _, offset_buffer, data_buffer = strings.buffers()
    n = len(strings)
    if n == 0:
        return np.zeros(0, np.uint64)
    offsets = np.frombuffer(offset_buffer, np.int64)[strings.offset : strings.offset + n + 1]
    data = b"" if data_buffer is None else bytes(memoryview(data_buffer)[offsets[0] : offsets[-1]])
    words = np.ndarray((len(data) + 1,), "<u8", data + bytes(8), strides=(1,))
    lengths = np.diff(offsets)
    offsets = offsets - offsets[0]
    if strings.null_count:
        lengths = np.where(strings.is_null().to_numpy(zero_copy_only=False), 0, lengths)
    hashes = mix(lengths.astype(np.uint64) + np.uint64(seed * int(_PRIME) % 2**64))
    rows = np.flatnonzero(lengths > 0)
    step = 0
    while len(rows):
        left = lengths[rows] - step
        word = words[offsets[rows] + step]
        bits = np.minimum(left, 8).astype(np.uint64) * np.uint64(8)
        word &= np.uint64(0xFFFFFFFFFFFFFFFF) >> (np.uint64(64) - bits)
        hashes[rows] = mix(hashes[rows] ^ mix(word))
        rows = rows[left > 8]
        step += 8
    return hashes


def combine(hashes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """uint64 hashes of pairs: of `hashes` uint64 and of integer `values`, broadcast together."""
    return mix(hashes ^ mix(values.astype(np.uint64)))


def mix(values: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that spreads every bit (the finaliser of SplitMix64; Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * _MIX_1
        values = (values ^ (values >> np.uint64(27))) * _MIX_2
        return (values ^ (values >> np.uint64(31))) + _PRIME


def shares(hashes: np.ndarray) -> np.ndarray:
    """float64 in [0, 1): where each hash lies in its range."""
    return (hashes >> np.uint64(11)) * 2.0**-53
