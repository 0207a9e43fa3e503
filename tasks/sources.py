"""Stage ``sources``: the code behind each result, listed -> ``sources/``; see ``tasks.lineage``."""

import argparse

from ferd.files import atomic_write
from tasks.lineage import STAGE, lists
from tasks.process import running


def main() -> None:
    """``python -m tasks.sources``."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with running(STAGE) as progress:
        progress.event("computing")  # without a place to compute in: other stages wait for these files
        for path, text in lists().items():
            with atomic_write(path) as part:
                part.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
