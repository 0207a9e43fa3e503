"""Stages (data, teacher, judge, distill, evaluate, analyse, report), other commands, and what they share."""

import getpass
import os

# Read by OpenMP when torch loads it: waiting threads must not spin on cores that others need.
os.environ.setdefault("GOMP_SPINCOUNT", "0")
# A proxy for the world is none for the servers of this machine: Prefect's, MLflow's, S3's.
for _name in ("no_proxy", "NO_PROXY"):
    _hosts = [host for host in os.environ.get(_name, "").split(",") if host]
    os.environ[_name] = ",".join(dict.fromkeys([*_hosts, "127.0.0.1", "localhost"]))
# DVC asks for this user's name, and a container's user may have none.
try:
    getpass.getuser()
except (KeyError, OSError):
    os.environ["USER"] = str(os.getuid())
