import subprocess
import sys
from pathlib import Path

SCRIPT = """
import importlib, pkgutil, sys
import ferd
names = [m.name for m in pkgutil.walk_packages(ferd.__path__, "ferd.")]
for name in names:
    importlib.import_module(name)
print(len(names), *({"prefect", "mlflow", "dvc", "boto3", "tasks", "flows"} & set(sys.modules)))
"""


def test_the_method_knows_nothing_of_the_pipeline_around_it():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    count, *pipeline = done.stdout.split()
    assert int(count) >= 20
    assert pipeline == []
