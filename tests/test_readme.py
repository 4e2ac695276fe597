"""The README says what was measured and what its commands print, and its links lead somewhere."""

import doctest
import importlib.util
import re

import pytest

from flatlingo.errors import FlatlingoError
from flatlingo.files import ROOT
from flatlingo.study.presets import PLANS

spec = importlib.util.spec_from_file_location("readme", ROOT / "scripts" / "readme.py")
readme = importlib.util.module_from_spec(spec)
spec.loader.exec_module(readme)
README = (ROOT / "README.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def test_its_numbers_are_those_of_the_figures():
    assert readme.parts(README, "results")[1] == readme.results(), "refresh with: python scripts/readme.py"


def test_its_tour_prints_what_it_says(tmp_path):
    """Words and layout exactly, numbers as closely as trainings on two kinds of processor agree."""
    said, printed = readme.parts(README, "tour")[1], readme.tour(tmp_path)
    assert NUMBER.sub("#", said).split() == NUMBER.sub("#", printed).split()
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (said, printed)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.02, abs=0.3)


def test_its_python_session_prints_what_it_says(monkeypatch):
    test = doctest.DocTestParser().get_doctest(README.replace("```\n", "\n"), {}, "README", "README.md", 0)
    assert len(test.examples) > 3
    assert doctest.DocTestRunner().run(test).failed == 0


def test_a_readme_without_a_place_for_a_block_is_refused():
    with pytest.raises(FlatlingoError, match="around its results"):
        readme.parts("# flatlingo\n", "results")


def test_relative_links_lead_to_files():
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)", README) if not target.startswith("http")]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_links_to_binder_and_colab_name_notebooks_that_exist():
    paths = re.findall(r"(?:mybinder|colab)\S+?(notebooks/[\w]+\.ipynb)", README.replace("%2F", "/"))
    assert len(paths) >= 2
    assert all((ROOT / path).is_file() for path in paths)


def test_its_commands_name_plans_that_exist():
    named = re.findall(r"flatlingo (?:sweep|status DIR|status /shared/runs) ([a-z]\w*)", README)
    assert len(named) >= 4
    assert set(named) <= set(PLANS)
