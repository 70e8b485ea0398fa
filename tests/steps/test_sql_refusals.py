"""Every refusal as a person reads it: the SQL, and exactly what is said of it."""

# a message stands as it is read

from datetime import timedelta

import pytest
from pydantic import AwareDatetime

from freshet.flows.steps.sql import compile_views, engine
from freshet.flows.steps.sql.functions import INSTEAD, WINDOWED
from freshet.schemas import declaration
from freshet.schemas.errors import Refused
from freshet.schemas.event import Contract, Event, Stream, contract
from freshet.schemas.plan import Pipeline


class Click(Event):
    stream = Stream(topic="clicks", key="user", event_time="time", lateness=timedelta(minutes=1))
    time: AwareDatetime
    user: str
    page: str
    price: int
    share: float
    seen: bool
    tags: list[str]


class View(Event):
    stream = Stream(topic="views", key="user", event_time="time")
    time: AwareDatetime
    user: str


class Odd(Event):
    stream = Stream(topic="odd", key="flag", event_time="time")
    time: AwareDatetime
    flag: bool
    created: str
    Page: str
    page: str


def contracts() -> dict[str, Contract]:
    made = {name: contract(name, model) for name, model in (("clicks", Click), ("views", View), ("odd", Odd))}
    assert not any(problems for _, problems in made.values())
    return {name: found for name, (found, _) in made.items() if found is not None}


COLUMNS = "time, user, page, price, share, seen, tags, event_timestamp"
FRAME = "RANGE BETWEEN INTERVAL '10 minutes' PRECEDING AND CURRENT ROW"
WINDOW = f"PARTITION BY user ORDER BY event_timestamp {FRAME}"


def compiled(*definitions: dict[str, str], windows: dict[str, str] | None = None, more: str = "") -> Pipeline:
    lines = ["servingRequirements: {}", "featureDefinitions:"]
    for number, given in enumerate(definitions):
        keys = {"name": f"feature_{number}", "dtype": "int64", "source": "clicks", "transformation": "price"} | given
        lines += [
            f"{'- ' if not index else '  '}{key}: {value if value.startswith('[') else quoted(value)}"
            for index, (key, value) in enumerate(keys.items())
        ]
    lines += ["windows:", *(f"  {name}: {quoted(text)}" for name, text in windows.items())] if windows else []
    return compile_views(declaration.read("\n".join([*lines, more])), contracts())


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def said(*definitions: dict[str, str], windows: dict[str, str] | None = None, more: str = "") -> list[str]:
    with pytest.raises(Refused) as refused:
        compiled(*definitions, windows=windows, more=more)
    return [str(problem) for problem in refused.value.problems]


def sql(transformation: str, dtype: str = "int64") -> dict[str, str]:
    return {"transformation": transformation, "dtype": dtype}


ONE = [
    # What is not one SQL expression
    ("price +", 'has SQL that does not parse; got syntax error at or near "]". Hint: check the SQL there', None),
    ("price price", 'has SQL that does not parse; got syntax error at or near "price". Hint: check the SQL there', 7),
    (
        "price; DROP TABLE events",
        'has SQL that does not parse; got syntax error at or near ";". Hint: write one expression, without ;',
        6,
    ),
    ("price) AS v, (price", 'has SQL that does not parse; got syntax error at or near ")". Hint: check the SQL there', 6),
    (
        "price] FROM events; SELECT [price",
        "is not one expression. Hint: write one expression; each feature has a definition of its own",
        0,
    ),
    ("price, share", "is not one expression. Hint: write one expression; each feature has a definition of its own", 0),
    ("-- later", "has an empty transformation. Hint: write a SQL expression, such as count(*) OVER (…)", 0),
    # What stands in it
    ("prise", "names an unknown column; got prise. Hint: did you mean price?", 1),
    ("1 + zebra", f"names an unknown column; got zebra. Hint: clicks has {COLUMNS}", 5),
    ("_offset", f"names an unknown column; got _offset. Hint: clicks has {COLUMNS}", 1),
    ("clicks.price", "names a column with a table; got clicks.price. Hint: write price", 1),
    ("lowr(page)", "calls a function that is not on the list of allowed ones; got lowr. Hint: did you mean lower?", 1),
    (
        "read_text('/etc/passwd')",
        ("calls a function that is not on the list of allowed ones; got read_text. Hint: see the list of allowed "
        "functions in the README"),
        1,
    ),
    ("page.lower()", "calls a function with a dot; got page.lower. Hint: write lower(…)", 1),
    (
        "now()",
        ("asks for something that is not in the event; got now. Hint: use the event's own columns, such as "
        "event_timestamp: a replay must give the same value"),
        1,
    ),
    (
        "price + current_date",
        ("asks for something that is not in the event; got current_date. Hint: use the event's own columns, such as "
        "event_timestamp: a replay must give the same value"),
        9,
    ),
    (
        "(SELECT 1)",
        "has a subquery. Hint: name columns of the event and aggregates OVER windows; joins belong upstream",
        1,
    ),
    (
        "price IN (SELECT 1)",
        "has a subquery. Hint: name columns of the event and aggregates OVER windows; joins belong upstream",
        10,
    ),
    ("*", "has a *. Hint: name the columns; only count(*) has a star", 1),
    ("COLUMNS('p.*')", "has a *. Hint: name the columns; only count(*) has a star", 1),
    ("price + ?", "has a parameter. Hint: write the value itself", 9),
    ("page COLLATE nocase", "has a COLLATE. Hint: compare lower(…) or strip_accents(…)", 1),
    ("list_transform(tags, t -> lower(t))", "has a lambda with an arrow; got t -> lower(t). Hint: write lambda x: …", 22),
    ("sum(price)", f"has an aggregate without OVER; got sum. Hint: write sum(…) OVER ({WINDOW})", 1),
    (
        "lower(DISTINCT page)",
        "has DISTINCT, ORDER BY or FILTER in a function that takes one event; got lower. Hint: write lower(…)",
        1,
    ),
    (
        "lower(price, 2)",
        ("has SQL that DuckDB refuses; got No function matches the given name and argument types 'lower(BIGINT, "
        "INTEGER_LITERAL)'. You might need to add explicit type casts. Hint: see DuckDB's documentation of that function"),
        1,
    ),
    # Windows
    ("count(*) OVER w", "names an unknown window; got w. Hint: `windows:` has nothing", 15),
    (
        "count(*) OVER (PARTITION BY user)",
        f"has a window without ORDER BY. Hint: write ORDER BY event_timestamp {FRAME}: without it later events count",
        1,
    ),
    (
        f"count(*) OVER (PARTITION BY user ORDER BY price {FRAME})",
        "has a window in another order than time; got price. Hint: write ORDER BY event_timestamp",
        43,
    ),
    (
        f"count(*) OVER (PARTITION BY user ORDER BY event_timestamp DESC {FRAME})",
        "has a window in another order than time; got event_timestamp DESC. Hint: write ORDER BY event_timestamp",
        43,
    ),
    (
        f"count(*) OVER (PARTITION BY user ORDER BY event_timestamp, page {FRAME})",
        "has a window in another order than time; got event_timestamp, page. Hint: write ORDER BY event_timestamp",
        43,
    ),
    (f"count(*) OVER (ORDER BY time {FRAME})", "has a window without PARTITION BY. Hint: write PARTITION BY user", 1),
    (
        f"count(*) OVER (PARTITION BY lower(user) ORDER BY time {FRAME})",
        ("has PARTITION BY an expression; got lower(user). Hint: partition by columns of the event; compute others where "
        "it is produced"),
        29,
    ),
    (
        f"count(*) OVER (PARTITION BY seen ORDER BY time {FRAME})",
        ("has an entity that is neither text nor a whole number; got seen of type bool. Hint: partition by str or int "
        "fields"),
        29,
    ),
    (
        f"count(*) OVER (PARTITION BY usr ORDER BY time {FRAME})",
        "names an unknown column; got usr. Hint: did you mean user?",
        29,
    ),
    (
        f"count(*) OVER (PARTITION BY user, user ORDER BY time {FRAME})",
        "names a column twice in PARTITION BY; got user, user. Hint: name it once",
        1,
    ),
    (
        f"sum(price) OVER ({WINDOW}) + sum(price) OVER (PARTITION BY page ORDER BY time {FRAME})",
        ("has windows with different PARTITION BY; got user and page. Hint: give all windows of a feature the same "
        "PARTITION BY, or make two features"),
        126,
    ),
    (
        f"sum(count(*) OVER ({WINDOW})) OVER ({WINDOW})",
        "has a window inside a window; got count inside sum. Hint: make the inner one a feature of a stream of its own",
        5,
    ),
    (
        f"rnk(price) OVER ({WINDOW})",
        "has a window of a function that is not computed over windows; got rnk. Hint: write one of " + ", ".join(WINDOWED),
        1,
    ),
    (f"sum(DISTINCT price) OVER ({WINDOW})", "has DISTINCT in a window; got sum. Hint: write sum(…) without it", 1),
    (
        f"sum(price ORDER BY page) OVER ({WINDOW})",
        "has ORDER BY among the arguments of a window; got sum. Hint: leave it out: events are in order of time",
        1,
    ),
    (
        f"lag(price IGNORE NULLS) OVER ({WINDOW})",
        ("has IGNORE NULLS in a function that does not take it; got lag. Hint: write last_value(… IGNORE NULLS) OVER (… "
        "ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"),
        1,
    ),
    (
        f"lag(price, -1) OVER ({WINDOW})",
        "counts rows by something else than a whole number; got -1. Hint: write a whole number from 0 to 10000",
        1,
    ),
    (
        f"lag(price, 20000) OVER ({WINDOW})",
        "has a frame of too many rows; got 20000. Hint: write a whole number from 0 to 10000, or a duration",
        1,
    ),
    (
        f"quantile_cont(share, 90) OVER ({WINDOW})",
        ("has a quantile that is not a constant share; got 90. Hint: write a number from 0 to 1, such as "
        "quantile_cont(…, 0.9); several take a feature each"),
        1,
    ),
    (
        f"quantile_cont(share, [0.5, 0.9]) OVER ({WINDOW})",
        ("has a quantile that is not a constant share; got [0.5, 0.9]. Hint: write a number from 0 to 1, such as "
        "quantile_cont(…, 0.9); several take a feature each"),
        1,
    ),
    (f"arg_max(page) OVER ({WINDOW})", "has a window of another number of arguments; got arg_max of 1. Hint: write 2", 1),
    (
        f"CAST(median(page) OVER ({WINDOW}) AS BIGINT)",
        "has median of a type that windows do not fold; got VARCHAR. Hint: cast it, such as median(CAST(… AS DOUBLE))",
        6,
    ),
    (
        f"CAST(median(CAST(share AS FLOAT)) OVER ({WINDOW}) AS BIGINT)",
        "has median of a type that windows do not fold; got FLOAT. Hint: cast it, such as median(CAST(… AS DOUBLE))",
        6,
    ),
    (
        f"list(page) OVER ({WINDOW})",
        (f"has a list of unbounded length; got {FRAME}. Hint: write the last n: ROWS BETWEEN n - 1 PRECEDING AND CURRENT "
        "ROW"),
        1,
    ),
    (
        "count(DISTINCT page) OVER (PARTITION BY user ORDER BY time)",
        ("has count over a lifetime, which keeps every value for ever. Hint: write approx_count_distinct(…), or a frame "
        "of a duration"),
        1,
    ),
    (
        "mode(page) OVER (PARTITION BY user ORDER BY time ROWS UNBOUNDED PRECEDING)",
        "has mode over a lifetime, which keeps every value for ever. Hint: write a frame of a duration",
        1,
    ),
    (
        "count(*) OVER (PARTITION BY user, time_bucket(INTERVAL 1 HOUR, to_timestamp(price)) ORDER BY time)",
        ("has a time_bucket of something else than the event time; got time_bucket(INTERVAL 1 HOUR, to_timestamp(price)). "
        "Hint: write time_bucket(INTERVAL '1 hour', event_timestamp)"),
        35,
    ),
    (
        f"count(*) OVER (PARTITION BY user, time_bucket(INTERVAL 1 HOUR, time) ORDER BY time {FRAME})",
        (f"has a frame inside a time_bucket; got {FRAME}. Hint: leave the frame out: the bucket so far is meant"),
        98,
    ),
    (
        "lag(price) OVER (PARTITION BY user, time_bucket(INTERVAL 1 HOUR, time) ORDER BY time)",
        ("has lag inside a time_bucket; got time_bucket(INTERVAL 1 HOUR, time). Hint: leave time_bucket out: lag counts "
        "the entity's events, whatever their bucket"),
        1,
    ),
    (
        "count(*) OVER (PARTITION BY time_bucket(INTERVAL 1 HOUR, time) ORDER BY time)",
        ("has PARTITION BY a time_bucket, but no entity; got time_bucket(INTERVAL 1 HOUR, time). Hint: write PARTITION BY "
        "user, time_bucket(INTERVAL 1 HOUR, time)"),
        29,
    ),
    (
        "count(*) OVER (PARTITION BY user, time_bucket(INTERVAL 1 MONTH, time) ORDER BY time)",
        "has a frame of months; got INTERVAL 1 MONTH. Hint: write days: months differ in length",
        35,
    ),
    (
        "count(*) OVER (PARTITION BY user, time_bucket(INTERVAL (price) HOUR, time) ORDER BY time)",
        ("has a frame that is not constant; got INTERVAL (price) HOUR. Hint: write time_bucket(INTERVAL '1 hour', "
        "event_timestamp)"),
        35,
    ),
    (
        "count(*) OVER (PARTITION BY user, time_bucket(INTERVAL 1 HOUR, time, 'Europe/Berlin') ORDER BY time)",
        ("has a time_bucket of other arguments; got time_bucket(INTERVAL 1 HOUR, time, 'Europe/Berlin'). Hint: write "
        "time_bucket(INTERVAL '1 hour', event_timestamp)"),
        35,
    ),
    (
        "count(*) OVER (PARTITION BY user, time_bucket(INTERVAL 1 HOUR, time) ORDER BY time ROWS 5 PRECEDING)",
        ("has a frame inside a time_bucket; got ROWS BETWEEN 5 PRECEDING AND CURRENT ROW. Hint: leave the frame out: the "
        "bucket so far is meant"),
        89,
    ),
    (
        f"first_value(price) FILTER (WHERE seen) OVER ({WINDOW})",
        ("has FILTER in a function that does not take it; got first_value. Hint: write first_value(CASE WHEN … THEN … END "
        "IGNORE NULLS) OVER (…)"),
        1,
    ),
    (
        f"lag(price) FILTER (WHERE seen) OVER ({WINDOW})",
        ("has FILTER in a function that does not take it; got lag. Hint: write last_value(CASE WHEN … THEN … END IGNORE "
        "NULLS) OVER (… ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"),
        1,
    ),
    (f"lag() OVER ({WINDOW})", "has a window of another number of arguments; got lag of 0. Hint: write 1 to 3", 1),
    (
        f"lag(price, price) OVER ({WINDOW})",
        "has a frame that is not constant; got price. Hint: write a whole number from 0 to 10000",
        1,
    ),
    (
        "count(*) OVER (PARTITION BY user ORDER BY time_bucket(INTERVAL 1 HOUR, time))",
        ("has a window in another order than time; got time_bucket(INTERVAL 1 HOUR, time). Hint: write ORDER BY "
        "event_timestamp"),
        43,
    ),
    (f"max(price, 3) OVER ({WINDOW})", "has a window of several arguments; got max. Hint: write max(…) of one argument", 1),
    (
        f"TRY(count(*) OVER ({WINDOW}))",
        ("has SQL that DuckDB refuses; got window functions are not allowed in try. Hint: see DuckDB's documentation of "
        "that function"),
        0,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message", "column"), ONE, ids=[text for text, _, _ in ONE])
def test_a_refusal_names_the_feature_the_place_what_was_found_and_what_to_write(
    text: str, message: str, column: int | None
) -> None:
    place = f"features.yaml:6 (column {column})" if column else "features.yaml:6"

    found = said(sql(text))

    assert [f'{place}: feature "feature_0" {message}'] == found


FRAMES = [
    ("RANGE 5 PRECEDING", "has a frame that is not a duration; got 5"),
    ("RANGE CAST(NULL AS INTERVAL) PRECEDING", "has a frame that is not a duration; got CAST(NULL AS INTERVAL)"),
    ("RANGE INTERVAL '0 s' PRECEDING", "has a frame that is not longer than zero; got INTERVAL '0 s'"),
    ("RANGE INTERVAL '-1 hour' PRECEDING", "has a frame that is not longer than zero; got INTERVAL '-1 hour'"),
    ("RANGE INTERVAL 40000 DAYS PRECEDING", "has a frame of more than 100 years; got INTERVAL 40000 DAYS"),
    ("RANGE INTERVAL (price) HOUR PRECEDING", "has a frame that is not constant; got INTERVAL (price) HOUR"),
    ("RANGE to_hours(random()) PRECEDING", "has a frame that is not constant; got to_hours(random())"),
    (
        "RANGE INTERVAL 'soon' PRECEDING",
        "has a frame that DuckDB cannot read; got Could not convert string 'soon' to INTERVAL",
    ),
]


@pytest.mark.parametrize(("frame", "message"), FRAMES, ids=[frame for frame, _ in FRAMES])
def test_a_frame_that_is_not_computed_is_refused_with_one_that_is(frame: str, message: str) -> None:
    found = said(sql(f"count(*) OVER (PARTITION BY user ORDER BY time {frame})"))

    assert [f'feature "feature_0" {message}. Hint: write {FRAME}'] == [text.split(": ", 1)[1] for text in found]


OTHER_FRAMES = [
    (
        "RANGE BETWEEN INTERVAL 1 HOUR PRECEDING AND INTERVAL 5 MINUTES FOLLOWING",
        ("has a frame that sees the future; got RANGE BETWEEN INTERVAL 1 HOUR PRECEDING AND INTERVAL 5 MINUTES FOLLOWING. "
        f"Hint: end it at CURRENT ROW or before: later events are not known yet; such as {FRAME}"),
    ),
    (
        "ROWS BETWEEN 3 PRECEDING AND UNBOUNDED FOLLOWING",
        ("has a frame that sees the future; got ROWS BETWEEN 3 PRECEDING AND UNBOUNDED FOLLOWING. "
        f"Hint: end it at CURRENT ROW or before: later events are not known yet; such as {FRAME}"),
    ),
    (
        "GROUPS BETWEEN 3 PRECEDING AND CURRENT ROW",
        ("has a frame of GROUPS; got GROUPS BETWEEN 3 PRECEDING AND CURRENT ROW. Hint: write RANGE of a duration, or "
        "ROWS of a count"),
    ),
    (
        "ROWS BETWEEN price PRECEDING AND CURRENT ROW",
        "has a frame that is not constant; got price. Hint: write a whole number from 0 to 10000",
    ),
    (
        "ROWS BETWEEN 100000 PRECEDING AND CURRENT ROW",
        "has a frame of too many rows; got 100000. Hint: write a whole number from 0 to 10000, or a duration",
    ),
    (
        "RANGE BETWEEN INTERVAL 1 MINUTE PRECEDING AND INTERVAL 2 MINUTES PRECEDING",
        ("has a frame that ends before it begins; got RANGE BETWEEN INTERVAL 1 MINUTE PRECEDING AND INTERVAL 2 MINUTES "
        "PRECEDING. Hint: begin it before it ends"),
    ),
    (
        "ROWS BETWEEN CURRENT ROW AND CURRENT ROW",
        ("has a frame of the current row alone; got ROWS BETWEEN CURRENT ROW AND CURRENT ROW. Hint: write the value "
        "itself"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("frame", "message"), OTHER_FRAMES, ids=[frame for frame, _ in OTHER_FRAMES])
def test_a_frame_that_cannot_be_kept_is_refused_with_what_can(frame: str, message: str) -> None:
    found = said(sql(f"count(*) OVER (PARTITION BY user ORDER BY time {frame})"))

    assert [f'feature "feature_0" {message}'] == [text.split(": ", 1)[1] for text in found]


def test_every_aggregate_of_duckdb_is_computed_or_refused_with_what_can_be_written() -> None:
    inner = {"combine_aggr", "decimal_average", "variant_group_object", "lttb"}
    parsed_as_others = {"first", "last"}
    with engine() as connection:
        found = connection.sql("SELECT function_name FROM duckdb_functions() WHERE function_type = 'aggregate'")
        known = {name for (name,) in found.fetchall()}

    assert known - inner - parsed_as_others <= WINDOWED.keys() | INSTEAD.keys()


@pytest.mark.parametrize("name", sorted(INSTEAD))
def test_every_other_function_of_windows_is_refused_with_what_can_be_written(name: str) -> None:
    found = said(sql(f"{name}(price) OVER ({WINDOW})"))

    assert [text.split("; ", 1)[1] for text in found] == [f"got {name}. Hint: {INSTEAD[name]}"]


REACHING = [
    (
        {"transformation": "price", "resolution": "5m"},
        "has a resolution that no window takes. Hint: take it out: only windows of a duration have one",
    ),
    (
        {"transformation": f"median(price) OVER ({WINDOW})", "dtype": "float64", "resolution": "1m"},
        ("has a resolution, but median needs every value. Hint: write approx_quantile(…, 0.5), or leave `resolution:` out "
        "for it"),
    ),
    (
        {"transformation": f"mode(price) OVER ({WINDOW})", "resolution": "1m"},
        "has a resolution, but mode needs every value. Hint: leave `resolution:` out for it",
    ),
    (
        {"transformation": "lag(price) OVER (PARTITION BY user ORDER BY time)", "over": "[1h]"},
        ("has over:, but no window without a frame of its own. Hint: write OVER (PARTITION BY user ORDER BY "
        "event_timestamp), and over: gives it each duration"),
    ),
    (
        {"transformation": f"count(*) OVER ({WINDOW})", "over": "[1h]"},
        ("has over:, but no window without a frame of its own. Hint: write OVER (PARTITION BY user ORDER BY "
        "event_timestamp), and over: gives it each duration"),
    ),
    (
        {"transformation": "1", "source": "[clicks, odd]"},
        "joins streams with different keys; got user of clicks, flag of odd. Hint: join streams of one key",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "message"), REACHING, ids=[str(keys) for keys, _ in REACHING])
def test_what_a_definition_cannot_have_is_refused(keys: dict[str, str], message: str) -> None:
    assert said(keys)[0].split('" ', 1)[1] == message


LAMBDA = "names a column inside a lambda whose parameter has the name of something in it"
COLUMNS_REFUSED = [
    ('{ratio: "price /"}', 'column "ratio" has SQL that does not parse; got syntax error at or near "]". Hint: check the SQL there'),
    ("{c: a, a: b, b: a}", 'column "a" depends on itself; got a, b. Hint: take one of them out of the circle'),
    ("{other: prise + 1}", 'column "other" names an unknown column; got prise. Hint: did you mean price?'),
    ("{before: lag(price) OVER usr}", 'column "before" names an unknown window; got usr. Hint: `windows:` has nothing'),
    (
        "{more: price + 1, total: 'list_sum([more + price for price in [1, 2]])'}",
        f'column "total" {LAMBDA}; got more of price. Hint: rename the lambda\'s parameter price',
    ),
    (
        f'{{total: "sum(price) OVER ({WINDOW})"}}',
        ('column "total" has a window that is not lag. Hint: write the window in the definitions: columns are of one event, '
        "and lag of earlier ones"),
    ),
    ("{page: lower(user)}", 'column "page" has the name of a field of the stream. Hint: rename it: clicks has page'),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "message"), COLUMNS_REFUSED, ids=[columns for columns, _ in COLUMNS_REFUSED])
def test_a_column_that_cannot_be_one_is_refused_once_whoever_uses_it(columns: str, message: str) -> None:
    name = message.split('"')[1]
    uses = [{"transformation": text} for text in (name, f"{name} + 1", f"sum({name}) OVER ({WINDOW})")]

    found = said(*uses, more=f"columns: {columns}")

    assert [text.split(": ", 1)[1] for text in found] == [message]


def test_a_lambda_s_parameter_does_not_get_into_a_column() -> None:
    found = said(sql("list_sum([more + price for price in [1, 2]])"), more="columns: {more: price + 1}")

    hint = "Hint: rename the lambda's parameter price"
    assert found == [f'features.yaml:6 (column 11): feature "feature_0" {LAMBDA}; got more of price. {hint}']


def test_all_circles_and_unknown_names_of_columns_are_said_at_once_each_in_its_place() -> None:
    columns = ["columns:", "  a: b", "  b: a", "  c: nosuch + prise", "  d: e", "  e: d + c"]

    assert [text.split(". Hint")[0] for text in said({}, more="\n".join(columns))] == [
        'features.yaml:10 (column 1): column "c" names an unknown column; got nosuch',
        'features.yaml:10 (column 10): column "c" names an unknown column; got prise',
        'features.yaml:8: column "a" depends on itself; got a, b',
        'features.yaml:11: column "d" depends on itself; got d, e',
    ]


def test_a_column_over_a_window_that_was_refused_is_not_refused_again() -> None:
    found = said(sql("before"), windows={"one": "PARTITION user"}, more="columns: {before: lag(price) OVER one}")

    assert [text.split(": ")[1].split(" has")[0] for text in found] == ['window "one"']


def test_a_column_of_another_entity_than_its_windows_is_refused() -> None:
    other = 'columns: {before: "lag(price) OVER (PARTITION BY page ORDER BY time)"}'

    [found] = said(sql(f"sum(before) OVER ({WINDOW})"), more=other)

    assert "has windows with different PARTITION BY; got user and page" in found


def test_months_are_refused_because_they_differ_in_length() -> None:
    [found] = said(sql("count(*) OVER (PARTITION BY user ORDER BY time RANGE INTERVAL 1 MONTH PRECEDING)"))

    assert found.endswith("has a frame of months; got INTERVAL 1 MONTH. Hint: write days: months differ in length")


TYPES = [
    ("share", "int64", "got DOUBLE. Hint: write dtype: float64, or CAST(… AS BIGINT) in the transformation"),
    ("price", "string", "got BIGINT. Hint: write dtype: int64, or CAST(… AS VARCHAR) in the transformation"),
    ("price", "int32", "got BIGINT. Hint: write dtype: int64, or CAST(… AS INTEGER) in the transformation"),
    ("tags", "string", "got VARCHAR[]. Hint: write dtype: array(string), or CAST(… AS VARCHAR) in the transformation"),
    ("{'a': price}", "string", "got STRUCT(a BIGINT). Hint: write CAST(… AS VARCHAR) in the transformation"),
    (f"avg(price) OVER ({WINDOW})", "int64", "got DOUBLE. Hint: write dtype: float64, or CAST(… AS BIGINT) in the transformation"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "dtype", "message"), TYPES, ids=[f"{text} as {dtype}" for text, dtype, _ in TYPES])
def test_a_type_that_does_not_fit_the_dtype_is_refused_with_both_ways_out(text: str, dtype: str, message: str) -> None:
    expected = f'features.yaml:6: feature "feature_0" has dtype {dtype}, but another type comes out; {message}'

    assert [expected] == said(sql(text, dtype))


NOT_FOLDED = [
    ("min(tags)", "min of a type that windows do not fold; got VARCHAR[]. Hint: cast it, such as min(CAST(… AS VARCHAR))"),
    ("sum(NULL)", "sum of a type that windows do not fold; got NULL. Hint: cast it, such as sum(CAST(… AS BIGINT))"),
    ("count(DISTINCT NULL)", "count of a type that windows do not fold; got NULL. Hint: cast it, such as count(CAST(… AS VARCHAR))"),
    ("avg(time)", "avg of a type that windows do not fold; got TIMESTAMP WITH TIME ZONE. Hint: write avg(epoch(…)), in seconds"),
    ("median(time)", "median of a type that windows do not fold; got TIMESTAMP WITH TIME ZONE. Hint: write median(epoch(…)), in seconds"),
    ("arg_max(price, tags)", "arg_max of a type that windows do not fold; got VARCHAR[]. Hint: cast it, such as arg_max(CAST(… AS VARCHAR))"),
    ("last_value(price::HUGEINT)", "last_value of a type that windows do not keep; got HUGEINT. Hint: cast it, such as last_value(CAST(… AS BIGINT))"),
    ("last_value([price::UHUGEINT])", "last_value of a type that windows do not keep; got UHUGEINT[]. Hint: cast it, such as last_value(CAST(… AS BIGINT))"),
    ("arg_min(CAST('101' AS BIT), price)", "arg_min of a type that windows do not keep; got BIT. Hint: cast it, such as arg_min(CAST(… AS VARCHAR))"),
    ("lag(CAST(page AS TIMETZ))", "lag of a type that windows do not keep; got TIME WITH TIME ZONE. Hint: cast it, such as lag(CAST(… AS VARCHAR))"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), NOT_FOLDED, ids=[call for call, _ in NOT_FOLDED])
def test_a_type_that_windows_do_not_fold_is_refused(call: str, message: str) -> None:
    found = said(sql(f"CAST({call} OVER ({WINDOW}) AS VARCHAR)", "string"))

    assert found == [f'features.yaml:6 (column 6): feature "feature_0" has {message}']


def test_the_place_is_counted_in_characters_and_lines_of_the_transformation() -> None:
    found = said(sql("'é' || page ||\n  nosuch"))

    assert found[0].startswith('features.yaml:6 (line 2, column 3): feature "feature_0" names an unknown column')


def test_a_problem_inside_a_named_window_is_placed_there() -> None:
    found = said(sql("count(*) OVER w"), windows={"w": f"PARTITION BY usr ORDER BY time {FRAME}"})

    assert found == [
        'features.yaml:8 (column 14): feature "feature_0" names an unknown column; got usr. Hint: did you mean user?'
    ]


def test_the_nearest_named_window_is_offered() -> None:
    found = said(sql("1 + count(*) OVER user_1h"), windows={"user_1hr": WINDOW})

    assert found == [
        (
            'features.yaml:6 (column 19): feature "feature_0" names an unknown window; got user_1h. '
            "Hint: did you mean user_1hr?"
        )
    ]


def test_a_named_window_that_is_not_sql_is_refused_once_whoever_uses_it() -> None:
    hint = "Hint: write PARTITION BY … ORDER BY event_timestamp RANGE BETWEEN … PRECEDING AND CURRENT ROW"
    windows = {"one": "PARTITION user", "two": f"{WINDOW}) + count(*) OVER ({WINDOW}"}

    assert [
        f'features.yaml:12 (column 11): window "one" has SQL that does not parse; got syntax error at or near "user". {hint}',
        f'features.yaml:13: window "two" is more than a window. {hint}',
    ] == said(sql("count(*) OVER one"), sql("sum(price) OVER one + 1"), windows=windows)


def test_all_problems_of_all_features_are_said_at_once() -> None:
    found = said(
        sql("nosuch(prise) + now()"),
        {"source": "click"},
        {"source": "clicks", "transformation": "sum(pric) OVER (PARTITION BY usr ORDER BY price)"},
        more="views: {nothing: {ttl: 1h}}",
    )

    assert [(text.split(": ")[0], text.split("; got ")[1].split(". Hint")[0]) for text in found] == [
        ("features.yaml:6 (column 1)", "nosuch"),
        ("features.yaml:6 (column 8)", "prise"),
        ("features.yaml:6 (column 17)", "now"),
        ("features.yaml:9", "'click'"),
        ("features.yaml:14 (column 5)", "pric"),
        ("features.yaml:14 (column 30)", "usr"),
        ("features.yaml:14 (column 43)", "price"),
    ]


def test_an_unknown_source_is_refused_with_the_nearest() -> None:
    assert said({"source": "click"}) == [
        "features.yaml:5: feature \"feature_0\" has an unknown source; got 'click'. Hint: did you mean clicks?"
    ]


def test_columns_that_differ_only_in_case_are_refused() -> None:
    assert said({"source": "odd", "transformation": "1"}) == [
        (
            'features.yaml:5: stream "odd" has columns that differ only in case; got Page, page. Hint: rename one: SQL '
            "cannot tell them apart"
        )
    ]


def test_one_view_has_one_stream_and_one_entity() -> None:
    by_page = f"count(*) OVER (PARTITION BY page ORDER BY time {FRAME})"

    assert said(
        {"view": "mine"},
        {"transformation": by_page, "view": "mine"},
        {"source": "views", "transformation": "1", "view": "mine"},
    ) == [
        (
            'features.yaml:12: feature "feature_1" shares view mine with feature_0, but neither stream nor entity may differ there; '
            "got clicks by page, not clicks by user. Hint: give it another `view:`"
        ),
        (
            'features.yaml:17: feature "feature_2" shares view mine with feature_0, but neither stream nor entity may differ there; '
            "got views by user, not clicks by user. Hint: give it another `view:`"
        ),
    ]


def test_options_for_a_view_that_no_feature_makes_are_refused() -> None:
    found = said({}, more="views: {clicks_by_usr: {ttl: 1h}}")

    assert found == [
        'features.yaml:7: view "clicks_by_usr" has options but no feature. Hint: did you mean clicks_by_user?'
    ]


@pytest.mark.parametrize("name", ["user", "event_timestamp", "created"])
def test_a_feature_cannot_have_the_name_of_one_of_the_views_own_columns(name: str) -> None:
    assert [
        (
            f'features.yaml:3: feature "{name}" has the name of one of the view\'s own columns; got {name}. Hint: rename the '
            "feature"
        )
    ] == said({"name": name})
