"""The public names."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

import flatlingo
from flatlingo import extras
from flatlingo.files import ROOT

WITHOUT_PATH = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "FLATLINGO_FIGURES")}


@pytest.mark.parametrize("name", flatlingo.__all__)
def test_a_public_name_is_there_and_documented(name):
    assert getattr(flatlingo, name).__doc__


def test_importing_the_package_does_not_load_torch():
    code = "import sys, flatlingo; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'fischer_trace'"):
        _ = flatlingo.fischer_trace


@pytest.mark.parametrize(
    ("module", "extra"),
    [("submitit", "study"), ("matplotlib.pyplot", "study"), ("ipywidgets", "notebooks"), ("pytest", "dev")],
)
def test_a_package_of_an_extra_is_named_with_it(module, extra):
    (message,) = extras.missing(ModuleNotFoundError(name=module)).args
    assert message.endswith(f'pip install "flatlingo[{extra}]"')


@pytest.mark.parametrize("module", ["torch", "flatlingo.nowhere", "surely_nothing", None])
def test_what_no_extra_brings_is_left_to_the_import_error(module):
    assert extras.missing(ModuleNotFoundError(name=module)) is None


def test_a_public_name_tells_of_its_extra():
    code = "import sys; sys.modules['matplotlib'] = None; import flatlingo; flatlingo.figure1"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("flatlingo.errors.FlatlingoError")
    assert last.endswith('matplotlib, which is not installed: pip install "flatlingo[study]"')


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built as pip builds it, but without fetching setuptools."""
    tree, built = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ("src", "data/mini-mbert"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(built)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=tree, check=True, capture_output=True, timeout=600)
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder like site-packages that holds the wheel and nothing of the repository, and a folder to work in."""
    prefix, work = tmp_path_factory.mktemp("prefix"), tmp_path_factory.mktemp("work")
    options = ["--no-deps", "--no-index", "--ignore-installed", "--quiet", "--prefix", str(prefix)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True, timeout=600)
    (package,) = prefix.rglob("site-packages")
    return package, work


def in_installed(installed, code):
    package, work = installed
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(package)!r}); {code}"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=600, env=WITHOUT_PATH)
    return done.stdout.strip() or done.stderr.strip()


def test_the_wheel_asks_for_the_library_only(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    asked = {line.split()[1] for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line}
    names = {re.match("[A-Za-z0-9_-]+", one)[0] for one in asked}
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert names == {re.match("[A-Za-z0-9_-]+", one)[0] for one in listed}


def test_the_wheel_brings_presets_world_style_and_encoder(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    data = [path for path in (ROOT / "src" / "flatlingo").rglob("*") if path.suffix in {".yaml", ".tsv", ".mplstyle"}]
    assert len(data) > 8
    assert {path.relative_to(ROOT / "src").as_posix() for path in data} <= set(names)
    encoder = {name.rpartition("/")[2] for name in names if "/share/flatlingo/mini-mbert/" in name}
    assert encoder == {path.name for path in (ROOT / "data" / "mini-mbert").iterdir()}


def test_an_installed_wheel_finds_its_encoder_and_writes_figures_where_one_is(installed):
    code = "from flatlingo.files import FIGURES, MINI_MBERT; print((MINI_MBERT / 'config.json').is_file(), FIGURES)"
    assert in_installed(installed, code) == "True figures"


def test_an_installed_wheel_tells_where_the_recorded_results_are(installed):
    code = "from flatlingo.study.store import open_store; open_store('recorded', 'mini')"
    assert "the recorded results lie in flatlingo's repository" in in_installed(installed, code)
