"""The README says what was measured, and its links lead somewhere."""

import re

import pytest

from flatlingo import readme
from flatlingo.errors import FlatlingoError
from flatlingo.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("README.md", "CONTRIBUTING.md", "data/README.md")


def test_its_numbers_are_those_of_the_figures():
    assert readme.written(README, readme.results()) == README, "refresh with: python -m flatlingo.readme"


def test_a_readme_without_a_place_for_results_is_refused():
    with pytest.raises(FlatlingoError, match="around its results"):
        readme.written("# flatlingo\n", "* 1\n")


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_to_files(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)", text) if not target.startswith("http")]
    assert targets
    missing = [target for target in targets if not ((ROOT / page).parent / target).exists()]
    assert missing == []


def test_links_to_binder_and_colab_name_notebooks_that_exist():
    paths = re.findall(r"(?:mybinder|colab)\S+?(notebooks/[\w]+\.ipynb)", README.replace("%2F", "/"))
    assert len(paths) >= 2
    assert all((ROOT / path).is_file() for path in paths)
