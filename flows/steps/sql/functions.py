"""The allow-list: what an expression may call. Everything here gives the same result for the same arguments, always.

Left out, and why:

- `now`, `current_date`, `today`, `age` of one argument, `random`, `uuid`, `nextval`: another value at another time, so
  that a replay would differ (`current_localtime` even calls itself consistent);
- `current_setting`, `getvariable`, `current_user`, `version`, `read_*`, `glob`, `query`, `query_table`: they look
  outside of the event;
- `range`, `generate_series`, `repeat`, `lpad`, `rpad`, `list_resize`, `printf`, `format`, factorial: an argument,
  perhaps from an event, says how much memory or time they take, and no deadline stops them within a call;
- `unnest`: gives several rows for one event;
- `list_aggregate`: takes the name of any aggregate, some of them random; `list_sum` and its like stand for it;
- `hash`: differs between versions of DuckDB; `md5` does not. `list_distinct`: its order is not stated.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from fractions import Fraction

_GROUPS: Mapping[str, str] = {
    "arithmetic": """
        + - * / // % ** ^ & | << >> ~ @ add subtract multiply divide mod fmod fdiv abs sign signbit ceil ceiling
        floor round round_even trunc sqrt cbrt exp ln log log2 log10 pow power gcd lcm greatest_common_divisor
        least_common_multiple sin cos tan cot asin acos atan atan2 sinh cosh tanh asinh acosh atanh degrees
        radians pi even gamma lgamma nextafter isnan isinf isfinite greatest least bit_count xor
    """,
    "conditions": """
        nullif if coalesce ifnull constant_or_null
    """,
    "text": """
        || ~~ !~~ ~~* !~~* ~~~ ^@ like_escape not_like_escape ilike_escape not_ilike_escape lower upper lcase
        ucase length len strlen char_length character_length octet_length bit_length ascii ord unicode chr
        concat concat_ws contains starts_with ends_with prefix suffix instr strpos position left right substr
        substring overlay replace translate reverse trim ltrim rtrim split string_split str_split
        string_to_array split_part strip_accents nfc_normalize array_to_string levenshtein damerau_levenshtein
        editdist3 hamming mismatches jaccard jaro_similarity jaro_winkler_similarity url_encode url_decode
        parse_filename parse_dirname parse_dirpath parse_path
    """,
    "regular expressions": """
        regexp_matches regexp_full_match regexp_extract regexp_extract_all regexp_replace regexp_escape
        regexp_split_to_array string_split_regex str_split_regex
    """,
    "bytes and digests": """
        md5 md5_number sha1 sha256 hex unhex to_hex from_hex base64 to_base64 from_base64 to_base bin unbin
        encode decode
    """,
    "dates and times": """
        date_part datepart date_trunc datetrunc date_diff datediff date_sub datesub date_add time_bucket
        timezone strftime strptime try_strptime epoch epoch_ms epoch_us epoch_ns to_timestamp make_date
        make_time make_timestamp make_timestamp_ms make_timestamp_ns make_timestamptz year month day hour minute
        second millisecond microsecond nanosecond quarter week weekday weekofyear dayofweek dayofmonth dayofyear
        isodow isoyear yearweek decade century millennium era dayname monthname last_day days_in_month julian
        to_microseconds to_milliseconds to_seconds to_minutes to_hours to_days to_weeks to_months to_quarters
        to_years to_decades to_centuries to_millennia normalized_interval
    """,
    "lists": """
        && <@ @> list_value list_pack array_value array_length list_contains array_contains list_has array_has
        list_has_any array_has_any list_has_all array_has_all list_position array_position list_indexof
        array_indexof list_extract array_extract list_element list_slice array_slice list_concat list_cat
        array_concat array_cat list_append array_append list_prepend array_prepend list_reverse array_reverse
        list_sort array_sort list_reverse_sort array_reverse_sort list_unique array_unique list_where
        list_select list_zip flatten list_transform list_apply array_transform array_apply apply list_filter
        array_filter filter list_reduce array_reduce reduce list_sum list_avg list_min list_max list_count
        list_product list_median list_first list_last list_any_value list_bool_and list_bool_or list_stddev_pop
        list_stddev_samp list_var_pop list_var_samp list_dot_product list_inner_product list_distance
        list_cosine_distance list_cosine_similarity
    """,
    "structs and maps": """
        row struct_pack struct_extract struct_extract_at struct_insert struct_update struct_concat struct_keys
        struct_values map map_keys map_values map_entries map_from_entries map_extract map_extract_value
        map_contains map_concat element_at cardinality
    """,
    "json": """
        -> ->> json json_extract json_extract_path json_extract_string json_extract_path_text json_value
        json_exists json_type json_valid json_array_length json_keys json_contains json_structure json_array
        json_object json_quote json_merge_patch to_json array_to_json row_to_json
    """,
}

_MOVING = (
    "now today current_date current_time current_timestamp localtime localtimestamp current_localtime "
    "current_localtimestamp get_current_time get_current_timestamp transaction_timestamp ago age random uuid "
    "gen_random_uuid current_setting"
)
MOVING = frozenset(_MOVING.split())
"""What people write for something that is not in the event: functions, and some words that look like columns."""

ALLOWED = frozenset(word for words in _GROUPS.values() for word in words.split())
"""Functions and operators that an expression may call on the columns of one event."""

OPERATORS = frozenset(
    {
        "OPERATOR_NOT", "OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL", "OPERATOR_COALESCE", "OPERATOR_TRY", "COMPARE_IN",
        "COMPARE_NOT_IN", "ARRAY_EXTRACT", "ARRAY_SLICE", "STRUCT_EXTRACT", "ARRAY_CONSTRUCTOR",
    }
)  # fmt: skip
"""DuckDB's own operators that are no functions."""

_WHOLE = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "HUGEINT")
_NUMBERS = frozenset([*_WHOLE, "DECIMAL", "FLOAT", "DOUBLE"])
_INTERPOLATED = _NUMBERS - {"DECIMAL", "FLOAT"}  # between two of these DuckDB interpolates in their own type
TIMES = ("DATE", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "TIMESTAMP WITH TIME ZONE")
_ORDERED = frozenset([*_NUMBERS, *TIMES, "BOOLEAN", "VARCHAR"])


class Form(Enum):
    """How the inputs of a window's function become one argument; FILTER makes it NULL, which all of them skip."""

    PRESENT = auto()
    """true where there is an input"""
    VALUE = auto()
    DOUBLE = auto()
    """the value as a double"""
    BOX = auto()
    """a struct of the value `v`, so that a NULL value can be told from no event"""
    RANKED = auto()
    """a struct of the value `v` and what it is ranked by, `k`"""
    HASH = auto()
    """64 bits of the value's MD5"""


@dataclass(frozen=True, slots=True)
class Windowed:
    """A function that windows compute: the aggregate of `windows.aggregates.FUNCTIONS` that does, and its inputs.

    `types` are those of the last input, None for any. `parameter` is a quantile's own; one that the SQL gives as second
    argument is `ASKED`. With `keeps_all` every value of the frame must be kept.
    """

    function: str
    form: Form
    types: frozenset[str] | None = None
    parameter: Fraction | None = None
    keeps_all: bool = False

    @property
    def inputs_count(self) -> int:
        """How many inputs it has, a quantile's parameter apart."""
        return 2 if self.form is Form.RANKED else 1


ASKED = Fraction(-1)

_BOOLS = frozenset({"BOOLEAN"})
_SPREAD = {
    name: Windowed(function, Form.DOUBLE, _NUMBERS)
    for function, names in (
        ("stddev_samp", ("stddev_samp", "stddev")), ("stddev_pop", ("stddev_pop",)),
        ("var_samp", ("var_samp", "variance")), ("var_pop", ("var_pop",)),
    )
    for name in names
}  # fmt: skip
_ARGUMENTS = {
    name: Windowed(function, Form.RANKED, _ORDERED)
    for function, names in (("arg_min", ("arg_min", "argmin", "min_by")), ("arg_max", ("arg_max", "argmax", "max_by")))
    for name in names
}

WINDOWED: Mapping[str, Windowed] = {
    "count": Windowed("count", Form.PRESENT),
    "sum": Windowed("sum", Form.VALUE, _NUMBERS | {"BOOLEAN"}),
    "avg": Windowed("avg", Form.VALUE, _NUMBERS),
    "mean": Windowed("avg", Form.VALUE, _NUMBERS),
    "min": Windowed("min", Form.VALUE, _ORDERED),
    "max": Windowed("max", Form.VALUE, _ORDERED),
    **_SPREAD,
    "first_value": Windowed("first_value", Form.BOX),
    "last_value": Windowed("last_value", Form.BOX),
    "lag": Windowed("first_value", Form.BOX),
    **_ARGUMENTS,
    "bool_and": Windowed("min", Form.VALUE, _BOOLS),
    "bool_or": Windowed("max", Form.VALUE, _BOOLS),
    "median": Windowed("quantile_cont", Form.DOUBLE, _INTERPOLATED, Fraction(1, 2), keeps_all=True),
    "quantile_cont": Windowed("quantile_cont", Form.DOUBLE, _INTERPOLATED, ASKED, keeps_all=True),
    "quantile_disc": Windowed("quantile_disc", Form.VALUE, _ORDERED, ASKED, keeps_all=True),
    "quantile": Windowed("quantile_disc", Form.VALUE, _ORDERED, ASKED, keeps_all=True),
    "mode": Windowed("mode", Form.VALUE, _ORDERED, keeps_all=True),
    "list": Windowed("list", Form.BOX, keeps_all=True),
    "array_agg": Windowed("list", Form.BOX, keeps_all=True),
    "approx_count_distinct": Windowed("approx_count_distinct", Form.HASH, _ORDERED),
    "approx_quantile": Windowed("approx_quantile", Form.DOUBLE, _NUMBERS - {"DECIMAL"}, ASKED),
}
"""What may stand before OVER."""

ENDS = ("first_value", "last_value")
"""Those that take IGNORE NULLS, and no FILTER."""

COUNT_DISTINCT = Windowed("count_distinct", Form.VALUE, _ORDERED, keeps_all=True)
"""count(DISTINCT x)."""

_NOT_CARRIED = re.compile(r"HUGEINT|.*\b(UHUGEINT|BIT|TIME WITH TIME ZONE|VARIANT)\b.*")
_SPELLED = re.compile(r"'[^']*'|\"[^\"]*\"")


def is_carried(kind: str) -> bool:
    """Say whether values of a DuckDB type come back from Arrow as they went.

    >>> is_carried("STRUCT(a BIGINT[])"), is_carried("HUGEINT"), is_carried("BIT[]"), is_carried("ENUM('BIT', 'b')")
    (True, False, False, True)
    """
    return _NOT_CARRIED.fullmatch(_SPELLED.sub("", kind)) is None


_ROWS = "OVER (… ROWS BETWEEN 9 PRECEDING AND CURRENT ROW)"
_SUMS = "write it of sums: sum(x), sum(y), sum(x * y), sum(x * x), sum(y * y) and count(*) OVER one window"
INSTEAD: Mapping[str, str] = {
    "count_if": "write count(*) FILTER (WHERE …) OVER (…)",
    "countif": "write count(*) FILTER (WHERE …) OVER (…)",
    "count_star": "write count(*) OVER (…)",
    "every": "write bool_and(…)",
    "any_value": "write first_value(… IGNORE NULLS)",
    "arbitrary": "write first_value(…)",
    "string_agg": f"write array_to_string(list(…) {_ROWS}, ',')",
    "group_concat": f"write array_to_string(list(…) {_ROWS}, ',')",
    "listagg": f"write array_to_string(list(…) {_ROWS}, ',')",
    "product": "write exp(sum(ln(…)) OVER (…)) of positive numbers",
    "geomean": "write exp(avg(ln(…)) OVER (…)) of positive numbers",
    "geometric_mean": "write exp(avg(ln(…)) OVER (…)) of positive numbers",
    "fsum": "write sum(…): it is exact",
    "kahan_sum": "write sum(…): it is exact",
    "sumkahan": "write sum(…): it is exact",
    "sum_no_overflow": "write sum(…)",
    "favg": "write avg(…): its sum is exact",
    "bit_and": "write bool_and(… & 1 = 1) for each bit that matters",
    "bit_or": "write bool_or(… & 1 = 1) for each bit that matters",
    "bit_xor": "write sum((… & 1)) OVER (…) % 2 for each bit that matters",
    "sem": "write stddev_samp(…) OVER w / sqrt(count(…) OVER w)",
    "mad": "write median(…) and the distance from it upstream",
    "entropy": "write approx_count_distinct(…) or mode(…)",
    "skewness": "write avg of powers: avg(x * x * x) OVER w",
    "kurtosis": "write avg of powers: avg(x * x * x * x) OVER w",
    "kurtosis_pop": "write avg of powers: avg(x * x * x * x) OVER w",
    "corr": _SUMS,
    "covar_pop": "write avg(x * y) OVER w - avg(x) OVER w * avg(y) OVER w",
    "covar_samp": "write avg(x * y) OVER w - avg(x) OVER w * avg(y) OVER w",
    **{f"regr_{what}": _SUMS for what in ("avgx", "avgy", "count", "intercept", "r2", "slope", "sxx", "sxy", "syy")},
    "weighted_avg": "write sum(x * weight) OVER w / sum(weight) OVER w",
    "wavg": "write sum(x * weight) OVER w / sum(weight) OVER w",
    "percentile_cont": "write quantile_cont(…, p) OVER (…)",
    "percentile_disc": "write quantile_disc(…, p) OVER (…)",
    **dict.fromkeys(("arg_min_null", "arg_min_nulls_last"), "write arg_min(…, …), which skips NULLs"),
    **dict.fromkeys(("arg_max_null", "arg_max_nulls_last"), "write arg_max(…, …), which skips NULLs"),
    "bitstring_agg": f"write list(…) {_ROWS}",
    "histogram_exact": "write a count FILTER (WHERE …) for each bin",
    "histogram": f"write list(…) {_ROWS}, or a count FILTER (WHERE …) for each bin",
    "reservoir_quantile": "write approx_quantile(…, p)",
    "approx_top_k": "write mode(…), or a count FILTER (WHERE …) for each value",
    "row_number": "write count(*) OVER (… ROWS UNBOUNDED PRECEDING)",
    "rank": "write count(*) OVER (…): a row knows its past only",
    "dense_rank": "write count(*) OVER (…): a row knows its past only",
    "rank_dense": "write count(*) OVER (…): a row knows its past only",
    "percent_rank": "write count(*) FILTER (WHERE …) OVER w / count(*) OVER w",
    "cume_dist": "write count(*) FILTER (WHERE …) OVER w / count(*) OVER w",
    "ntile": "write approx_quantile(…, p) for each bound",
    "lead": "write lag(…): later events are not known yet",
    "nth_value": "write lag(…, n), or first_value(…) over ROWS n PRECEDING",
    "fill": "write last_value(… IGNORE NULLS)",
    "list_distinct": f"write list(…) {_ROWS}",
    "session": "write the gap as a column, event_timestamp - lag(event_timestamp) OVER (…); sessions belong upstream",
    "tumble": "write PARTITION BY …, time_bucket(INTERVAL '1 hour', event_timestamp)",
    "hop": "write RANGE BETWEEN … PRECEDING AND CURRENT ROW, with `resolution:`",
    "cumulate": "write PARTITION BY …, time_bucket(INTERVAL '1 day', event_timestamp)",
}
"""What to write for functions over windows that are not computed."""
