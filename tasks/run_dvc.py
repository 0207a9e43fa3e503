"""DVC's command line with this project's replacements: ``python -m tasks.run_dvc repro ...``."""

import sys

from dvc.cli import main

from tasks import dvc_patches

if __name__ == "__main__":
    dvc_patches.apply()
    sys.exit(main(sys.argv[1:]))
