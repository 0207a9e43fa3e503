"""``python -m infra.automations``: what Prefect's server does by itself, kept as this file says.

One automation: a flow run whose heartbeats have stopped or never come, since its machine lost power or its
network, is marked as crashed. A run marks its own end otherwise, and one that cannot would be "running" for
ever, and a grid would wait for it.
"""

import os
from datetime import timedelta

import httpx
from prefect.automations import AutomationCore, EventTrigger, Posture
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.events import ResourceSpecification

from ferd.errors import FerdError
from infra.passwords import LOGIN
from infra.settings import LEAST
from tasks.command import as_command, command_line, without_password

TAKEN = "prefect.flow-run.Pending"  # by a worker, whose process sends heartbeats when it has begun
HEARTBEAT = "prefect.flow-run.heartbeat"  # of a run every three minutes: PREFECT_FLOWS_HEARTBEAT_FREQUENCY
ENDS = ("Completed", "Failed", "Crashed", "Cancelled")
NAME = "Crash silent flow runs"
SETTING = "SILENT_RUN_SECONDS"
SHORTEST_SECONDS = LEAST[SETTING]


def silent_runs(seconds: int) -> AutomationCore:
    """Marks a run as crashed that has sent no heartbeat for so long."""
    return AutomationCore(
        name=NAME,
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            after={TAKEN, HEARTBEAT},
            expect={HEARTBEAT, *(f"prefect.flow-run.{state}" for state in ENDS)},
            threshold=1,
            within=timedelta(seconds=seconds),
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed",
                state=StateType.CRASHED,
                force=False,
                message=f"no heartbeat for {seconds} s: its machine is gone, or does not reach Prefect's "
                "server; ask for it again",
            )
        ],
    )


def declare(automation: AutomationCore) -> None:
    """Create it, or bring the one of its name up to date."""
    with get_client(sync_client=True) as client:
        kept = client.read_automations_by_name(automation.name)
        if kept:
            client.update_automation(kept[0].id, automation)
        else:
            client.create_automation(automation)


def main() -> None:
    """Declare it at PREFECT_API_URL, with SILENT_RUN_SECONDS."""
    command_line(__doc__).parse_args()
    with as_command("automations"):
        missing = [name for name in ("PREFECT_API_URL", SETTING) if not os.environ.get(name)]
        if missing:
            raise FerdError(f"{' and '.join(missing)} not set; `python -m infra.stack deploy` sets both")
        seconds = os.environ[SETTING]
        if not (seconds.isascii() and seconds.isdecimal() and int(seconds) >= SHORTEST_SECONDS):
            raise FerdError(f"{SETTING}={seconds} is not {SHORTEST_SECONDS} seconds or more; correct it")
        try:
            declare(silent_runs(int(seconds)))
        except httpx.HTTPError as error:
            server = without_password(os.environ["PREFECT_API_URL"])
            raise FerdError(f"{server}: {error}; correct PREFECT_API_URL or {LOGIN}") from None


if __name__ == "__main__":
    main()
