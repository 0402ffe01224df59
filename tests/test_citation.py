"""CITATION.cff says what the package says."""

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_the_citation_has_the_name_the_version_and_the_license_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["title"].startswith(project["name"])
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
