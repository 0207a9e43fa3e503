"""Reproduce a benchmark: every method and control that it has, over seeds.

python -m flows.reproduce --benchmark digits
"""

from collections.abc import Sequence

from prefect import flow

from flows.pipeline import TASK_RUNNER, as_command, bring_up_to_date, create_record, require_known
from flows.server import own_server
from tasks.command import command_line
from tasks.table import print_table


@flow(name="reproduce", task_runner=TASK_RUNNER)
def reproduce(
    benchmark: str = "digits",
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    slots: int = 2,
    analyse: bool = False,
) -> None:
    """Bring a benchmark's students, their results and the report up to date.

    Args:
        benchmark: a benchmark of params.yaml.
        methods: names of params.yaml; by default all that dvc.yaml has for the benchmark.
        seeds: by default all that dvc.yaml has.
        slots: how many stages compute at a time.
        analyse: also the adaptive adversary, where UTAEs end up and the quality of the images.
    """
    bring_up_to_date(benchmark, methods, seeds, slots, analyse=analyse)


def main() -> None:
    """Parse the command line, run the flow, print the table."""
    parser = command_line(__doc__)
    parser.add_argument("--benchmark", default="digits")
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--slots", type=int, default=2, help="stages that compute at a time")
    parser.add_argument("--analyse", action="store_true", help="also run the analyse stages")
    args = parser.parse_args()
    with as_command("reproduce"):
        require_known(args.benchmark, args.methods)
        create_record()
        with own_server():
            reproduce(args.benchmark, args.methods, args.seeds, args.slots, args.analyse)
        print_table(args.benchmark, args.methods, args.seeds)


if __name__ == "__main__":
    main()
