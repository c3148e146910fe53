"""What a raw value says becomes exactly that, or is marked; nothing is rounded, guessed or left to a crash."""

import uuid
from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pytest

from features.tables import TIMESTAMP
from pipeline.sources.conversion import convert, plain

MOST, LEAST = 2**63 - 1, -(2**63)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1234567890123456789", "+0001234567890123456789"], [1234567890123456789] * 2),
        ([str(MOST), str(LEAST), f" {MOST} "], [MOST, LEAST, MOST]),
        ([str(MOST + 1), str(LEAST - 1), "9" * 25, "1" + "0" * 19], [None] * 4),
        (["1234567890123456789.000", "12.0", "-3."], [1234567890123456789, 12, -3]),
        (["9007199254740993.5", "9007199254740993e0", "1e18", "12.5"], [None] * 4),  # rounded as floats
        (
            pa.array([Decimal("1234567890123456789.00"), Decimal(MOST), None, Decimal(LEAST)], pa.decimal128(38, 2)),
            None,
        ),
        (pa.array([Decimal(MOST + 1), Decimal("0.5")], pa.decimal128(38, 2)), [None] * 2),
        (pa.array([Decimal(MOST), Decimal(10**60)], pa.decimal256(76, 0)), [MOST, None]),
        (pa.array([Decimal(45_000)], pa.decimal128(5, -3)), [45_000]),
        (pa.array([Decimal("45.00")], getattr(pa, "decimal32", pa.decimal128)(4, 2)), [45]),
        (pa.array([1234567890123456789, MOST, None], pa.uint64()), [1234567890123456789, MOST, None]),
        (pa.array([MOST + 1, 2**64 - 1], pa.uint64()), [None] * 2),
        (pa.array([2**32 - 1], pa.uint32()), [2**32 - 1]),
    ],
)
def test_whole_numbers_are_exact_or_marked(values, expected):
    raw = values if isinstance(values, pa.Array) else pa.array(values, pa.string())
    if expected is None:
        expected = [None if value is None else int(value) for value in raw.to_pylist()]
    integers, bad = convert(raw, pa.int64())
    assert integers.to_pylist() == expected
    assert bad.tolist() == [i is None and v.is_valid for i, v in zip(expected, raw, strict=True)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([Decimal("45"), Decimal("0"), Decimal("-7"), None], pa.decimal128(38, 10)), ["45", "0", "-7", None]),
        (pa.array([Decimal("45.5")], pa.decimal128(38, 10)), ["45.5"]),
        (pa.array([Decimal(45_000)], pa.decimal128(5, -3)), ["45000"]),
        (pa.array([Decimal(10**30)], pa.decimal256(60, 20)), ["1" + "0" * 30]),
        (pa.array([Decimal("450")], pa.decimal128(10, 0)), ["450"]),
    ],
)
def test_decimal_ids_are_the_numbers_they_were(values, expected):
    ids, bad = convert(values, pa.string())
    assert ids.to_pylist() == expected
    assert not bad.any()


def microseconds(values, unit=None) -> list[int | None]:
    times, bad = convert(values, TIMESTAMP, unit)
    known = times.cast(pa.int64()).to_pylist()
    assert bad.tolist() == [time is None for time in known]
    return known


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint64(), pa.decimal128(19, 0), pa.decimal128(38, 6), pa.string()])
def test_nanoseconds_are_the_same_moment_in_every_type(kind):
    # As floats they would be rounded to 256 ns, and these to the microsecond before or after.
    nanoseconds = [1714564800500000999, 1714564800500001000, 1714564800499999999]
    raw = pa.array(list(map(str, nanoseconds))) if kind == pa.string() else pa.array(nanoseconds).cast(kind)
    assert microseconds(raw, "ns") == [1714564800500000, 1714564800500001, 1714564800499999]


def test_times_that_64_bits_do_not_hold_are_bad_in_every_type():
    assert microseconds(pa.array([2**64 - 1, 2**63], pa.uint64()), "ns") == [None, None]
    assert microseconds(pa.array([2**63], pa.uint64()), "us") == [None]


def test_decimal_seconds_keep_their_fraction():
    raw = pa.array([Decimal("1714564800.5"), Decimal("1714564800")], pa.decimal128(20, 6))
    assert microseconds(raw) == [1714564800500000, 1714564800000000]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2023-11-14 22:18:48.123+00", datetime(2023, 11, 14, 22, 18, 48, 123000, UTC)),  # as PostgreSQL writes it
        ("2023-11-14 22:18:48+05", datetime(2023, 11, 14, 17, 18, 48, 0, UTC)),
        ("2023-11-14 22:18:48-0530", datetime(2023, 11, 15, 3, 48, 48, 0, UTC)),
        ("2023-11-14t22:18:48z", datetime(2023, 11, 14, 22, 18, 48, 0, UTC)),
        ("2023-11-14 22:18:48 utc", datetime(2023, 11, 14, 22, 18, 48, 0, UTC)),
        ("2023-11-14T22:18:48.123456789012Z", datetime(2023, 11, 14, 22, 18, 48, 123456, UTC)),
    ],
)
def test_iso_times_are_read_as_databases_write_them(text, moment):
    times, bad = convert(pa.array([text]), TIMESTAMP)
    assert times.to_pylist() == [moment]
    assert not bad.any()


@pytest.mark.parametrize("text", ["2023-11-14 22:18:48+5", "2023-11-14 22:18:48+24", "2023-11-14 22:18:48+05:6"])
def test_offsets_that_are_none_are_marked(text):
    times, bad = convert(pa.array([text]), TIMESTAMP)
    assert (times.to_pylist(), bad.tolist()) == ([None], [True])


IDS = [uuid.UUID(int=number * 0x0123456789ABCDEF0123) for number in range(5)]


def test_uuids_become_hyphenated_lower_case_text():
    raw = pa.array([None if n == 2 else value.bytes for n, value in enumerate(IDS)], pa.uuid())
    expected = [None if n == 2 else str(value) for n, value in enumerate(IDS)]
    for column in (raw, pa.chunked_array([raw[:1], raw[1:]]), pa.concat_arrays([raw[3:], raw])[2:]):
        text, bad = plain(column)
        assert (text.type, text.to_pylist(), bad.any()) == (pa.string(), expected, False)
    assert plain(raw[1:4])[0].to_pylist() == expected[1:4]
    assert plain(raw[:0])[0].to_pylist() == []
    lists, bad = convert(pa.ListArray.from_arrays(pa.array([0, 2, 5], pa.int32()), raw), pa.list_(pa.string()))
    assert (lists.to_pylist(), bad.any()) == ([expected[:2], expected[2:]], False)


class Wrapped(pa.ExtensionType):
    def __init__(self) -> None:
        super().__init__(pa.int16(), "test.wrapped")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        return cls()


def test_other_extension_types_are_what_they_store():
    values, bad = plain(pa.ExtensionArray.from_storage(Wrapped(), pa.array([7, None], pa.int16())))
    assert (values.type, values.to_pylist(), bad.any()) == (pa.int16(), [7, None], False)


@pytest.mark.parametrize("kind", [pa.binary(16), pa.binary(), pa.large_binary(), pa.binary_view()])
def test_bytes_are_text_where_they_are_utf8_and_marked_where_not(kind):
    text, bad = plain(pa.array([b"0123456789abcdef", b"\xff" * 16, None], pa.binary(16)).cast(pa.binary()).cast(kind))
    assert (text.to_pylist()[::2], bad.tolist()) == (["0123456789abcdef", None], [False, True, False])
