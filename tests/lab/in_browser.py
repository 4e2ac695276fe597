"""Every notebook in JupyterLab, driven by Chromium as a reader would: open, restart and run all, move sliders.

Run by `make test-lab`; screenshots stay in build/lab/. The notebooks are copies, so that the committed ones stay as
they are.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from flatlingo.files import ROOT

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no Chromium: apt-get install chromium (as root)", allow_module_level=True)

FOLDER = ROOT / "build" / "lab"
NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
TOKEN = "test"
MINUTES = 60_000
FLAGS = [
    "--no-sandbox", "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
SETTINGS = {  # no question about news, and every cell in the page, also those out of sight
    "config/labconfig/page_config.json": (
        '{"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": true}}'
    ),
    "settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings": '{"windowingMode": "none"}',
}
PROMPTS = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.textContent)"


@pytest.fixture(scope="module")
def server():
    """Address of a JupyterLab on copies of the notebooks, with settings of its own."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    shutil.copytree(ROOT / "notebooks", FOLDER / "notebooks", ignore=shutil.ignore_patterns("conftest.py", ".*", "__*"))
    for name, text in SETTINGS.items():
        (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / name).write_text(text)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    names = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    names |= {"IPYTHONDIR": "ipython", "FLATLINGO_FIGURES": "figures"}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}", "--LabApp.extension_manager=readonly",
        f"--ServerApp.root_dir={FOLDER / 'notebooks'}", f"--LabApp.user_settings_dir={FOLDER / 'settings'}",
    ]  # fmt: skip
    with (FOLDER / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | {name: str(FOLDER / at) for name, at in names.items()}
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}/api", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=30)


def _wait_for(address, process):
    for _ in range(240):
        assert process.poll() is None, (FOLDER / "server.log").read_text()
        try:
            urllib.request.urlopen(address, timeout=5)
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError("JupyterLab did not start: " + (FOLDER / "server.log").read_text())


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def run_all(server, browser):
    """Open a notebook, restart its kernel and run all cells; returns the page and the seconds that the cells took."""
    pages = []

    def run(name):
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        pages.append(page)
        page.set_default_timeout(3 * MINUTES)
        page.goto(f"{server}/lab/tree/{name}?token={TOKEN}&reset")
        page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").wait_for()
        # Restarted within a second of its start, a kernel can get a connection on which the server does not read the
        # protocol that the page writes (jupyter_server 2.21: "unpack requires a buffer"): the cells are never run.
        page.wait_for_timeout(3000)
        page.get_by_role("menuitem", name="Kernel", exact=True).click()
        page.get_by_role("menuitem", name="Restart Kernel and Run All Cells…").click()
        page.get_by_role("button", name="Confirm Kernel Restart").click()
        started = time.monotonic()
        page.wait_for_function(f"{PROMPTS}.some(text => text.includes('*'))")
        page.wait_for_function(f"{PROMPTS}.every(text => /\\[\\d+\\]/.test(text))", timeout=5 * MINUTES)
        return page, time.monotonic() - started

    yield run
    for page in pages:
        page.close()


def screenshot(page, name, element=None):
    target = element or page.locator(".jp-OutputArea img").last
    target.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    page.screenshot(path=FOLDER / f"{name}.png")


@pytest.mark.parametrize("name", NOTEBOOKS, ids=lambda name: name.removesuffix(".ipynb"))
def test_runs_from_a_fresh_kernel_without_errors(run_all, name):
    page, seconds = run_all(name)
    print(f"{name}: {seconds:.1f} s")
    for kind in ("error", "stderr"):
        wrong = page.locator(f".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.{kind}']")
        assert wrong.count() == 0, wrong.first.inner_text()
    if "plt.show()" in (FOLDER / "notebooks" / name).read_text():
        assert page.locator(".jp-OutputArea img").count() > 0
        screenshot(page, name.removesuffix(".ipynb"))
    kernels = page.request.get(f"{page.url.partition('/lab')[0]}/api/kernels?token={TOKEN}").json()
    for kernel in kernels:
        page.request.delete(f"{page.url.partition('/lab')[0]}/api/kernels/{kernel['id']}?token={TOKEN}")


def test_sliders_of_explore_change_their_pictures(run_all):
    page, _ = run_all("explore.ipynb")
    source = "document.querySelector('.widget-image').src"
    before = page.evaluate(source)
    handles = page.locator(".widget-slider .noUi-handle, .widget-hslider .noUi-handle")
    screenshot(page, "explore-widgets", page.locator(".widget-image").first)
    handles.first.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.wait_for_function(f"{source} !== {before!r}")
    screenshot(page, "explore-slider-moved", page.locator(".widget-image").first)

    handles.nth(1).focus()  # λ of the live panel
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.get_by_role("button", name="train", exact=True).click()
    page.locator(".widget-label", has_text="λ = 0.5").filter(has_text="done").wait_for()
    live = page.locator(".widget-image").nth(1)
    assert live.evaluate("image => image.naturalWidth") > 100
    screenshot(page, "explore-live", live)
    assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']").count() == 0
