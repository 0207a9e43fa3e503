"""The whole pipeline in minutes, on images that come with scikit-learn: ``make demo``."""

from prefect import flow

from flows.pipeline import TASK_RUNNER, as_command, bring_up_to_date, create_record
from flows.server import own_server
from tasks.command import command_line
from tasks.paths import PAGE
from tasks.table import print_table

BENCHMARK = "digits"
METHODS = ("ferd", "no-reweighting", "no-fae", "real-data", "uniform-noise")
SEEDS = (0,)


@flow(name="demo", task_runner=TASK_RUNNER)
def demo() -> None:
    """A teacher, three students without data, and two controls; one seed."""
    bring_up_to_date(BENCHMARK, METHODS, SEEDS, slots=2)


def main() -> None:
    """Run the flow, then show what came of it."""
    command_line(__doc__).parse_args()
    with as_command("demo"):
        create_record()
        with own_server():
            demo()
        print_table(BENCHMARK, METHODS, SEEDS)
    print(f"report: {PAGE} (open it in a browser)")
    print("browse every run and round: make ui")


if __name__ == "__main__":
    main()
