"""Prefect flows: when and where the stages run. No mathematics."""

import logging
import os

import tasks as _tasks  # noqa: F401  # for what it sets in the environment, before prefect is imported

# Prefect's own settings, unless the user's environment says otherwise; read when prefect is imported.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
# The live view and one last line tell a person what happened; set INFO where a worker keeps logs.
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
# On a busy machine Prefect reports, at exit and after our last line, that it still sends events.
logging.getLogger("EventsWorker").setLevel(logging.ERROR)
