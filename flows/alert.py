"""Tells people that a flow run failed, by Prefect's own notification blocks.

``python -m flows.alert`` sends a test, by which one sees that messages arrive before a night fails.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow
from prefect.utilities.urls import url_for

from ferd.errors import FerdError
from tasks.command import as_command, command_line

WEBHOOK = "FERD_ALERT_WEBHOOK"  # an address that takes {"text": ...}, as Slack's and Mattermost's do
PARAMETER = "alert_block"  # of the flow: the name of a block


def check(block: str | None) -> None:
    """Refuse an address or a block that cannot be used, before anything is computed.

    Raises:
        FerdError: the address is none, there is no block of that name, or it cannot send messages.
    """
    if (address := os.environ.get(WEBHOOK)) and not address.startswith(("http://", "https://")):
        raise FerdError(f"{WEBHOOK}: does not begin with https:// or http://; correct it")
    if block is None:
        return
    if "/" not in block:
        raise FerdError(f"{PARAMETER}: {block!r} is not type/name, such as sendgrid-email/team")
    try:
        found = Block.load(block)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise FerdError(f"{PARAMETER}: {reason}; make it in Prefect's page, under Blocks") from None
    if not isinstance(found, NotificationBlock):
        raise FerdError(f"{PARAMETER}: {block} sends no messages; name a notification block")


def alert(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A flow's ``on_failure``: say what failed, by every way that is set up; one that fails is named."""
    body = "\n".join(filter(None, (state.message, url_for(flow_run))))
    send(flow_run.parameters.get(PARAMETER), body, f"{flow.name} {flow_run.name}: {state.name}")


def send(block: str | None, body: str, subject: str) -> dict[str, bool]:
    """By every way that is set up; -> of each whether it took the message, which is printed where not."""
    took = {}
    for name, load in _ways(block).items():
        try:
            load().notify(body, subject=subject)
            took[name] = True
        except Exception as error:  # whatever is wrong with it, the others and the run's state stand
            # the address is a secret, and in the message of some errors
            print(f"alert: {name} did not take the message: {type(error).__name__}", flush=True)
            took[name] = False
    return took


def _ways(block: str | None) -> dict[str, Callable[[], Any]]:
    ways: dict[str, Callable[[], Any]] = {}
    if address := os.environ.get(WEBHOOK):
        message = {"text": "{{subject}}\n{{body}}"}
        ways[WEBHOOK] = lambda: CustomWebhookNotificationBlock(
            name="ferd", url=address, json_data=message, headers=None, cookies=None
        )
    if block:
        ways[block] = lambda: Block.load(block)
    return ways


def main() -> None:
    """Send a test by every way; fail where there is none, or one does not take it."""
    parser = command_line("Send a test of the alerts that a night gives when it fails.")
    parser.add_argument("--alert-block", metavar="TYPE/NAME", help="a notification block, beside the webhook")
    block = parser.parse_args().alert_block
    with as_command("alert"):
        check(block)
        took = send(block, "A test: messages arrive.", "ferd")
        if not took:
            raise FerdError(f"nobody to tell; set {WEBHOOK}, or name an --alert-block")
        for name in (name for name, taken in took.items() if taken):
            print(f"alert: {name} took the message")
        sys.exit(not all(took.values()))


if __name__ == "__main__":
    main()
