"""Grafana's own form of a dashboard: panels, their places, and what is around them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SCHEMA_VERSION = 39
TAG = "freshet"
WIDTH = 24
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

Thresholds = Sequence[tuple[float, str]]
"""From which value on which colour holds; below the first it is green, unless that starts at minus infinity."""


@dataclass(frozen=True)
class Panel:
    """One panel: how it looks, and how wide and high it is on a grid of 24."""

    look: Mapping[str, Any]
    width: int
    height: int


@dataclass(frozen=True)
class Section:
    """Panels below one heading, set from left to right."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Query:
    """What is asked of Prometheus, and what a line of the answer is called."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Column:
    """One number of a table, by the labels that its rows have in common."""

    title: str
    expr: str
    unit: str = "short"
    thresholds: Thresholds = ()
    texts: Mapping[int, str] = field(default_factory=dict)


def stat(
    title: str,
    description: str,
    query: Query,
    unit: str = "short",
    thresholds: Thresholds = (),
    texts: Mapping[int, str] | None = None,
    *,
    width: int = 4,
    decimals: int | None = None,
) -> Panel:
    """Return a panel of the values as of now, coloured; an exporter that is gone leaves none, not its last one."""
    reduced = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    defaults = {**_defaults(unit, thresholds, texts or {}), "noValue": "no data"}
    if decimals is not None:
        defaults["decimals"] = decimals
    options = {
        "colorMode": "background",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "reduceOptions": reduced,
        "textMode": "auto",
        "wideLayout": True,
    }
    look = _look("stat", title, description, [_instant(query)], defaults, options)
    return Panel(look, width, 4)


def timeseries(
    title: str,
    description: str,
    queries: Iterable[Query],
    unit: str = "short",
    thresholds: Thresholds = (),
    *,
    width: int = 12,
) -> Panel:
    """Return a panel of lines over time; thresholds are lines, too."""
    custom = {
        "drawStyle": "line",
        "fillOpacity": 8,
        "lineWidth": 1,
        "showPoints": "never",
        "spanNulls": False,
        "thresholdsStyle": {"mode": "dashed" if thresholds else "off"},
    }
    defaults = {**_defaults(unit, thresholds, {}), "custom": custom, "min": 0, "color": {"mode": "palette-classic"}}
    options = {
        "legend": {"calcs": ["lastNotNull", "max"], "displayMode": "table", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return Panel(_look("timeseries", title, description, map(_range, queries), defaults, options), width, 8)


def state_timeline(
    title: str, description: str, query: Query, texts: Mapping[int, str], colours: Thresholds, *, width: int = 24
) -> Panel:
    """Return a panel of states over time, a row for each line; a state is a number with a text."""
    defaults = {**_defaults("short", colours, texts), "custom": {"fillOpacity": 80, "lineWidth": 0, "spanNulls": False}}
    options = {
        "alignValue": "left",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "mergeValues": True,
        "rowHeight": 0.9,
        "showValue": "auto",
        "tooltip": {"mode": "single", "sort": "none"},
    }
    return Panel(_look("state-timeline", title, description, [_range(query)], defaults, options), width, 8)


def heatmap(title: str, description: str, expr: str, unit: str, *, width: int = 12) -> Panel:
    """Return a panel of a histogram's buckets over time; `expr` gives their increase by `le`."""
    target = {**_range(Query(expr, "{{le}}")), "format": "heatmap"}
    options = {
        "calculate": False,
        "cellGap": 1,
        "color": {
            "exponent": 0.5,
            "fill": "dark-orange",
            "mode": "scheme",
            "reverse": False,
            "scale": "exponential",
            "scheme": "Oranges",
            "steps": 64,
        },
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "tooltip": {"mode": "single", "showColorScale": False, "yHistogram": False},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": unit},
    }
    return Panel(_look("heatmap", title, description, [target], {}, options), width, 8)


def table(title: str, description: str, columns: Sequence[Column], *, width: int = 24, height: int = 8) -> Panel:
    """Return a panel of numbers as of now: a row for each set of labels, which all columns share."""
    targets = [{**_instant(Query(column.expr)), "format": "table"} for column in columns]
    names = [f"Value #{_letter(index)}" for index in range(len(columns))]
    if len(columns) == 1:
        names = ["Value"]
    renamed = {name: column.title for name, column in zip(names, columns, strict=True)}
    transformations = [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": {"Time": True}, "indexByName": {}, "renameByName": renamed}},
    ]
    overrides = [
        {
            "matcher": {"id": "byName", "options": column.title},
            "properties": [{"id": name, "value": value} for name, value in _cell(column).items()],
        }
        for column in columns
    ]
    options = {"cellHeight": "sm", "footer": {"show": False}, "showHeader": True}
    defaults = {"custom": {"align": "auto", "cellOptions": {"type": "auto"}, "filterable": False}, "noValue": ""}
    look = _look("table", title, description, targets, defaults, options)
    look["fieldConfig"]["overrides"] = overrides
    return Panel({**look, "transformations": transformations}, width, height)


def text(title: str, description: str, content: str, *, width: int = 24, height: int = 8) -> Panel:
    """Return a panel of Markdown."""
    options = {"code": {"language": "plaintext"}, "content": content, "mode": "markdown"}
    return Panel({"type": "text", "title": title, "description": description, "options": options}, width, height)


def dashboard(
    uid_: str, title: str, description: str, tags: Sequence[str], sections: Sequence[Section], firing: str
) -> dict[str, Any]:
    """Return a whole dashboard; `firing` asks for the alerts that are drawn into every graph."""
    return {
        "uid": uid_,
        "title": title,
        "description": description,
        "tags": [TAG, *tags],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_datasource()]},
        "annotations": {"list": [_annotation(firing)]},
        "links": [_link()],
        "panels": _placed(sections),
    }


def _placed(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """Set panels on the grid, line by line; a line is as high as its highest panel."""
    placed: list[dict[str, Any]] = []

    def put(look: Mapping[str, Any], x: int, y: int, width: int, height: int) -> None:
        grid = {"x": x, "y": y, "w": width, "h": height}
        placed.append({"id": len(placed) + 1, **look, "gridPos": grid})

    y = 0
    for section in sections:
        put({"type": "row", "title": section.title, "collapsed": False, "panels": []}, 0, y, WIDTH, 1)
        x, y, height = 0, y + 1, 0
        for panel in section.panels:
            if x + panel.width > WIDTH:
                x, y, height = 0, y + height, 0
            put(panel.look, x, y, panel.width, panel.height)
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return placed


def _look(
    kind: str,
    title: str,
    description: str,
    targets: Iterable[Mapping[str, Any]],
    defaults: Mapping[str, Any],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "targets": [{"refId": _letter(index), **target} for index, target in enumerate(targets)],
        "fieldConfig": {"defaults": dict(defaults), "overrides": []},
        "options": dict(options),
    }


def _letter(index: int) -> str:
    return chr(ord("A") + index)


def _instant(query: Query) -> dict[str, Any]:
    return {**_target(query), "instant": True, "range": False}


def _range(query: Query) -> dict[str, Any]:
    return {**_target(query), "instant": False, "range": True}


def _target(query: Query) -> dict[str, Any]:
    return {
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
    }


def _defaults(unit: str, thresholds: Thresholds, texts: Mapping[int, str]) -> dict[str, Any]:
    return {
        "unit": unit,
        "color": {"mode": "thresholds"},
        "mappings": _mappings(texts),
        "thresholds": {"mode": "absolute", "steps": _steps(thresholds)},
    }


def _steps(thresholds: Thresholds) -> list[dict[str, Any]]:
    """Return Grafana's steps, of which the first has no bound."""
    first, rest = "green", list(thresholds)
    if rest and rest[0][0] == float("-inf"):
        first, rest = rest[0][1], rest[1:]
    return [{"color": first, "value": None}, *({"color": colour, "value": value} for value, colour in rest)]


def _mappings(texts: Mapping[int, str]) -> list[dict[str, Any]]:
    options = {f"{value}": {"index": index, "text": said} for index, (value, said) in enumerate(texts.items())}
    return [{"type": "value", "options": options}] if options else []


def _cell(column: Column) -> dict[str, Any]:
    cell: dict[str, Any] = {"unit": column.unit}
    if column.texts:
        cell["mappings"] = _mappings(column.texts)
    if column.thresholds:
        cell["thresholds"] = {"mode": "absolute", "steps": _steps(column.thresholds)}
        cell["custom.cellOptions"] = {"type": "color-background", "mode": "basic"}
    return cell


def _datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
        "refresh": 1,
        "regex": "",
        "skipUrlSync": False,
    }


def _annotation(firing: str) -> dict[str, Any]:
    return {
        "name": "alerts",
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": "red",
        "expr": firing,
        "step": "10s",
        "titleFormat": "{{alertname}}",
        "tagKeys": "severity",
    }


def _link() -> dict[str, Any]:
    return {
        "title": "Freshet",
        "type": "dashboards",
        "tags": [TAG],
        "asDropdown": False,
        "icon": "external link",
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "tooltip": "",
        "url": "",
    }
