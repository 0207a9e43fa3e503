"""Students by several commits: a comment changes no byte of them, another loss does."""

import sys

from tests.conftest import ROOT, run_in


def git(folder, *command):
    done = run_in(folder, "git", "-c", "user.name=t", "-c", "user.email=t@t", *command)
    assert done.returncode == 0, done.stderr


def test_an_edit_of_a_loss_is_seen_and_a_comment_is_none(finished_copy):
    def commit(line):
        with (finished_copy / "ferd" / "losses.py").open("a") as code:
            code.write(line)
        git(finished_copy, "add", "ferd", "tasks", "params.yaml", "sources", ".gitignore")
        git(finished_copy, "commit", "--quiet", "--no-verify", "-m", "an edit")

    commit("# a comment\n")
    commit("# another\n")
    commit("_ikl = ikl\n\n\ndef ikl(*given):\n    return 2 * _ikl(*given)\n")
    program = "import sys; from benchmarks import same_students; same_students.main(sys.argv[1:])"
    arguments = ["digits", "resnet8-w8", "--methods", "ferd", "--commits", "HEAD~2", "HEAD~1", "HEAD"]
    compared = run_in(finished_copy, sys.executable, "-c", program, *arguments, PYTHONPATH=str(ROOT))
    assert compared.returncode == 0, compared.stderr
    *rows, verdict = compared.stdout.splitlines()
    before, commented, doubled = (row.partition(": ")[2] for row in rows)
    assert before == commented != doubled
    assert verdict == "ferd: DIFFERENT"
