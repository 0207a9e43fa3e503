"""One point of a sweep: distil a student and evaluate it, by the code of these two stages.

Run by ``tasks.sweep``, which gives the point its settings (``FERD_PARAMS``) and a place for its outputs
(``FERD_OUTPUTS``). What an earlier attempt has finished is not done again.
"""

import os

from tasks import paths, process
from tasks.command import command_line
from tasks.distill import distil_student
from tasks.evaluate import evaluate_checkpoint

GIVEN = ("FERD_PARAMS", "FERD_OUTPUTS", "FERD_SWEEP_ID")


def main() -> None:
    """``python -m tasks.point BENCHMARK STUDENT METHOD SEED``."""
    parser = command_line(__doc__)
    for name in ("benchmark", "student", "method"):
        parser.add_argument(name)
    parser.add_argument("seed", type=int)
    args = parser.parse_args()
    checkpoint = paths.student(args.benchmark, args.student, args.method, args.seed)
    result = paths.result_of(checkpoint)
    if missing := [name for name in GIVEN if name not in os.environ]:
        parser.error(f"{', '.join(missing)} not set: a point is run by python -m flows.sweep")
    title = f"{os.environ['FERD_SWEEP_ID']}/{args.method}/s{args.seed}"
    with process.alone(f"point {title}"):  # who waited finds it done: a stage writes its cost last
        if not paths.cost_of(result, "distill").exists():
            with process.running(f"distill {title}") as progress:
                distil_student(args.benchmark, args.student, args.method, args.seed, progress)
        if not (result.exists() and paths.cost_of(result, "evaluate").exists()):
            with process.running(f"evaluate {title}") as progress:
                evaluate_checkpoint(args.benchmark, checkpoint, progress)


if __name__ == "__main__":
    main()
