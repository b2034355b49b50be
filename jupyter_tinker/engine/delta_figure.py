"""A number for each layer of a model as a plotly heat map. Knows nothing of runs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from .tracing import layer_of

_OUTSIDE = "output"


def heat_map(values: Mapping[str, float], title: str, what: str) -> Any:
    """Modules by decoder layers, in the order of `values`, whose keys are paths of modules."""
    try:
        go: Any = import_module("plotly.graph_objects")
    except ImportError:
        raise ImportError("figures need plotly; install it beside the server") from None
    places = {path: _place(path) for path in values}
    columns = list(dict.fromkeys(layer for layer, _ in places.values()))
    rows = list(dict.fromkeys(module for _, module in places.values()))
    grid: list[list[float | None]] = [[None] * len(columns) for _ in rows]
    for path, (layer, module) in places.items():
        grid[rows.index(module)][columns.index(layer)] = values[path]
    figure = go.Figure(
        go.Heatmap(
            z=grid,
            x=columns,
            y=rows,
            colorscale="Viridis",
            colorbar={"title": {"text": what, "side": "right"}},
            hovertemplate="layer %{x}, %{y}: %{z:.4g}<extra></extra>",
        )
    )
    figure.update_layout(
        title=title,
        xaxis={"title": "layer", "type": "category"},
        yaxis={"type": "category", "autorange": "reversed"},
    )
    return figure


def _place(path: str) -> tuple[str, str]:
    """The layer's number, and the module in it."""
    layer, module = layer_of(path)
    return (layer.rpartition(".")[2], module) if layer else (_OUTSIDE, path)
