"""A chart view of an MLflow experiment that a link opens: a parameter across, a metric up, a point a run.

MLflow keeps a view that somebody shares as JSON in a tag of the experiment; a link names it by its key.
Tried with MLflow 3.17; a version that does not know the view shows the experiment's own charts.
"""

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

TAG = "mlflow.sharedViewState."
METRICS = ("robust/pgd20/worst", "robust/pgd20/average", "robust/clean/worst", "robust/clean/average")
GAMMA = "gamma"  # the view's key, the parameter across, and the value of the runs' tag
ABLATION = "ablation"  # the runs' tag


def ablation_of(method: str) -> str | None:
    """The comparison that a method is a point of: the full method at a value of γ, ``no-utae`` at γ = 0."""
    return GAMMA if method in ("ferd", "no-utae") or method.startswith("gamma-") else None


def save_gamma_view(client: Any, experiment: str) -> str:
    """The view of the γ ablation; -> its link, to be appended to the server's address."""
    return save_view(client, experiment, GAMMA, f"tags.{ABLATION} = '{GAMMA}'", GAMMA)


def save_view(
    client: Any, experiment: str, key: str, runs: str, parameter: str, metrics: Sequence[str] = METRICS
) -> str:
    """Keep a view of the ``runs`` (a search filter) with a chart a metric; -> its link, as above."""
    state = {
        "searchFilter": runs,
        "orderByKey": f"params.`{parameter}`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [f"params.`{parameter}`"],
        "compareRunCharts": [_chart(key, parameter, metric) for metric in metrics],
        "compareRunSections": [
            {"uuid": key, "name": f"over {parameter}", "display": True, "isReordered": True, "cardsPerRow": 2}
        ],
        "isAccordionReordered": True,  # the section stays above MLflow's own
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "hideEmptyCharts": True,
    }
    client.set_experiment_tag(experiment, f"{TAG}{key}", json.dumps(state, separators=(",", ":")))
    query = urlencode({"viewStateShareKey": key, "compareRunsMode": "CHART"})
    return f"/#/experiments/{experiment}/runs?{query}"


def _chart(section: str, parameter: str, metric: str) -> dict[str, Any]:
    return {
        "type": "SCATTER",
        "uuid": f"{section} {metric}",
        "metricSectionId": section,
        "displayName": metric,
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": 100,
        "xaxis": {"key": parameter, "type": "PARAM"},
        "yaxis": {"key": metric, "type": "METRIC"},
    }
