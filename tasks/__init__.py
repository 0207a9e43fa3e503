"""Stages (data, teacher, judge, distill, evaluate, analyse, report), other commands, and what they share."""

import getpass
import os

# Read by OpenMP when torch loads it: waiting threads must not spin on cores that others need.
os.environ.setdefault("GOMP_SPINCOUNT", "0")
# A proxy for the world is none for the servers of this machine: Prefect's, MLflow's, S3's. Most programs read
# the small name first; * is every host, where nothing stands beside it.
_direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
if _direct.strip() != "*":
    _hosts = [host.strip() for host in _direct.split(",") if host.strip()]
    _direct = ",".join(dict.fromkeys([*_hosts, "127.0.0.1", "localhost"]))
os.environ.update({"no_proxy": _direct, "NO_PROXY": _direct})
# DVC asks for this user's name, and a container's user may have none.
try:
    getpass.getuser()
except (KeyError, OSError):
    os.environ["USER"] = str(os.getuid())
