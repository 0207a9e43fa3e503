"""Stage ``judge``: a classifier that has no part in a distillation, to judge the images that come of it."""

from tasks import params, process
from tasks.command import command_line
from tasks.teacher import Role, acquire


def main() -> None:
    """``python -m tasks.judge BENCHMARK``."""
    parser = command_line(__doc__)
    parser.add_argument("benchmark")
    args = parser.parse_args()
    with process.running(f"judge {args.benchmark}") as progress:
        benchmark = params.read().benchmark(args.benchmark)
        role = Role("judge", benchmark.analysis.judge, "analysis.judge")
        acquire(args.benchmark, benchmark, role, progress)


if __name__ == "__main__":
    main()
