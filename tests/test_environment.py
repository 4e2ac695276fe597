"""One list of packages, whichever way they are installed, and the Makefile's own word on its targets."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from flatlingo.files import ROOT

LOCK = {name: Version(version) for name, version in re.findall("(.+)==(.+)", (ROOT / "requirements.lock").read_text())}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LIBRARY = [Requirement(line) for line in PROJECT["dependencies"]]
REQUIRED = LIBRARY + [Requirement(line) for extra in EXTRAS.values() for line in extra if "flatlingo[" not in line]


def test_conda_installs_the_same_list_at_the_same_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python = next(entry for entry in environment["dependencies"] if str(entry).startswith("python="))
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert PROJECT["requires-python"] == ">=" + python.removeprefix("python=")
    assert pip == ["-c requirements.lock", f"-e .[{','.join(EXTRAS)}]"]


@pytest.mark.parametrize("requirement", REQUIRED, ids=lambda requirement: requirement.name)
def test_everything_required_is_locked_at_a_version_of_its_range(requirement):
    assert LOCK[requirement.name] in requirement.specifier


def test_the_library_leaves_its_users_their_versions_and_brings_no_tools():
    assert not [
        str(requirement) for requirement in LIBRARY if any(part.operator == "==" for part in requirement.specifier)
    ]
    assert not {"jupyterlab", "papermill", "pytest", "ruff", "submitit", "matplotlib"} & {one.name for one in LIBRARY}


def test_the_lock_fits_machines_with_and_without_a_gpu():
    assert not LOCK["torch"].local, "a local version such as 2.13.0+cpu exists in no registry"
    assert "triton" in LOCK, "resolved for the CUDA build, so that GPU users get locked versions too"


def test_make_help_names_what_the_readme_promises():
    listing = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in listing.splitlines()} >= {
        "setup", "figures", "figure1", "figure2", "test", "lab", "pretrain", "record", "lint", "lock", "help",
    }  # fmt: skip


def test_jupyterlab_listens_on_this_machine_only_and_asks_for_its_token(tmp_path):
    (command,) = (line for line in commands("lab") if line.startswith("jupyter lab"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    own["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = subprocess.Popen(
        [*command.split(), "--no-browser", "--allow-root", f"--port={port}"],
        cwd=ROOT, env=os.environ | own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 600
        while not answers(f"http://127.0.0.1:{port}/api"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        if (sockets := Path("/proc/net/tcp")).exists():  # Linux
            listening = [line.split()[1:4:2] for line in sockets.read_text().splitlines()[1:]]
            assert [address for address, state in listening if state == "0A" and address.endswith(f":{port:04X}")] == [
                f"0100007F:{port:04X}"
            ]
        contents = f"http://127.0.0.1:{port}/api/contents"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(contents, timeout=30)
        (about,) = (tmp_path / "RUNTIME").glob("jpserver-*.json")
        token = json.loads(about.read_text())["token"]
        assert b"0_start_here.ipynb" in urllib.request.urlopen(f"{contents}?token={token}", timeout=30).read()
    finally:
        process.terminate()
        process.wait(timeout=60)


def answers(address):
    try:
        return urllib.request.urlopen(address, timeout=30).status == 200
    except OSError:
        return False


def commands(target):
    """What make would run for a target, but for what sets up the environment."""
    dry = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True)
    return dry.stdout.splitlines()


def test_nothing_that_is_read_can_run_code():
    """Every call that could, in the whole package."""
    calls = re.compile(
        r"(pickle\.loads?|torch\.load|yaml\.load|joblib\.load|np\.load|eval|exec)\(|trust_remote_code=True"
    )
    text = {path: path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")}
    found = {match[0] for content in text.values() for match in calls.finditer(re.sub(r"\.eval\(\)", "", content))}
    # in the command that the user may run to convert a pickle that he trusts; arrays of numbers
    safe = {"torch.load(": "weights_only=True", "np.load(": "allow_pickle=False"}
    assert found <= set(safe)
    lines = [line for content in text.values() for line in content.splitlines()]
    assert not [line for line in lines for call, how in safe.items() if call in line and how not in line]
