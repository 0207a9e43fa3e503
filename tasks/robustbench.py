"""Models of RobustBench's zoo, by its own client: an optional extra."""

import importlib
import sys
from pathlib import Path

from ferd.errors import FerdError, Unreachable
from tasks.download import put_in_place


def fetch_model(location: str, target: Path, checksum: str) -> None:
    """An L∞ model by its name, for CIFAR-10 or, behind ``cifar100/``, CIFAR-100, unless it is there already.

    Raises:
        FerdError: RobustBench is not installed, has no such model, or it cannot be downloaded.
    """
    put_in_place(lambda part: _download(location, part), f"robustbench {location}", target, checksum)


def _download(location: str, part: Path) -> None:
    for module in ("pyautoattack", "pyautoattack.state"):  # RobustBench 1.1 imports it by its former name
        sys.modules.setdefault(module.removeprefix("py"), importlib.import_module(module))
    try:
        from robustbench.model_zoo import model_dicts
        from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
        from robustbench.utils import download_gdrive_new
    except ImportError as error:
        raise FerdError(
            f"weights.source robustbench: {error}; `pip install -c constraints.txt -e '.[robustbench]'`"
        ) from None
    sets = {"": BenchmarkDataset.cifar_10, "cifar100": BenchmarkDataset.cifar_100}
    prefix, _, name = location.rpartition("/")
    models = model_dicts[sets[prefix]][ThreatModel.Linf] if prefix in sets else {}
    file_id = models.get(name, {}).get("gdrive_id")
    if not isinstance(file_id, str):
        raise FerdError(
            f"weights.location: RobustBench has no model of one file by the name {location!r} among its Linf "
            "models; correct it (cifar100/NAME for CIFAR-100)"
        )
    try:
        download_gdrive_new(file_id, part)
    except Exception as error:  # gdown and requests each raise their own
        part.unlink(missing_ok=True)
        raise Unreachable(f"robustbench {location}: {' '.join(str(error).split())}; run again") from None
