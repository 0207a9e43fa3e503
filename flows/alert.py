"""Tells people that a flow run failed, by Prefect's own notification blocks."""

import os
from collections.abc import Callable
from typing import Any

from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow
from prefect.utilities.urls import url_for

from ferd.errors import FerdError

WEBHOOK = "FERD_ALERT_WEBHOOK"  # an address that takes {"text": ...}, as Slack's and Mattermost's do
PARAMETER = "alert_block"  # of the flow: the name of a block


def check(block: str | None) -> None:
    """Refuse a block that cannot be used, before anything is computed.

    Raises:
        FerdError: there is none of that name, or it cannot send messages.
    """
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
    for name, load in _ways(flow_run.parameters.get(PARAMETER)).items():
        try:
            load().notify(body, subject=f"{flow.name} {flow_run.name}: {state.name}")
        except Exception as error:  # whatever is wrong with it, the others and the run's state stand
            # the address is a secret, and in the message of some errors
            print(f"alert: {name} did not take the message: {type(error).__name__}", flush=True)


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
