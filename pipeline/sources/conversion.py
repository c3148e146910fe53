"""Raw Arrow columns to canonical types, vectorised: what cannot be converted is marked, never guessed."""

from collections.abc import Callable
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.tables import TIMESTAMP
from pipeline.sources.source import Unit

Converted = tuple[pa.Array, np.ndarray]  # canonical values (null where bad or missing), mask of values that are bad

_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?$"
_INTEGER = r"^[+-]?0*\d{1,19}$"
_MISSING_WORDS = pa.array(["", "nan", "null", "none"])
_TRUE_WORDS = pa.array(["true", "1", "1.0", "t", "yes", "y"])
_FALSE_WORDS = pa.array(["false", "0", "0.0", "f", "no", "n"])
_ISO = (
    r"^(?P<year>\d{4})-(?P<month>\d{2})-(?P<day>\d{2})"
    r"(?:[Tt ](?P<hour>\d{2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d+))?)?"
    r" ?(?P<zone>[Zz]|UTC|utc|[+-]\d{2}(?::?\d{2})?)?)?$"
)
_US = {"s": 1_000_000, "ms": 1_000, "us": 1}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def convert(values: pa.Array, target: pa.DataType, unit: Unit | None = None, separator: str | None = None) -> Converted:
    """Converts a raw column to a canonical type.

    Args:
      values: raw values `[n]` as `plain` returns them.
      target: string, float64, int64, bool, timestamp[us, UTC], or a list of string or float64.
      unit: of times (default: numbers are seconds, text is seconds or ISO 8601; without an offset it is UTC) and of
        durations (default: seconds).
      separator: between the values of a list written as text; None for one value.

    Returns:
      The values, null where missing (NaN is missing) or bad; and the mask `[n]` of bad values.
    """
    if pa.types.is_null(values.type):
        return pa.nulls(len(values), target), np.zeros(len(values), bool)
    if pa.types.is_list(target):
        return _to_list(values, target.value_type, separator)
    if target == pa.float64():
        converted, bad = _to_float(values)
        return (pc.multiply(converted, _SECONDS[unit]) if unit in _SECONDS and unit != "s" else converted), bad
    if pa.types.is_timestamp(target):
        return _to_timestamp(values, unit)
    converters: dict[pa.DataType, Callable[[pa.Array], Converted]] = {
        pa.string(): _to_string,
        pa.int64(): _to_integer,
        pa.bool_(): _to_bool,
    }
    return converters[target](values)


def plain(column: pa.ChunkedArray) -> Converted:
    """A column without dictionaries, extension, large or view types, its text valid UTF-8 (bad bytes replaced, marked).

    UUIDs (`arrow.uuid`, as which Parquet's UUID type is read) become hyphenated lower-case text. Bytes of any other
    type are text or bad: 16 bytes whose type does not say that they are a UUID are never guessed to be one.
    """
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if isinstance(values.type, pa.BaseExtensionType):
        if values.type.extension_name == "arrow.uuid":
            return _text_of_uuids(values.storage), np.zeros(len(values), bool)
        return plain(values.storage)
    kind = values.type
    if pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        values = values.cast(pa.list_(kind.value_type))
    if _is_bytes(kind) or _is_text(kind):
        return _valid_text(values)
    return values, np.zeros(len(values), bool)


def finite(values: pa.Array) -> Converted:
    """A further column as it is, with NaN as missing and infinities marked as bad."""
    if not pa.types.is_floating(values.type):
        return values, np.zeros(len(values), bool)
    return _to_float(values)


def mask_of(condition: pa.Array) -> np.ndarray:
    """A boolean Arrow array as a NumPy mask; null is False."""
    return pc.fill_null(condition, False).to_numpy(zero_copy_only=False)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def _text_of_uuids(values: pa.Array) -> pa.Array:
    """fixed_size_binary(16) `[n]` as 8-4-4-4-12 lower-case hexadecimal digits."""
    size = len(values)
    given = np.frombuffer(values.buffers()[1] or b"", np.uint8)[16 * values.offset :][: 16 * size].reshape(size, 16)
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    characters = np.full((size, 36), ord("-"), np.uint8)
    places = np.delete(np.arange(36), [8, 13, 18, 23])
    characters[:, places[0::2]], characters[:, places[1::2]] = digits[given >> 4], digits[given & 15]
    offsets = np.arange(size + 1, dtype=np.int32) * 36
    text = pa.StringArray.from_buffers(size, pa.py_buffer(offsets), pa.py_buffer(characters))
    return pc.if_else(values.is_valid(), text, pa.scalar(None, pa.string()))


def _valid_text(values: pa.Array) -> Converted:
    bad = np.zeros(len(values), bool)
    try:
        text = values.cast(pa.string())
        text.validate(full=True)
        return text, bad
    except pa.ArrowInvalid:
        decoded: list[str | None] = []
        for position, value in enumerate(values.cast(pa.binary()).to_pylist()):  # only chunks with broken text
            text_value = None if value is None else value.decode("utf-8", errors="replace")
            bad[position] = text_value is not None and text_value.encode() != value
            decoded.append(text_value)
        return pa.array(decoded, pa.string()), bad


def _all_bad(values: pa.Array, target: pa.DataType) -> Converted:
    return pa.nulls(len(values), target), mask_of(values.is_valid())


def _to_string(values: pa.Array) -> Converted:
    kind = values.type
    good = np.zeros(len(values), bool)
    if pa.types.is_string(kind):
        return values, good
    if pa.types.is_floating(kind):
        # Identifiers that passed through a float column ("12.0") are the whole numbers they were.
        numbers, bad = _to_float(values)
        array = numbers.to_numpy(zero_copy_only=False)
        whole = np.isfinite(array) & (array == np.floor(array)) & (np.abs(array) < 2.0**53)
        integers = pa.array(np.where(whole, array, 0).astype(np.int64)).cast(pa.string())
        return pc.if_else(pa.array(whole), integers, numbers.cast(pa.string())), bad
    if pa.types.is_decimal(kind):
        # Equal numbers are equal identifiers, however many decimals their columns have.
        whole, is_whole = _whole_decimals(values)
        text = values.cast(pa.string())
        scientific = pc.match_substring(text, "E")
        text = pc.if_else(scientific, text, pc.utf8_rtrim(text, "0"))
        return pc.if_else(pa.array(is_whole), whole.cast(pa.string()), text), good
    if pa.types.is_nested(kind):
        return _all_bad(values, pa.string())
    return values.cast(pa.string()), good


def _to_float(values: pa.Array) -> Converted:
    kind = values.type
    missing_words = np.zeros(len(values), bool)
    present = mask_of(values.is_valid())
    if pa.types.is_string(kind):
        text = pc.utf8_trim_whitespace(values)
        readable = pc.match_substring_regex(text, _NUMBER)
        missing_words = mask_of(pc.is_in(pc.utf8_lower(text), value_set=_MISSING_WORDS))
        numbers = pc.if_else(readable, pc.utf8_ltrim(text, "+"), pa.scalar(None, pa.string())).cast(pa.float64())
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers = values.cast(pa.float64(), safe=False)
    elif pa.types.is_boolean(kind):
        numbers = values.cast(pa.int8()).cast(pa.float64())
    else:
        return _all_bad(values, pa.float64())
    array = numbers.to_numpy(zero_copy_only=False)
    usable = np.isfinite(array)
    nan = mask_of(pc.is_nan(numbers))
    return pa.array(np.where(usable, array, 0.0), mask=~usable), present & ~usable & ~nan & ~missing_words


def _to_integer(values: pa.Array) -> Converted:
    kind = values.type
    if pa.types.is_signed_integer(kind):
        return values.cast(pa.int64()), np.zeros(len(values), bool)
    if pa.types.is_unsigned_integer(kind):
        return _signed(values.cast(pa.uint64()), np.zeros(len(values), bool))
    if pa.types.is_decimal(kind):
        return _integer_of_decimal(values)
    if pa.types.is_string(kind):
        text = pc.utf8_trim_whitespace(values)
        pointed = pc.any(pc.match_substring(text, ".")).as_py()
        digits = pc.replace_substring_regex(text, r"\.0*$", "") if pointed else text
        exact = pc.match_substring_regex(digits, _INTEGER)
        digits = pc.if_else(exact, digits, pa.scalar(None, pa.string()))
        negative = mask_of(pc.starts_with(digits, "-"))
        integers, too_large = _signed(pc.utf8_ltrim(digits, "+-").cast(pa.uint64()), negative)
        # Beyond 2^53 a float need not be the number that was written.
        numbers = _to_float(pc.if_else(exact, pa.scalar(None, pa.string()), text))
        rest, bad = _integer_of_float(*numbers, limit=2.0**53)
        return pc.coalesce(integers, rest), bad | too_large
    return _integer_of_float(*_to_float(values))


def _signed(magnitudes: pa.Array, negative: np.ndarray) -> Converted:
    """uint64 magnitudes with a sign as int64; what does not fit is bad."""
    present = mask_of(magnitudes.is_valid())
    array = pc.fill_null(magnitudes, 0).to_numpy(zero_copy_only=False)
    fits = array <= np.uint64(2**63 - 1) + negative.astype(np.uint64)
    signed = np.where(negative, ~array + np.uint64(1), array).view(np.int64)
    return pa.array(signed, mask=~(present & fits)), present & ~fits


def _integer_of_decimal(values: pa.Array) -> Converted:
    whole, is_whole = _whole_decimals(values)
    low, high = (pa.scalar(Decimal(end), whole.type) for end in (-(2**63), 2**63 - 1))
    fits = is_whole & mask_of(pc.and_(pc.greater_equal(whole, low), pc.less_equal(whole, high)))
    integers = pc.if_else(pa.array(fits), whole, pa.scalar(None, whole.type)).cast(pa.int64())
    return integers, mask_of(values.is_valid()) & ~fits


def _whole_decimals(values: pa.Array) -> Converted:
    """Decimals without their fractions, as decimal256(76, 0); and the mask `[n]` of those that had none."""
    if values.type.bit_width < 128:
        values = values.cast(pa.decimal128(38, values.type.scale))
    whole = pc.trunc(values)
    is_whole = pc.equal(values, whole) if values.type.scale > 0 else values.is_valid()
    return whole.cast(pa.decimal256(76, 0), safe=False), mask_of(is_whole)


def _integer_of_float(numbers: pa.Array, bad: np.ndarray, limit: float = 2.0**62) -> Converted:
    array = numbers.to_numpy(zero_copy_only=False)
    whole = np.isfinite(array) & (array == np.floor(array)) & (np.abs(array) < limit)
    integers = pa.array(np.where(whole, array, 0).astype(np.int64), mask=~whole)
    return integers, bad | (mask_of(numbers.is_valid()) & ~whole)


def _to_bool(values: pa.Array) -> Converted:
    if pa.types.is_boolean(values.type):
        return values, np.zeros(len(values), bool)
    if pa.types.is_string(values.type):
        word = pc.utf8_lower(pc.utf8_trim_whitespace(values))
        true, false = (mask_of(pc.is_in(word, value_set=words)) for words in (_TRUE_WORDS, _FALSE_WORDS))
        missing = mask_of(pc.is_in(word, value_set=_MISSING_WORDS)) | mask_of(values.is_null())
        return pa.array(true, mask=~(true | false)), ~(true | false | missing)
    numbers, bad = _to_float(values)
    array = numbers.to_numpy(zero_copy_only=False)
    known = (array == 0) | (array == 1)
    return pa.array(array == 1, mask=~known), bad | (np.isfinite(array) & ~known)


def _to_timestamp(values: pa.Array, unit: Unit | None) -> Converted:
    kind = values.type
    if pa.types.is_timestamp(kind):
        return _from_epoch(values.cast(pa.int64()), kind.unit)
    if pa.types.is_date(kind):
        return _from_epoch(values.cast(pa.date32()).cast(pa.int32()).cast(pa.int64()), "day")
    if pa.types.is_string(kind):
        text = pc.utf8_trim_whitespace(values)
        from_text, bad = _from_iso(text)
        if unit == "iso":
            return from_text, bad
        from_numbers, out_of_range = _from_exact_numbers(text, unit or "s")
        is_number = mask_of(_to_float(text)[0].is_valid())
        return pc.coalesce(from_text, from_numbers), (bad & ~is_number) | (is_number & out_of_range)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        if unit == "iso":
            return _all_bad(values, TIMESTAMP)
        if not pa.types.is_floating(kind):
            return _from_exact_numbers(values, unit or "s")
        numbers, bad = _to_float(values)
        times, out_of_range = _from_epoch(numbers, unit or "s")
        return times, bad | out_of_range
    return _all_bad(values, TIMESTAMP)


def _from_exact_numbers(values: pa.Array, unit: str) -> Converted:
    """Text, integers or decimals since the epoch: whole numbers exactly, others as floats."""
    integers, others = _to_integer(values)
    times, out_of_range = _from_epoch(integers, unit)
    if not others.any():
        return times, out_of_range
    numbers, bad = _to_float(pc.if_else(pa.array(others), values, pa.scalar(None, values.type)))
    fractions, fraction_out = _from_epoch(numbers, unit)
    return pc.coalesce(times, fractions), out_of_range | bad | fraction_out


def _from_epoch(numbers: pa.Array, unit: str) -> Converted:
    """int64 or floats since the epoch as timestamps; what does not fit into 64 bits of microseconds is bad."""
    present = mask_of(numbers.is_valid())
    factor = {**_US, "day": 86_400_000_000}.get(unit)
    approximate = numbers.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    fits = present & np.isfinite(approximate) & (np.abs(approximate) < (2.0**62 / factor if factor else 2.0**63))
    if pa.types.is_integer(numbers.type):
        fits = fits if factor else present  # nanoseconds become fewer microseconds
        integers = np.where(fits, pc.fill_null(numbers, 0).to_numpy(zero_copy_only=False), 0)
        us = integers * factor if factor else integers // 1_000
    else:
        us = np.rint(np.where(fits, approximate, 0.0) * (factor or 1e-3)).astype(np.int64)
    return pa.array(us, mask=~fits).cast(TIMESTAMP), present & ~fits


def _from_iso(text: pa.Array) -> Converted:
    """ISO 8601 dates and times; a date alone is its first moment, a time without an offset is UTC."""
    parts = pc.extract_regex(text, _ISO)

    def number(name: str, default: str = "0") -> np.ndarray:
        digits = pc.fill_null(pc.struct_field(parts, name), default)
        return pc.if_else(pc.equal(digits, ""), default, digits).cast(pa.int64()).to_numpy(zero_copy_only=False)

    year, month, day = number("year", "1970"), number("month", "1"), number("day", "1")
    hour, minute, second = number("hour"), number("minute"), number("second")
    fraction = pc.utf8_slice_codeunits(pc.fill_null(pc.struct_field(parts, "fraction"), ""), 0, 9)
    padded = pc.utf8_rpad(fraction, 9, "0")
    nanoseconds = padded.cast(pa.int64()).to_numpy(zero_copy_only=False)
    zone = pc.utf8_upper(pc.fill_null(pc.struct_field(parts, "zone"), ""))
    zone = pc.if_else(pc.is_in(zone, value_set=pa.array(["", "Z", "UTC"])), "+", pc.replace_substring(zone, ":", ""))
    zone = pc.utf8_rpad(zone, 5, "0")
    sign = np.where(mask_of(pc.starts_with(zone, "-")), -1, 1)
    offset_hour = pc.utf8_slice_codeunits(zone, 1, 3).cast(pa.int64()).to_numpy(zero_copy_only=False)
    offset_minute = pc.utf8_slice_codeunits(zone, 3, 5).cast(pa.int64()).to_numpy(zero_copy_only=False)

    months = ((year - 1970) * 12 + np.clip(month, 1, 12) - 1).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + (day - 1)
    valid = (month >= 1) & (month <= 12) & (day >= 1) & (days.astype("datetime64[M]") == months)
    valid &= (hour < 24) & (minute < 60) & (second < 60) & (offset_hour < 24) & (offset_minute < 60)
    valid &= mask_of(parts.is_valid())
    seconds = days.astype(np.int64) * 86_400 + hour * 3_600 + minute * 60 + second
    seconds -= sign * (offset_hour * 3_600 + offset_minute * 60)
    us = seconds * 1_000_000 + nanoseconds // 1_000
    missing = mask_of(pc.is_in(pc.utf8_lower(text), value_set=_MISSING_WORDS)) | mask_of(text.is_null())
    return pa.array(us, mask=~valid).cast(TIMESTAMP), ~valid & ~missing


def _to_list(values: pa.Array, element: pa.DataType, separator: str | None) -> Converted:
    if not pa.types.is_list(values.type):
        text, bad = _to_string(values)
        if bad.any():
            text = pc.if_else(pa.array(bad), None, text)
        lists = pc.split_pattern(text, separator) if separator else _singletons(text)
        lists, inner = _map_elements(lists, element, drop_blank=True)
        return lists, bad | inner
    return _map_elements(values, element, drop_blank=False)


def _singletons(text: pa.Array) -> pa.Array:
    offsets = np.arange(len(text) + 1, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), text, mask=text.is_null())


def _map_elements(lists: pa.Array, element: pa.DataType, drop_blank: bool) -> Converted:
    parents = pc.list_parent_indices(lists).to_numpy()
    flat, broken = plain(pc.list_flatten(lists))
    converted, bad = convert(flat, element)
    keep = np.ones(len(parents), bool)
    if drop_blank and element == pa.string():
        converted = pc.utf8_trim_whitespace(converted)
        keep = mask_of(pc.not_equal(converted, ""))
    counts = np.bincount(parents[keep], minlength=len(lists))
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    rebuilt = pa.ListArray.from_arrays(offsets, converted.filter(pa.array(keep)), mask=lists.is_null())
    return rebuilt, np.bincount(parents[bad | broken], minlength=len(lists)) > 0
