"""The Grafana dashboard as code: writes dashboards/engineroom.json of panels.yaml.

Every query is of series in docs/reference/metrics.md or of deploy/prometheus/rules/recording.yml; a
test holds it to that.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_HERE = Path(__file__).resolve().parent
TARGET = _HERE / "dashboards" / "engineroom.json"
_WIDTH = 24
_SOURCE = {"type": "prometheus", "uid": "engineroom"}


@dataclass(frozen=True)
class Panel:
    """One panel, see the head of panels.yaml."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    quiet: bool = False
    optional: bool = False
    description: str = ""

    def texts(self) -> dict[str, str]:
        """The queries as Prometheus is asked them, by legend."""
        zero = " or vector(0)" if self.quiet else ""
        return {legend: f"{text}{zero}" for legend, text in self.queries.items()}


def rows() -> dict[str, tuple[Panel, ...]]:
    """The panels by the title of their row."""
    read = yaml.safe_load((_HERE / "panels.yaml").read_text())
    return {title: tuple(Panel(**each) for each in row) for title, row in read.items()}


def queries(optional: bool = True) -> list[tuple[str, str]]:
    """Every query, with the title of its panel; those of optional panels if they are asked for."""
    panels = [each for row in rows().values() for each in row if optional or not each.optional]
    return [(each.title, text) for each in panels for text in each.texts().values()]


def dashboard() -> dict[str, Any]:
    """What Grafana is given."""
    panels: list[dict[str, Any]] = []
    x = y = 0
    for title, row in rows().items():
        place = {"x": 0, "y": y, "w": _WIDTH, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": title, "gridPos": place})
        x, y = 0, y + 1
        for each in row:
            if x + each.width > _WIDTH:
                x, y = 0, y + each.height
            place = {"x": x, "y": y, "w": each.width, "h": each.height}
            panels.append({"id": len(panels) + 1, "gridPos": place, **_panel(each)})
            x += each.width
        y += row[-1].height
    variables = [
        _variable("model", "engineroom_model_ready"),
        _variable("replica", "engineroom_engine_state"),
    ]
    return {
        "uid": "engineroom",
        "title": "Engine Room",
        "tags": ["engineroom"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables},
        "panels": panels,
    }


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list"}} if panel.kind == "timeseries" else {},
        "targets": [
            {"refId": chr(65 + i), "datasource": _SOURCE, "expr": expr, "legendFormat": legend}
            for i, (legend, expr) in enumerate(panel.texts().items())
        ],
    }


def _variable(name: str, series: str) -> dict[str, Any]:
    query = f"label_values({series}, {name})"
    return {
        "name": name,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    }


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text())
