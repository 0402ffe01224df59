"""The documents: pages made from the code are current, links lead somewhere, commands and keys are real."""

import re
import shlex
from pathlib import Path

import pytest

from launch import slurm_config
from normlab.config.schema import MODULES, documented_keys
from normlab.docs import ROOT, pages
from tests.runs import typed

SITE = sorted((ROOT / "docs").glob("*.md"))
ALL = [
    *sorted(ROOT.glob("*.md")),
    *SITE,
    *sorted(path for folder in ("experiments", "benchmarks") for path in (ROOT / folder).glob("**/*.md")),
]
GUIDES = [ROOT / "README.md", *SITE]

CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)")
KEY = re.compile(r"\b((?:norm|model|data|optim|hydra\.launcher)\.[\w.]+)\b(?=[=`])")
COMMAND = re.compile(r"^(?:python|torchrun)[^\n]* train\.py +((?:[^\n\\#]|\\\n)+)", re.MULTILINE)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_pages_made_from_the_code_are_current():
    made = pages()
    found = {path: (ROOT / path).read_text() if (ROOT / path).exists() else "" for path in made}
    stale = [str(path) for path, text in made.items() if found[path] != text]
    assert stale == [], "run: python -m normlab.docs, and commit what it writes"
    drawings = {path.relative_to(ROOT) for path in (ROOT / "docs/norms").iterdir()}
    assert drawings == {path for path in made if path.suffix == ".svg"}


# --- links ----------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The names by which links reach the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ALL, ids=named)
def test_links_lead_to_a_file_and_its_heading(page):
    """`make docs` checks the links between pages of the site; this checks all documents, and pictures."""
    for link in LINK.findall(CODE.sub("", page.read_text())):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert "://" in link or target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", SITE, ids=named)
def test_the_site_links_to_nothing_outside_it(page):
    assert [link for link in LINK.findall(page.read_text()) if link.startswith("../")] == []


def test_every_page_of_the_site_is_in_its_navigation():
    navigation = re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(navigation) == [page.name for page in SITE]


# --- commands and keys ----------------------------------------------------------------------------------


def overrides(arguments: str) -> list[str]:
    """The keys that a command sets, each with its first value; without those of Hydra."""
    words = [word for word in shlex.split(arguments.replace("\\\n", " ")) if "=" in word and "hydra" not in word]
    swept = [word if "[" in word or "{" in word else word.split(",")[0] for word in words]
    return [word for word in swept if "(" not in word]  # not intervals to search in


@pytest.mark.parametrize("page", GUIDES, ids=named)
def test_commands_compose(page):
    for block in CODE.findall(page.read_text()):
        for arguments in COMMAND.findall(block):
            if "--" not in arguments:
                typed(*overrides(arguments))


@pytest.mark.parametrize("page", GUIDES, ids=named)
def test_every_key_that_is_named_exists(page):
    sections = [keys for module in (*MODULES, slurm_config) for keys in documented_keys(module).values()]
    known = {key.name for keys in sections for key in keys} | {"hydra.launcher.jobs_per_gpu"}
    open_to_any = ("hydra.launcher.extra.", "norm.args.", "model.args.", "data.args.")
    found = {key for key in KEY.findall(page.read_text()) if not key.startswith(open_to_any)}
    assert found - known == set()
