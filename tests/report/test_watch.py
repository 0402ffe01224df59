"""A report that is watched: made again as runs change, and shown by a browser that follows."""

import re
import signal
import socket
import urllib.request
from urllib.error import HTTPError

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from normlab.report.__main__ import main
from tests.processes import PATIENCE_S, Job, until
from tests.report.made import make_run


@pytest.fixture
def watched(tmp_path):
    """watched(*options): `--watch` of an empty study, its address, and a wait until it says that it has made the
    report; ended by Ctrl-C, and with nothing left.
    """
    study = tmp_path / "study"
    study.mkdir()
    jobs = []

    def start(*options):
        job = Job(tmp_path, "-m", "normlab.report", str(study), "--watch", "0.05", *options)
        jobs.append(job)
        address = re.match(r"(http://127\.0\.0\.1:\d+/\S+) refreshes itself", job.process.stderr.readline())[1]
        assert "has no runs in it" in job.process.stderr.readline()
        return study, address, lambda: next(line for line in job.process.stderr if "made again: " in line)

    yield start
    for job in jobs:
        job.process.send_signal(signal.SIGINT)
        code, _, err = job.end()
        assert (code, "Traceback" in err) == (0, False), err


def read(address):
    try:
        return urllib.request.urlopen(address, timeout=PATIENCE_S).read().decode()
    except HTTPError as error:
        if error.code != 404:  # not made yet
            raise
        return ""


def test_the_page_follows_the_runs_and_keeps_what_was_chosen(watched, browser):
    study, address, wait_until_made = watched()
    for seed in (0, 1):
        make_run(study, 0.5, norm="bn", seed=seed, curve={64: 0.4, 128: 0.5})
        make_run(study, 0.6, norm="gn", seed=seed, curve={64: 0.4, 128: 0.6})
    until(lambda: "4 runs: 4 finished" in read(address))
    wait_until_made()
    browser.get(address)
    wait = WebDriverWait(browser, PATIENCE_S, poll_frequency=0.05)
    wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, "#against .scatterlayer .trace"))
    Select(browser.find_element(By.ID, "kind")).select_by_index(1)
    difference = Select(browser.find_element(By.ID, "kind")).first_selected_option.text
    browser.find_element(By.ID, "logx").click()
    browser.find_element(By.ID, "find").send_keys("gn")

    make_run(study, 0.7, norm="gn", seed=2, curve={64: 0.4, 128: 0.7})
    count = "return document.getElementById('count')?.textContent"  # none while the page is loaded again
    wait.until(lambda b: "3 of 5" in (b.execute_script(count) or ""))
    assert Select(browser.find_element(By.ID, "kind")).first_selected_option.text == difference != "mean"
    assert browser.find_element(By.ID, "logx").is_selected()
    assert browser.find_element(By.ID, "find").get_property("value") == "gn"
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    browser.get("about:blank")  # it would go on asking a server that has ended, and log that into the next test


def test_a_page_elsewhere_is_served_without_what_lies_around_it(watched, tmp_path):
    (tmp_path / "private.txt").write_text("secret")
    study, address, wait_until_made = watched("--out", str(tmp_path / "elsewhere"))
    make_run(study, 0.5, norm="bn", curve={64: 0.5})
    until(lambda: "1 runs: 1 finished" in read(address))
    wait_until_made()
    assert address.endswith("/index.html")
    assert address.count("/") == 3
    base = address.removesuffix("index.html")
    assert read(base + "../private.txt") == read(base + "private.txt") == ""
    assert not (study / "report").exists()


def test_a_taken_port_is_named(tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit) as ended:
            main([str(tmp_path), "--watch", "--port", port])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: --port {port} cannot be used: Address already in use")
