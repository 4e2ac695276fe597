"""The README says what was measured, and its links lead somewhere."""

import re

import pytest

from flatlingo import readme
from flatlingo.errors import FlatlingoError
from flatlingo.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_numbers_are_those_of_the_figures():
    assert readme.written(README, readme.results()) == README, "refresh with: python -m flatlingo.readme"


def test_a_readme_without_a_place_for_results_is_refused():
    with pytest.raises(FlatlingoError, match="around its results"):
        readme.written("# flatlingo\n", "* 1\n")


def test_relative_links_lead_to_files():
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)", README) if not target.startswith("http")]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_links_to_binder_and_colab_name_notebooks_that_exist():
    paths = re.findall(r"(?:mybinder|colab)\S+?(notebooks/[\w]+\.ipynb)", README.replace("%2F", "/"))
    assert len(paths) >= 2
    assert all((ROOT / path).is_file() for path in paths)
