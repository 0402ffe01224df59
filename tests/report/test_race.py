"""What people read of a race."""

import json
import re

import pytest

from normlab.report.__main__ import main
from normlab.report.figures import of_race
from normlab.report.race import listed, table, verdict
from normlab.report.statistics import estimate
from tests.report.made import make_run


def standing(norm, scores, best=None, out="", diverged=0, lr=0.1):
    behind = best and estimate([b - a for b, a in zip(best, scores, strict=False)], 0.99)
    return {
        "norm": norm,
        "setting": [f"optim.lr={lr}"],
        "scores": scores,
        "diverged": diverged,
        "behind": behind and {"n": behind.n, "mean": behind.mean, "half_width": behind.half_width},
        "out": out,
    }


def run(norm, lr, seed, epochs, score, speed=100.0):
    setting = [f"optim.lr={lr}"]
    named = {"norm": norm, "setting": setting, "seed": seed, "epochs": epochs}
    return named | {"score": score, "images_per_second": speed}


def made(*standings, **more):
    """race.json of bn, syncbn and gn."""
    rates = [run(norm, lr, 0, 1, 0.3 + lr) for norm in ("bn", "syncbn", "gn") for lr in (0.05, 0.1)]
    seeds = [run(one["norm"], 0.1, i + 1, 4, s) for one in standings for i, s in enumerate(one["scores"])]
    return {
        "plan": {"norms": {"bn": {}, "syncbn": {}, "gn": {}}},
        "main_metric": "accuracy",
        "rungs": [1, 2],
        "epochs": 4,
        "seed": 0,
        "looks": [4, 6],
        "error_rate": 0.05,
        "over": "",
        "decisions": ["bn <is> tuned"],
        "untrained": {},
        "standings": list(standings),
        "runs": rates + seeds,
        "costs": {
            "bn": {"saved_bytes": 12_340_000, "messages": 0, "message_bytes": 0},
            "syncbn": {"saved_bytes": 12_340_000, "messages": 14, "message_bytes": 3900},
            "gn": {"saved_bytes": None, "messages": None, "message_bytes": 0},
        },
    } | more


BN = [0.60, 0.61, 0.62, 0.63, 0.60, 0.62]
SYNCBN = [0.59, 0.62, 0.61, 0.62, 0.61, 0.62]
GN = [0.51, 0.50, 0.52, 0.53]
CLOSE = standing("syncbn", SYNCBN, BN)
BEHIND = standing("gn", GN, BN, "behind bn by 10.0 ± 1.2 points (n = 4)")


def test_one_norm_is_called_best_where_all_others_are_out():
    said = verdict(made(standing("bn", BN), standing("syncbn", GN, BN, "behind bn by 9.9 ± 2.0 points"), BEHIND))
    # The mean of BN is 0.6133, its deviation 0.01211; t(0.975, 5) = 2.5706: 2.5706 * 0.01211 / sqrt(6) = 0.0127.
    assert said.startswith(
        "bn is the best of bn, syncbn and gn, with test/accuracy 61.3 ± 1.3 percent (n = 6, 95 percent interval). "
        "syncbn is behind bn by 9.9 ± 2.0 points. gn is behind bn by 10.0 ± 1.2 points (n = 4). Each norm"
    )


def test_norms_that_are_in_question_are_not_told_apart():
    said = verdict(made(standing("bn", BN), CLOSE, BEHIND))
    assert said.startswith(
        "bn and syncbn are not told apart; the best of bn, syncbn and gn is one of them. bn leads with "
    )
    # Differences 1, -1, 1, 1, -1, 0 points: mean 0.1667, deviation 0.9832; t(0.995, 5) = 4.0321.
    assert ", by 0.2 ± 1.6 points over syncbn (n = 6). gn is behind" in said


def test_nothing_is_claimed_where_all_norms_are_in_question():
    said = verdict(made(standing("bn", BN), CLOSE, standing("gn", BN, SYNCBN)))
    assert said.startswith("bn, syncbn and gn are not told apart. bn leads with ")
    assert "best" not in said.partition("Each norm")[0]


def test_how_it_was_found_is_said():
    said = verdict(made(standing("bn", BN), CLOSE, BEHIND))
    for words in (
        "chosen by val/accuracy in runs of 1 and 2 epochs with seed 0, which no comparison uses",
        "corrected for 3 pairs of norms and for looks after 4 and 6 seeds",
        "95 percent probability, if differences are normal",
        "length of training: 4 epochs",
    ):
        assert words in said


def test_what_went_wrong_is_said():
    said = verdict(
        made(
            standing("bn", BN),
            standing("syncbn", [0.0, *SYNCBN[1:]], BN, diverged=1),
            untrained={"gn": "diverged with every setting that was tried"},
            over="budget_min=5 is too short for the next runs, which need about 8 min",
        )
    )
    assert "1 of 6 runs of syncbn diverged, and count as 0." in said
    assert "gn diverged with every setting that was tried." in said
    assert "The race ended early: budget_min=5 is too short" in said
    assert verdict(made()).startswith("bn, syncbn and gn have not been compared yet. Each norm")


def test_the_table_has_a_row_for_each_norm():
    columns, rows = table(made(standing("bn", BN), CLOSE, BEHIND))
    assert columns[:4] == ["norm", "tuned", "test/accuracy, %", "n"]
    assert rows[0] == ["bn", "optim.lr=0.1", "61.3 ± 1.3", "6", "", "100", "12.3", "nothing", "in question"]
    assert [row[6:8] for row in rows[1:]] == [["12.3", "14 x, 3.9 kB"], ["-", "-"]]
    # Differences 9, 11, 10, 10 points: deviation 0.8165; t(0.995, 3) = 5.8409: 5.8409 * 0.8165 / 2 = 2.4.
    assert rows[2][:2] + rows[2][3:6] + rows[2][8:] == ["gn", "optim.lr=0.1", "4", "10.0 ± 2.4", "100", "out"]


@pytest.mark.parametrize("standings", [(), (standing("bn", BN), CLOSE, BEHIND)])
def test_the_figure_shows_rates_scores_and_differences(standings):
    drawn = of_race(made(*standings))
    rates, scores, differences = drawn.figure.axes
    assert list(rates.lines[0].get_xdata()) == [0.05, 0.1]
    assert list(rates.lines[0].get_ydata()) == pytest.approx([35, 40])
    assert [label.get_text() for label in scores.get_yticklabels()] == [one["norm"] for one in standings]
    if standings:
        centres = [container.lines[0].get_xdata()[0] for container in differences.containers]
        assert centres == pytest.approx([100 * one["behind"]["mean"] for one in standings[1:]])


def test_several_tuned_keys_are_places_on_the_axis():
    race = made(standing("bn", BN), CLOSE, BEHIND)
    for one in race["runs"]:
        one["setting"] = [*one["setting"], "optim.weight_decay=0"]
    assert list(of_race(race).figure.axes[0].lines[0].get_xdata()) == [0, 1]


@pytest.mark.parametrize(("words", "text"), [(["a"], "a"), (["a", "b"], "a and b"), ([1, 2, 3], "1, 2 and 3")])
def test_lists_are_written_out(words, text):
    assert listed(words) == text


@pytest.fixture
def folder(tmp_path):
    for seed, accuracy in enumerate(BN):
        make_run(tmp_path / "race", accuracy, seed=seed)
    make_run(tmp_path / "race", 0.5, norm="gn", seed=0)
    return tmp_path / "race"


def test_the_report_of_a_race_has_its_verdict_table_and_figure_and_misses_no_run(folder, capsys):
    race = made(standing("bn", BN), CLOSE, BEHIND)
    (folder / "race.json").write_text(json.dumps(race))
    main([str(folder)])
    out = capsys.readouterr().out
    assert out.rstrip().endswith(verdict(race))
    assert "missing from the grid" not in out
    assert verdict(race) in (folder / "report/tables.md").read_text()
    assert (folder / "report/figures/race.png").exists()
    page = (folder / "report/index.html").read_text()
    section = page[page.index('<section id="race">') :].partition("</section>")[0]
    assert verdict(race) in section
    assert len(re.findall("<tr>", section)) == 4
    assert "<li>bn &lt;is&gt; tuned</li>" in section
    assert 'src="data:image/svg+xml;base64,' in section


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"plan": {"norms": 3}}'])
def test_a_damaged_record_of_a_race_is_named_and_hides_nothing(text, folder, capsys):
    (folder / "race.json").write_text(text)
    main([str(folder), "--text"])
    out = capsys.readouterr().out
    assert "race.json is" in out
    assert "7 runs: 7 finished" in out


def test_a_study_without_a_race_says_nothing_of_one(folder, capsys):
    main([str(folder)])
    assert "race.json" not in capsys.readouterr().out
    assert "<h2>Race</h2>" not in (folder / "report/index.html").read_text()
