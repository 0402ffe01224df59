"""A published study holds the runs that its table and its figure were made of."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from experiments.publish import HERE, publish, unpack
from normlab.report.reading import read
from normlab.report.study import Study
from normlab.report.tables import runs_table
from tests.report.made import make_run

PUBLISHED = sorted(path.parent for path in HERE.glob("*/runs.tar.xz"))


def made_study(root: Path) -> Path:
    for norm, error in (("bn", 0.0), ("gn", 0.1)):
        for batch_size in (2, 8):
            for seed in (0, 1):
                accuracy = 0.5 + error + 0.01 * batch_size + 0.001 * seed
                make_run(
                    root, accuracy, norm=norm, batch_size=batch_size, seed=seed, curve={64: 0.3, 128: accuracy}
                )
    make_run(root, None, "diverged", norm="gn", batch_size=8, seed=2, curve={64: 0.1})
    make_run(root, None, None, norm="gn", batch_size=2, seed=2, curve={64: 0.1}, name="still_running")
    return root


def table(runs: Path) -> str:
    return runs_table(Study(read(runs))).to_csv(index=False)


def test_the_runs_in_the_archive_make_the_published_table_again(tmp_path):
    study = made_study(tmp_path / "runs/rates")
    folder = tmp_path / "rates"
    assert publish(study, folder) == 9
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    again = unpack(folder, tmp_path / "elsewhere") / "rates"
    assert (folder / "results.csv").read_text() == table(again)
    states = pd.read_csv(folder / "results.csv")["state"]
    assert sorted(states) == ["diverged", *["finished"] * 8]
    first = (folder / "runs.tar.xz").read_bytes()
    assert publish(again, folder) == 9
    assert (folder / "runs.tar.xz").read_bytes() == first


def test_folders_of_the_machine_are_left_out(tmp_path):
    study = tmp_path / "runs/rates"
    run = make_run(study, 0.5, norm="bn", curve={64: 0.5}, result={"launch": {"host": "secret"}})
    make_run(study, 0.6, norm="bn", seed=1, curve={64: 0.6})
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["output_dir"] = config["data"]["root"] = "/home/secret"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    publish(study, tmp_path / "rates")
    for path in unpack(tmp_path / "rates", tmp_path / "elsewhere").rglob("*.*"):
        assert "secret" not in path.read_text()


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_a_published_study_is_what_its_raw_runs_say(folder, tmp_path):
    assert (folder / "results.csv").read_text() == table(unpack(folder, tmp_path) / folder.name)
