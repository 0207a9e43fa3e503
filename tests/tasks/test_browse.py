"""MLflow's own page, in a real browser, at the link that ``tasks.browse`` prints."""

import json
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from tasks import browse, mlflow_view
from tests.conftest import environment, free_port, run_in

CHROMIUM = shutil.which("chromium")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_printed_link_shows_the_runs_of_every_gamma(finished_copy, handlers):
    from playwright.sync_api import sync_playwright

    add_no_utae(finished_copy)
    port = str(free_port())
    with subprocess.Popen(
        [sys.executable, "-m", "tasks.browse", "--port", port],
        cwd=finished_copy,
        env=environment() | {"BROWSER": "true"},
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            lines = {
                line.split(": ", 1)[0]: line.split(": ", 1)[1].strip() for line in head(server.stdout, 2)
            }
            with sync_playwright() as browsers:
                browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": 1500, "height": 1200})
                page.goto(lines["γ on digits"], timeout=120_000)
                for text in ("resnet8-w8/ferd/s0", "resnet8-w8/no-utae/s0", "robust/pgd20/worst"):
                    page.get_by_text(text).first.wait_for(timeout=180_000)
                assert page.get_by_text("12 matching runs").count() == 1
                points = page.locator(".js-plotly-plot").first.locator(".scatterlayer .point")
                points.nth(11).wait_for(timeout=180_000)  # all of them, not MLflow's first ten
                assert page.get_by_text("resnet8-w8/uniform-noise/s0").count() == 0
                browser.close()
        finally:
            server.send_signal(signal.SIGHUP)  # as when its terminal is closed
    with socket.socket() as probe:  # nothing is left behind
        assert probe.connect_ex(("127.0.0.1", int(port))) != 0


def add_no_utae(folder):
    """Eleven more points for the chart: the result of ``ferd``, named as if it were of γ = 0."""
    source, target = (folder / f"results/digits/resnet8-w8/{method}" for method in ("ferd", "no-utae"))
    result = json.loads((source / "s0.json").read_text()) | {"method": "no-utae"}
    target.mkdir()
    for seed in range(11):
        (target / f"s{seed}.json").write_text(json.dumps(result | {"seed": seed}))
        shutil.copy(source / "s0.rounds.jsonl", target / f"s{seed}.rounds.jsonl")


def head(stream, number):
    return [next(stream) for _ in range(number)]


def test_a_taken_port_is_one_line(finished_copy):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused = run_in(finished_copy, sys.executable, "-m", "tasks.browse", "--port", port)
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == [
        f"browse: port {port} is taken; stop what listens there, or give another by --port"
    ]


def test_a_file_where_the_logs_belong_is_one_line(finished_copy):
    (finished_copy / "logs").touch()
    refused = run_in(finished_copy, sys.executable, "-m", "tasks.browse", "--port", str(free_port()))
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == ["browse: logs: a file where a folder belongs; move it away"]


def test_links_do_not_carry_the_servers_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example/")
    assert mlflow_view.address() == "https://mlflow.example"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert mlflow_view.address() == "http://127.0.0.1:5000"


@pytest.mark.parametrize(
    ("screen", "opened"),
    [({}, []), ({"BROWSER": "firefox"}, ["http://a/γ"]), ({"DISPLAY": ":0"}, ["http://a/γ"])],
)
def test_a_page_is_opened_where_there_is_a_screen(monkeypatch, capsys, screen, opened):
    """Without one a browser of the terminal's would be waited for."""
    for name in browse.SCREENS:
        monkeypatch.delenv(name, raising=False)
    for name, value in screen.items():
        monkeypatch.setenv(name, value)
    found = []
    monkeypatch.setattr(browse.webbrowser, "open", found.append)
    browse.show("http://a", {"digits": "/γ"})
    assert found == opened
    assert capsys.readouterr().out == "MLflow: http://a\nγ on digits: http://a/γ\n"
