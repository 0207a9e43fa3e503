"""Stage ``sources``: the code behind each result, listed -> ``sources/``; see ``tasks.lineage``."""

from collections.abc import Iterable
from pathlib import Path

import yaml

from ferd.errors import FerdError
from ferd.files import atomic_write
from tasks.command import command_line
from tasks.lineage import STAGE, lists
from tasks.process import running


def main() -> None:
    """``python -m tasks.sources``."""
    command_line(__doc__).parse_args()
    with running(STAGE) as progress:
        progress.event("computing")  # without a place to compute in: other stages wait for these files
        made = lists()
        refuse_undeclared(made)
        for path, text in made.items():
            with atomic_write(path) as part:
                part.write_text(text, encoding="utf-8")


def refuse_undeclared(made: Iterable[Path], pipeline: Path = Path("dvc.yaml")) -> None:
    """DVC must have each list as an output of this stage: other stages may then depend on it.

    Raises:
        FerdError: one is not declared, as that of a new file of networks.
    """
    outs = yaml.safe_load(pipeline.read_text(encoding="utf-8"))["stages"][STAGE]["outs"]
    declared = {Path(path) for out in outs for path in ([out] if isinstance(out, str) else out)}
    for path in made:
        if path not in declared:
            raise FerdError(
                f"{pipeline}: the stage {STAGE} has no output {path}, so that a change of that code would "
                f"outdate nothing; add `- {path}: {{cache: false}}` there, and {path} to the stages of its "
                "networks (docs/library.md)"
            )


if __name__ == "__main__":
    main()
