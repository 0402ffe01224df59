"""The comparison in a real TensorBoard: over HTTP, and in the browser."""

import json
import shutil
import urllib.parse
import urllib.request

import pytest
from selenium.webdriver.support.ui import WebDriverWait

from normlab.report.__main__ import main
from normlab.report.comparison import write_comparison
from normlab.report.reading import read
from normlab.report.study import Study
from tests.report.made import make_run

PATIENCE_S = 60


class TensorBoard:
    def __init__(self, address):
        self.address = address

    def get(self, path, body=None, **query):
        url = f"{self.address}/data/{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            raw = answer.read()
        return json.loads(raw) if answer.headers["Content-Type"].startswith("application/json") else raw

    def scalars(self, run, tag):
        """[(step, value), ...]"""
        points = self.get("plugin/scalars/scalars", run=run, tag=tag)
        return [(step, value) for _, step, value in points]

    def session_groups(self):
        every = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
        body = {"experimentName": "", "allowedStatuses": every, "colParams": [], "startIndex": 0, "sliceSize": 99}
        return self.get("plugin/hparams/session_groups", body)["sessionGroups"]


@pytest.fixture(scope="module")
def reported(trained, tmp_path_factory):
    """A study of real runs with its report, and a TensorBoard each for the study and its comparison."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("reported") / "study")
    main([str(folder)])
    main([str(folder)])  # again: what was there is replaced, not added to
    return folder


@pytest.fixture(scope="module")
def whole(reported, start_tensorboard):
    board = TensorBoard(start_tensorboard(reported))
    assert "comparison/gn" in board.get("runs")
    assert len(board.get("runs")) == 22
    return board


@pytest.fixture(scope="module")
def comparison(reported, start_tensorboard):
    board = TensorBoard(start_tensorboard(reported / "comparison"))
    assert len(board.get("runs")) == 13  # the folder itself, two norms, ten runs' hparams
    return board


def cells_of(folder, norm):
    return [cell for cell in Study(read(folder)).cells if cell.norm == norm]


def test_scalars_are_the_means_and_their_step_is_the_batch_size(whole, reported):
    for norm in ("bn", "gn"):
        points = whole.scalars(f"comparison/{norm}", "against_batch_size/val/accuracy")
        found = [cell.estimate("val/accuracy") for cell in cells_of(reported, norm)]
        assert [step for step, _ in points] == [4, 8]
        assert [value for _, value in points] == pytest.approx([e.mean for e in found], rel=1e-6)
        for end, expected in (("low", [e.low for e in found]), ("high", [e.high for e in found])):
            points = whole.scalars(f"comparison/{norm}", f"against_batch_size_95_percent/val/accuracy/{end}")
            assert [value for _, value in points] == pytest.approx(expected, rel=1e-5)
    curve = whole.scalars("comparison/bn", "mean_curves/train/loss/bn/batch_size=4")
    assert [step for step, _ in curve] == sorted(step for step, _ in curve)
    assert curve[-1][0] == 192


def test_the_runs_own_curves_are_still_there(whole, reported):
    run = cells_of(reported, "bn")[0].runs[0]
    points = whole.scalars(run["run"], "val/accuracy")
    assert points[-1][1] == pytest.approx(run["val/accuracy"], rel=1e-6)


def test_hparams_have_every_run_with_its_settings_and_metrics(comparison, reported):
    groups = {group["name"]: group for group in comparison.session_groups()}
    runs = Study(read(reported)).runs.set_index("run")
    assert groups.keys() == set(runs.index)
    for name, group in groups.items():
        run = runs.loc[name]
        assert group["hparams"] == {"norm": run["norm"], "batch_size": run["batch_size"], "seed": run["seed"]}
        values = {metric["name"]["tag"]: metric["value"] for metric in group.get("metricValues", [])}
        assert ("val/accuracy" in values) == (run["state"] == "finished")
        if values:
            assert values["val/accuracy"] == pytest.approx(run["val/accuracy"], rel=1e-6)
    experiment = comparison.get("plugin/hparams/experiment", {"experimentName": "", "includeMetrics": True})
    ranges = {info["name"]: info["domainDiscrete"] for info in experiment["hparamInfos"]}
    assert ranges == {"norm": ["bn", "gn"], "batch_size": [4, 8], "seed": [0, 1, 2]}
    assert {"val/accuracy", "val/loss"} <= {info["name"]["tag"] for info in experiment["metricInfos"]}


def test_a_run_is_one_line_of_hparams_where_the_study_is_shown(whole, reported):
    names = [group["name"] for group in whole.session_groups()]
    assert sorted(names) == sorted(Study(read(reported)).runs["run"])


def test_figures_are_images(whole, reported):
    tags = whole.get("plugin/images/tags")["comparison"]
    pictures = {path.stem: path.read_bytes() for path in (reported / "report" / "figures").glob("*.png")}
    assert tags.keys() == {f"figures/{name}" for name in pictures}
    for name, picture in pictures.items():
        [shown] = whole.get("plugin/images/images", run="comparison", tag=f"figures/{name}", sample=0)
        url = f"{whole.address}/data/plugin/images/individualImage?{shown['query']}"
        assert urllib.request.urlopen(url, timeout=PATIENCE_S).read() == picture


def test_custom_scalars_group_curves_by_batch_size_and_by_norm(whole):
    categories = {c["title"]: c["chart"] for c in whole.get("plugin/custom_scalars/layout")["category"]}
    [margins, by_batch, by_norm, *_] = categories
    assert margins == "against the batch size, 95 percent intervals"
    assert (by_batch, by_norm) == (
        "val/accuracy over samples_seen, by batch_size",
        "val/accuracy over samples_seen, by norm",
    )
    assert [chart["title"] for chart in categories[by_batch]] == ["batch_size=4", "batch_size=8"]
    assert [chart["title"] for chart in categories[by_norm]] == ["bn", "gn"]

    def tags(run, chart):
        """What TensorBoard draws of a run in a chart."""
        [regex] = chart["multiline"]["tag"]
        return set(whole.get("plugin/custom_scalars/scalars", run=run, tag=regex)["tag_to_events"])

    at_4, of_gn = categories[by_batch][0], categories[by_norm][1]
    assert tags("comparison/bn", at_4) == {"mean_curves/val/accuracy/bn/batch_size=4"}
    assert tags("comparison/gn", at_4) == {"mean_curves/val/accuracy/gn/batch_size=4"}
    assert tags("comparison/bn", of_gn) == set()
    assert len(tags("comparison/gn", of_gn)) == 2
    for chart in categories[margins]:
        [series] = chart["margin"]["series"]
        drawn = [whole.scalars("comparison/bn", series[end]) for end in ("lower", "value", "upper")]
        for low, mean, high in zip(*drawn, strict=True):
            assert low[0] == mean[0] == high[0]
            assert low[1] <= mean[1] <= high[1]


def test_no_name_leads_out_of_the_folder_and_an_unfinished_one_leaves_the_earlier(tmp_path):
    root = tmp_path / "a" / "study"
    make_run(root, norm="../../../out", name="run.1")
    study = Study(read(root))
    folder = root / "comparison"
    write_comparison(study, "val/accuracy", [], folder)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["_________out", "hparams"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    before = sorted(folder.rglob("*"))
    with pytest.raises(FileNotFoundError):
        write_comparison(study, "val/accuracy", [tmp_path / "no.png"], folder)
    assert sorted(folder.rglob("*")) == before
    assert sorted(path.name for path in root.iterdir()) == ["comparison", "run.1"]


def test_tensorboard_shows_it_in_a_browser(comparison, browser):
    """Its elements stand in shadow roots, so the script looks into all of them."""
    script = """const found = []; const look = (root) => { for (const e of root.querySelectorAll('*')) {
        for (const n of e.childNodes) if (n.nodeType === 3) found.push(n.textContent);
        if (e.shadowRoot) look(e.shadowRoot); } };
        look(document); return found"""
    for tab, expected in (
        ("scalars", {"against_batch_size", "train/accuracy", "gn"}),
        ("custom_scalars", {"against the batch size, 95 percent intervals", "batch_size=4", "gn"}),
        ("images", {"figures", "val_accuracy_vs_batch_size"}),
        ("hparams", {"batch_size", "val/accuracy", "parallel coordinates view"}),
    ):
        browser.get("about:blank")
        browser.get(f"{comparison.address}/#{tab}")

        def shown(chrome, expected=expected):
            text = "\n".join(chrome.execute_script(script)).lower()
            return all(word in text for word in expected)

        WebDriverWait(browser, PATIENCE_S).until(shown, f"{tab}: {expected} not shown")
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
