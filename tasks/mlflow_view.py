"""A chart view of an MLflow experiment that a link opens: a parameter across, a metric up, a point a run.

MLflow keeps a view that somebody shares as JSON in a tag of the experiment; a link names it by its key.
Tried with MLflow 3.17; a version that does not know the view shows the experiment's own charts.
"""

import json
import os
from typing import Any
from urllib.parse import urlencode, urlsplit

from tasks.command import without_password

HOST, PORT = "127.0.0.1", 5000  # of the server that `make ui` starts
TAG = "mlflow.sharedViewState."
METRICS = ("robust/pgd20/worst", "robust/pgd20/average", "robust/clean/worst", "robust/clean/average")
GAMMA = "gamma"  # the view's key, the parameter across, and the value of the runs' tag
ABLATION = "ablation"  # the runs' tag


def save_gamma_view(client: Any, experiment: str) -> str:
    """The view of the γ ablation; -> its link, to be appended to the server's address."""
    return save_view(client, experiment, GAMMA, f"tags.{ABLATION} = '{GAMMA}'", GAMMA)


def save_view(client: Any, experiment: str, key: str, runs: str, parameter: str) -> str:
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
        "compareRunCharts": [_chart(key, parameter, metric) for metric in METRICS],
        "compareRunSections": [
            {"uuid": key, "name": f"over {parameter}", "display": True, "isReordered": True, "cardsPerRow": 2}
        ],
        "isAccordionReordered": True,  # the section stays above MLflow's own
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsHiddenMode": "SHOWALL",  # MLflow draws the first ten alone
        "hideEmptyCharts": True,
    }
    client.set_experiment_tag(experiment, f"{TAG}{key}", json.dumps(state, separators=(",", ":")))
    query = urlencode({"viewStateShareKey": key, "compareRunsMode": "CHART"})
    return f"/#/experiments/{experiment}/runs?{query}"


def nightly_links(client: Any, experiment: str, sweep_id: str) -> dict[str, str]:
    """Links to a night's runs, by the tag, and to them beside the latest earlier run of each; see above."""
    tonight = f"tags.sweep_id = '{sweep_id}'"
    newest_first = ["attributes.start_time DESC"]
    runs = client.search_runs([experiment], tonight, order_by=newest_first)
    began = min((run.info.start_time for run in runs), default=0)
    compared = []
    for key, run in {run.data.tags["run_key"]: run for run in runs}.items():
        before = f"tags.run_key = '{key}' and attributes.start_time < {began}"
        earlier = client.search_runs([experiment], before, order_by=newest_first, max_results=1)
        compared += [found.info.run_id for found in (run, *earlier)]
    only = urlencode({"searchFilter": tonight})
    both = urlencode({"runs": json.dumps(compared), "experiments": json.dumps([experiment])})
    return {
        "tonight's runs": f"/#/experiments/{experiment}/runs?{only}",
        "beside the latest earlier ones": f"/#/compare-runs?{both}",
    }


def address() -> str:
    """Where a browser finds MLflow: its server without a password in the address, else ``make ui``'s.

    ``MLFLOW_UI_URL`` says it where that is another address than the one to write to.
    """
    server = urlsplit(os.environ.get("MLFLOW_UI_URL") or os.environ.get("MLFLOW_TRACKING_URI", ""))
    if server.scheme not in ("http", "https"):
        return f"http://{HOST}:{PORT}"
    return without_password(server.geturl()).rstrip("/")


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
