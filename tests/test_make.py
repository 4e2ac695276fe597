"""What `make figures` builds, and when: the real Makefile, with a stand-in for the commands that it calls."""

import os
import shutil
import subprocess

import pytest

from flatlingo.files import ROOT
from flatlingo.study.presets import known_presets, load_preset

STAND_IN = """#!/bin/sh
# flatlingo notebook SOURCE OUTPUT ...: say so, and copy it or fail; flatlingo sweep PLAN ...: say so
test "$1" = notebook || { echo "sweeping $2"; exit 0; }
echo "executing $2"
mkdir -p "$FLATLINGO_FIGURES" && touch "$FLATLINGO_FIGURES/figure1.png"
case "$2" in *"$BROKEN"*) test -z "$BROKEN" || { cp "$2" "${3%.ipynb}.failed.ipynb"; exit 1; };; esac
mkdir -p "$(dirname "$3")" && cp "$2" "$3"
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose set-up is done."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml", "notebooks", "src"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    for name in ("data/mini-mbert/model.safetensors", "data/mini-mbert/tokenizer.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    command = tmp_path / ".venv" / "bin" / "flatlingo"
    command.parent.mkdir(parents=True)
    command.write_text(STAND_IN)
    command.chmod(0o755)
    (tmp_path / ".venv" / ".installed").write_text("")
    return tmp_path


def make(checkout, *arguments, broken=""):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "FLATLINGO"))}
    done = subprocess.run(
        ["make", *arguments], cwd=checkout, env=environment | {"BROKEN": broken}, capture_output=True, text=True
    )
    executed = [line.split("/")[-1] for line in done.stdout.splitlines() if line.startswith("executing ")]
    return done, executed


STUDIES = ["2_figure1.ipynb", "3_figure2.ipynb"]
RECORDED_STUDIES = [*STUDIES, "6_using_the_trace.ipynb"]


def names(checkout):
    return sorted(path.name for path in (checkout / "notebooks").glob("*.ipynb"))


def test_by_default_the_short_study_is_trained_and_what_is_recorded_drawn_beside_it(checkout):
    done, executed = make(checkout, "figures")
    assert sorted(line for line in done.stdout.splitlines() if line.startswith("sweeping")) == [
        "sweeping nli",
        "sweeping paraphrase",
    ]
    assert sorted(executed) == sorted(STUDIES + names(checkout) + RECORDED_STUDIES)  # quick, mini, small
    assert {str(path.parent.relative_to(checkout)) for path in checkout.glob("figures/**/figure1.png")} == {
        "figures",
        "figures/quick",
        "figures/small",
    }
    assert make(checkout, "figures")[1] == []


def test_a_second_call_has_nothing_to_do_and_says_so(checkout):
    assert sorted(make(checkout, "figures", "PRESET=mini")[1]) == names(checkout)
    done, executed = make(checkout, "figures", "PRESET=mini")
    assert executed == []
    assert "Nothing to be done for 'figures'" in done.stdout


def test_another_store_or_plan_is_drawn_anew_and_not_over_the_recorded_figures(checkout):
    assert make(checkout, "figure1")[1] == ["2_figure1.ipynb"]
    assert make(checkout, "figure1", "PLANS=nli")[1] == ["2_figure1.ipynb"]
    assert make(checkout, "figure1", "PLANS=nli")[1] == []
    for preset in ("mini", "small"):
        done, executed = make(checkout, "figure1", f"PRESET={preset}", "STORE=build/own", "SEEDS=2")
        assert executed == ["2_figure1.ipynb"]
        assert "sweeping nli" in done.stdout
    places = {str(path.parent.relative_to(checkout)) for path in checkout.glob("figures/**/figure1.png")}
    assert places == {"figures", "figures/mini-own", "figures/small-own"}
    done, executed = make(checkout, "figure1", "PRESET=mini", "STORE=build/other", "SEEDS=2")
    assert executed == ["2_figure1.ipynb"]
    assert "sweeping nli" in done.stdout


@pytest.mark.parametrize(
    ("touched", "rebuilt"),
    [
        ("notebooks/2_figure1.ipynb", ["2_figure1.ipynb"]),
        ("src/flatlingo/presets/smoke.yaml", None),
        ("src/flatlingo/fisher/trace.py", None),
        ("src/flatlingo/report/paper.mplstyle", None),
        ("data/mini-mbert/model.safetensors", None),
        ("src/flatlingo/presets/paper.yaml", []),
        ("figures/smoke/figure1.png", []),
    ],
    ids=["notebook", "preset", "source", "style", "encoder", "another preset", "a figure"],
)
def test_what_depends_on_a_touched_file_is_built_again(checkout, touched, rebuilt):
    everything = make(checkout, "figures", "PRESET=smoke")[1]
    for built in (checkout / "build").rglob("*"):
        os.utime(built, (1, 1))
    for path in checkout.rglob("*"):
        if checkout / "build" not in (path, *path.parents):
            os.utime(path, (0, 0))
    os.utime(checkout / touched, (2, 2))
    planned = make(checkout, "-n", "figures", "PRESET=smoke")[0].stdout
    executed = make(checkout, "figures", "PRESET=smoke")[1]
    assert sorted(executed) == sorted(everything if rebuilt is None else rebuilt)  # two are built at a time
    assert planned.count("flatlingo notebook") == len(executed)
    assert planned.count("flatlingo sweep") == (3 if rebuilt is None else 0)


def test_a_failed_notebook_is_kept_for_reading_and_built_next_time(checkout):
    done, _ = make(checkout, "-k", "figures", "PRESET=smoke", broken="3_figure2")
    assert done.returncode != 0
    assert (checkout / "build" / "smoke" / "3_figure2-1.failed.ipynb").exists()
    done, executed = make(checkout, "figures", "PRESET=smoke")
    assert done.returncode == 0
    assert executed == ["3_figure2.ipynb"]


def test_the_plan_executes_nothing(checkout):
    done, executed = make(checkout, "-n", "figures", "PRESET=smoke", "SEEDS=2")
    assert executed == []
    assert "-p preset=smoke -p store=build/smoke/store -p seeds=2" in done.stdout
    assert not (checkout / "build").exists()


@pytest.mark.parametrize("preset", known_presets())
def test_what_a_notebook_reads_is_swept_before(checkout, preset):
    store = f"STORE=build/{preset}/store"
    planned = make(checkout, "-n", "figures", f"PRESET={preset}", "SEEDS=2", store)[0].stdout.splitlines()
    swept = [line.split()[2] for line in planned if line.startswith("flatlingo sweep")]
    assert sorted(swept) == sorted({"nli", "paraphrase", "regularized_second_stage"} & set(load_preset(preset).plans))
    notebook = next(at for at, line in enumerate(planned) if "flatlingo notebook notebooks/2_figure1" in line)
    assert any(line.startswith("flatlingo sweep nli") for line in planned[:notebook])


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        (("PRESET=quick",), ""),
        (("PRESET=small", "STORE=build/small/store"), "--discard-weights"),
        (("PRESET=paper", "JOBS=2", "DATA=rows"), "--jobs 2 --data rows --discard-weights"),
    ],
    ids=["quick", "small", "paper, jobs, rows"],
)
def test_sweeps_keep_no_weights_that_fill_a_disk_and_take_jobs_and_rows(checkout, asked, options):
    planned = make(checkout, "-n", "figure1", "PLANS=nli", *asked)[0].stdout
    (command,) = (line for line in planned.splitlines() if line.startswith("flatlingo sweep"))
    preset = asked[0].partition("=")[2]
    assert command.split() == (
        f"flatlingo sweep nli --preset {preset} --seeds 1 --store build/{preset}/store {options}".split()
    )


@pytest.mark.parametrize("recorded", [["nli"], ["nli", "paraphrase"]], ids=" and ".join)
def test_preset_small_is_drawn_as_recorded_and_nothing_is_trained(checkout, recorded):
    for plan in recorded:
        run = checkout / "data" / "recorded" / "small" / f"{plan}-none-s1-0123456789"
        run.mkdir(parents=True)
        (run / "SHA256SUMS").write_text("")
    done, executed = make(checkout, "figures", "PRESET=small")
    assert done.returncode == 0
    assert "sweeping" not in done.stdout
    assert sorted(executed) == RECORDED_STUDIES
    left_out = "left out: plan paraphrase of preset small is not recorded"
    assert (left_out in done.stdout.splitlines()) is ("paraphrase" not in recorded)
    assert make(checkout, "figures", "PRESET=small")[1] == []
    (run / "SHA256SUMS").touch()
    assert len(make(checkout, "figures", "PRESET=small")[1]) == 3


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no repository")
@pytest.mark.parametrize(("folder", "ignored"), [("figures", 1), ("figures/small", 1), ("figures/paper", 0)])
def test_figures_of_the_recorded_presets_are_committed_others_ignored(folder, ignored):
    assert subprocess.run(["git", "check-ignore", "-q", f"{folder}/figure1.png"], cwd=ROOT).returncode == ignored
