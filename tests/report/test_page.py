"""The page in a real browser: it loads, answers, sorts, and lets no name become code."""

import json
import re
from urllib.parse import unquote, urlparse

import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from normlab.report.findings import findings
from normlab.report.page import page_data, write_page
from normlab.report.reading import read
from normlab.report.study import MOST_METRICS, Study
from normlab.report.tables import cells_table
from tests.report.made import make_run

PATIENCE_S = 60


def write(folder, out):
    study = Study(read(folder))
    metric = study.default_metric()
    out.mkdir(parents=True, exist_ok=True)
    return study, write_page(study, metric, study.baseline(None), findings(study, metric), out)


@pytest.fixture
def open_page(browser):
    """open_page(folder): the page of the study, drawn, in the browser."""

    def opened(folder):
        study, _ = write(folder, folder / "report")
        browser.get((folder / "report" / "index.html").as_uri())
        wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#against .scatterlayer .trace"))
        return study

    yield opened
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []


def wait(browser, condition):
    return WebDriverWait(browser, PATIENCE_S, poll_frequency=0.05).until(condition)


def texts(browser, selector):
    script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
    return browser.execute_script(script, selector)


def points(browser, trace):
    """Where the points of the `trace`-th trace of the first plot are on the screen."""
    script = """document.getElementById('against').scrollIntoView({behavior: 'instant', block: 'center'});
        const group = document.querySelectorAll('#against .scatterlayer .trace')[arguments[0]];
        return [...group.querySelectorAll('.point')].map(p => {const r = p.getBoundingClientRect();
        return [r.x + r.width / 2, r.y + r.height / 2]})"""
    return browser.execute_script(script, trace)


def hover(browser, x, y):
    actions = ActionChains(browser)
    actions.w3c_actions.pointer_action.move_to_location(round(x), round(y))
    actions.perform()


def test_the_page_shows_every_cell_and_run_and_opens_nothing_else(open_page, browser, study_folder):
    study = open_page(study_folder)
    assert texts(browser, "h1") == ["study"]
    assert texts(browser, "#against .legendtext") == ["bn", "gn"]
    assert len(texts(browser, "#cells tbody tr")) == len(study.cells) == 4
    assert len(texts(browser, "#runs tbody tr")) == 10
    first = dict(zip(texts(browser, "#cells th"), texts(browser, "#cells tbody tr:first-child td"), strict=False))
    found = study.cells[0].estimate("val/accuracy")
    assert (first["norm"], first["batch_size"], first["n"]) == ("bn", "4", "2")
    assert float(first["val/accuracy"]) == pytest.approx(found.mean, abs=5e-5)
    assert "10 runs: 8 finished, 1 failed, 1 stale" in texts(browser, "#findings li")
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert loaded == []
    source = (study_folder / "report" / "index.html").read_text().partition("<script>")[0]
    assert not re.search(r"(src|href)=", source)


def test_hovering_names_the_run_or_the_cell(open_page, browser, study_folder):
    study = open_page(study_folder)
    # Trace 0 is the means of bn; trace 1 its single runs.
    hover(browser, *points(browser, 0)[0])
    shown = wait(browser, lambda b: "".join(texts(b, "#against .hoverlayer .hovertext")))
    assert "bn; batch_size=4" in shown
    assert "(n=2" in shown
    assert "NBS 4" in shown
    for x, y in points(browser, 1):
        hover(browser, x, y)
        shown = wait(browser, lambda b: "".join(texts(b, "#against .hoverlayer .hovertext")))
        if any(run in shown for run in study.runs["run"]):
            break
    else:
        pytest.fail("no run was named")


def test_a_click_on_the_legend_hides_a_norm(open_page, browser, study_folder):
    open_page(study_folder)
    before = len(texts(browser, "#against .scatterlayer .trace"))
    script = "return document.getElementById('against').data.filter(t => t.legendgroup === 'bn').length"
    of_bn = browser.execute_script(script)
    browser.find_element(By.CSS_SELECTOR, "#against .legendtoggle").click()  # bn: means, single runs, arrows
    wait(browser, lambda b: len(texts(b, "#against .scatterlayer .trace")) == before - of_bn)
    shown = "document.getElementById('against').data.filter(t => (t.visible ?? true) === true)"
    left = browser.execute_script(f"return {shown}.map(t => t.legendgroup)")
    assert set(left) == {"gn"}


def test_metric_and_axes_are_chosen_and_tables_follow(open_page, browser, study_folder):
    study = open_page(study_folder)
    Select(browser.find_element(By.ID, "metric")).select_by_visible_text("val/loss")
    assert texts(browser, "#against .ytitle") == ["val/loss"]
    assert "val/loss" in texts(browser, "#cells th")
    drawn = browser.execute_script("return document.getElementById('against').data[0].y")
    assert drawn == pytest.approx([c.estimate("val/loss").mean for c in study.cells if c.norm == "bn"], rel=1e-5)
    Select(browser.find_element(By.ID, "x")).select_by_visible_text("images_per_second")
    assert texts(browser, "#against .xtitle") == ["images_per_second"]
    Select(browser.find_element(By.ID, "kind")).select_by_index(1)
    assert texts(browser, "#against .ytitle") == ["val/loss, minus bn"]
    Select(browser.find_element(By.ID, "curve")).select_by_visible_text("train/loss")
    names = browser.execute_script("return document.getElementById('curves').data.map(t => t.customdata[0])")
    cells = [cell for cell in study.cells if cell.values["batch_size"] == 4]
    assert set(names) == {run["run"] for cell in cells for run in cell.runs}


def test_a_heading_sorts_and_sorts_back(open_page, browser, study_folder):
    open_page(study_folder)
    column = texts(browser, "#runs th").index("val/accuracy")
    heading = browser.find_elements(By.CSS_SELECTOR, "#runs th")[column]

    def values():
        return [float(v) for v in texts(browser, f"#runs tbody td:nth-child({column + 1})") if v]

    browser.execute_script("arguments[0].click()", heading)
    assert values() == sorted(values())
    browser.execute_script("arguments[0].click()", heading)
    assert values() == sorted(values(), reverse=True)
    assert len(set(values())) > 1
    browser.find_element(By.ID, "find").send_keys("gn finished")
    assert len(texts(browser, "#runs tbody tr")) == 4
    assert texts(browser, "#count") == ["4 of 10 runs"]


def test_a_run_shows_its_settings_curve_log_and_directory(open_page, browser, study_folder):
    study = open_page(study_folder)
    row = browser.find_element(By.CSS_SELECTOR, "#runs tbody tr.finished")
    name = row.find_element(By.TAG_NAME, "td").text
    browser.execute_script("arguments[0].click()", row)
    wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#run-curve .scatterlayer .trace"))
    assert texts(browser, "#run-name") == [name]
    assert "the last line" in texts(browser, "#run-log")[0]
    cells = texts(browser, "#run-settings td")
    settings = dict(zip(cells[::2], cells[1::2], strict=True))
    run = study.runs.set_index("run").loc[name]
    assert (settings["norm"], float(settings["optim.lr"])) == (run["norm"], run["optim.lr"])
    assert set(settings) >= {"batch_size", "data.num_train", "norm.eps"}
    link = browser.find_element(By.ID, "run-link").get_attribute("href")
    assert unquote(urlparse(link).path) == str(study_folder.resolve() / name)


def choose(browser, place, text):
    Select(browser.find_element(By.CSS_SELECTOR, place)).select_by_visible_text(text)


def drawn(browser, plot="against"):
    """The names of what a plot shows with points in it."""
    script = "return document.getElementById(arguments[0]).data.filter(t => t.x.length).map(t => t.name)"
    return set(browser.execute_script(script, plot))


def test_the_page_opens_with_runs_and_every_choice_leads_to_some(open_page, browser, tmp_path):
    """Two studies that share no setting: most combinations of the swept keys have no run."""
    for lr in (0.1, 0.2):
        make_run(tmp_path / "a", seed=0, status=None, optim__lr=lr, batch_size=2)  # first in order, and no mean
        for seed in (0, 1):
            make_run(tmp_path / "b", seed=seed, optim__lr=5 * lr, batch_size=8, norm="gn", curve={8: 0.5})
    open_page(tmp_path)
    assert drawn(browser) == drawn(browser, "curves") == {"gn"}
    assert texts(browser, "#facets label")[0].startswith("study")
    choose(browser, "#x", "optim.lr")
    assert drawn(browser) == {"gn"}
    choose(browser, "#x", "images_per_second")
    choose(browser, "#facets [data-axis='optim.lr']", "0.5")
    assert drawn(browser) == {"gn"}
    choose(browser, "#facets [data-axis='study']", "a")
    followed = browser.find_element(By.CSS_SELECTOR, "#facets [data-axis='optim.lr']")
    assert Select(followed).first_selected_option.text in ("0.1", "0.2")
    assert "nothing to show" in "".join(texts(browser, "#against .annotation"))
    choose(browser, "#facets [data-axis='optim.lr']", "1")
    assert drawn(browser) == {"gn"}


def test_the_page_begins_with_what_was_swept(open_page, browser, tmp_path):
    for world_size in (1, 2):
        make_run(tmp_path, world_size=world_size)
    open_page(tmp_path)
    assert texts(browser, "#against .xtitle") == ["world_size"]


def test_two_studies_are_in_the_title_and_their_difference_can_be_shown(open_page, browser, tmp_path):
    for name, accuracy in (("a", 0.7), ("b", 0.5)):
        for batch_size in (2, 4):
            for seed in (0, 1):
                make_run(tmp_path / name, accuracy + seed / 10, batch_size=batch_size, seed=seed)
    study = Study(read(tmp_path / "a"), read(tmp_path / "b"))
    write_page(study, "val/accuracy", "bn", [], tmp_path)
    browser.get((tmp_path / "index.html").as_uri())
    assert texts(browser, "h1") == ["a against b"]
    choose(browser, "#kind", "a minus b")
    shown = browser.execute_script("return document.getElementById('against').data[0].y")
    assert shown == pytest.approx([-20, -20])  # of the error, in percentage points
    assert {"a minus b", "p (Holm)"} <= set(texts(browser, "#cells th"))


def test_against_a_norms_own_key_the_page_joins_its_values_and_keeps_the_baseline(open_page, browser, tmp_path):
    make_run(tmp_path, 0.75)
    for groups in (2, 4):
        make_run(tmp_path, 0.5, norm="gn", norm__num_groups=groups)
    open_page(tmp_path)
    shown = browser.execute_script("return document.getElementById('against').data.map(t => [t.name, t.x])")
    assert ["gn", ["2", "4"]] in shown
    assert ["bn", ["without norm.num_groups"]] in shown


def test_the_page_cuts_an_interval_that_would_hide_the_others(open_page, browser, tmp_path):
    for batch_size, accuracies in ((2, (0.80, 0.81, 0.82)), (4, (0.80, 0.82, 0.81)), (8, (0.90, 0.70))):
        for seed, accuracy in enumerate(accuracies):
            make_run(tmp_path, accuracy, batch_size=batch_size, seed=seed)
    open_page(tmp_path)
    low, high = browser.execute_script("return document.getElementById('against').layout.yaxis.range")
    assert 8 < low <= 10  # the single runs at 10 and 30 percent are drawn, the interval's 20 ± 127 is not
    assert 30 <= high < 32
    cut = "document.getElementById('against').data.filter(t => t.name === 'cut')"
    assert browser.execute_script(f"return {cut}.map(t => [t.marker.symbol, t.y[0]])") == [
        ["triangle-down", low],
        ["triangle-up", high],
    ]


EVIL = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2>"


def test_no_name_or_value_becomes_code(open_page, browser, tmp_path):
    folder = tmp_path / "x<img src=x onerror=window.hacked=3>"
    metric = {"metrics": {"val/accuracy": 0.5, EVIL.replace("/", "|"): 1.0}}
    names = [EVIL.replace("/", "|"), "<b>b", "a&amp;b"]
    for seed, name in enumerate(names):
        run = make_run(folder, name=name, norm=EVIL, seed=seed, note=EVIL, result=metric, curve={8: 0.1})
        (run / "log.txt").write_text(EVIL)
    (folder / "broken").mkdir()
    (folder / "broken" / "result.json").write_text(json.dumps({"status": "failed", "metrics": {}, "error": EVIL}))
    open_page(folder)
    for select in ("metric", "x", "curve"):
        for option in Select(browser.find_element(By.ID, select)).options:
            option.click()
    for row in browser.find_elements(By.CSS_SELECTOR, "#runs tbody tr"):
        browser.execute_script("arguments[0].click()", row)
    hover(browser, *points(browser, 0)[0])
    assert browser.execute_script("return window.hacked ?? null") is None
    assert browser.execute_script("return document.querySelectorAll('img, #data ~ script').length") == 1
    assert EVIL in texts(browser, "#runs td:nth-child(3)")
    assert set(names) <= set(texts(browser, "#runs td:first-child"))


def test_of_tens_of_thousands_of_metrics_the_page_shows_the_first_and_the_one_that_was_asked_for(tmp_path):
    metrics = {f"val/tag{number}": 0.5 for number in range(3 * MOST_METRICS)}
    make_run(tmp_path, result={"metrics": metrics}, curve={8: 0.5})
    study = Study(read(tmp_path))
    data = page_data(study, f"val/tag{3 * MOST_METRICS - 1}", "bn", [], tmp_path)
    assert len(data["metrics"]) == MOST_METRICS
    assert data["metric"] in data["metrics"]
    assert data["thinned"] == f"{MOST_METRICS} of {len(study.metrics)} metrics shown"
    assert len(cells_table(study, study.final_metrics, None)) == len(metrics)


def test_the_page_of_a_thousand_runs_is_below_10_mb_says_that_curves_are_thinned_and_opens(
    browser, thousand, tmp_path
):
    study, said = write(thousand, tmp_path)
    assert (tmp_path / "index.html").stat().st_size < 10e6
    assert re.search(r"curves thinned to \d+ of up to 180 points", said)
    assert {cell.estimate("val/accuracy").n for cell in study.cells} == {40}
    browser.get((tmp_path / "index.html").as_uri())
    wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#curves .scatterlayer .trace"))
    assert "Curves thinned to" in texts(browser, "#thinned")[0]
    assert len(texts(browser, "#runs tbody tr")) == 1000
    assert len(texts(browser, "#curves .scatterlayer .trace")) == 200  # 5 norms of 40 seeds at one batch size
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
