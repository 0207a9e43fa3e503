"""Prefect flows: when and where the stages run. No mathematics."""

import logging
import os

# Prefect's own settings, unless the user's environment says otherwise; read when prefect is imported.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
# A proxy for the world is none for the servers of this machine.
for _name in ("no_proxy", "NO_PROXY"):
    os.environ[_name] = ",".join(filter(None, (os.environ.get(_name), "127.0.0.1,localhost")))
# The live view and one last line tell a person what happened; set INFO where a worker keeps logs.
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
# On a busy machine Prefect reports, at exit and after our last line, that it still sends events.
logging.getLogger("EventsWorker").setLevel(logging.ERROR)
