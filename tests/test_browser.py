"""A learner's browser: the notebooks in a real JupyterLab, *Run All*, their live views; and the web site.

By default two notebooks are opened, 00 and 02, which has the most live views; GA_BROWSER=all opens them all.
Screenshots go to build/screens/.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.parse import unquote, urlparse
from urllib.request import urlopen

import ipywidgets
import nbformat
import pytest
from nbclient import NotebookClient

import build

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium on PATH: apt-get install chromium"),
]
SCREENS = build.ROOT / "build" / "screens"
NOTEBOOKS = sorted(path.stem for path in (build.ROOT / "notebooks").glob("*.ipynb"))
OPENED = [name for name in NOTEBOOKS if os.environ.get("GA_BROWSER") == "all" or name[:2] in ("00", "02")]
PLAIN_LAB = {  # all cells are in the page, not only those in sight, and no question about news hides a button
    "lab/user-settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"},
    "labconfig/page_config.json": {
        "disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}
    },
}
NEW_RUN = """() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].some(
  prompt => prompt.textContent.includes('*'))"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address and the token of a JupyterLab with settings of its own, over a copy of the notebooks."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(build.ROOT / "notebooks", folder / "notebooks")
    for name, settings in PLAIN_LAB.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    python_path = os.pathsep.join([str(build.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {
        "JUPYTER_TOKEN": token,
        "JUPYTER_CONFIG_DIR": str(folder),
        "PYTHONPATH": python_path,
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "notebooks",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
    ]
    command += [
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        "--LabApp.extension_manager=readonly",
    ]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(f"{address}/api", server, folder / "log")
            yield address, token
        finally:
            server.terminate()
            server.wait(30)


def _wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(120):
        assert server.poll() is None, log.read_text()
        try:
            return urlopen(url).close()
        except URLError:
            time.sleep(0.5)
    raise AssertionError(f"JupyterLab did not start within a minute: {log.read_text()}")


def new_page(browser, width: int, height: int):
    """A page, and the list of all that it will ask of anybody but this machine."""
    page, outside = browser.new_page(viewport={"width": width, "height": height}), []

    def note(request):
        address = urlparse(request.url)
        if address.scheme not in ("data", "blob", "file") and address.hostname not in (
            "127.0.0.1",
            "localhost",
        ):
            outside.append(request.url)

    page.on("request", note)
    page.on("websocket", note)
    page.set_default_timeout(60_000)
    return page, outside


def run_all(page) -> None:
    page.locator(".jp-CodeCell").first.wait_for()
    page.locator(".jp-Toolbar-kernelName", has_text="Python 3").first.wait_for()
    for _ in range(3):  # JupyterLab drops the command, without a word, while its kernel is still connecting
        page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').first.wait_for()
        page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
        page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
        with contextlib.suppress(playwright.TimeoutError):
            page.wait_for_function(NEW_RUN, timeout=15_000)
            break
    else:
        raise AssertionError("Run All Cells was chosen three times, and no cell ran")
    page.wait_for_function(f"() => !({NEW_RUN})()", timeout=400_000)
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').first.wait_for()


def shots() -> Path:
    SCREENS.mkdir(parents=True, exist_ok=True)
    return SCREENS


def shoot(view, name: str) -> None:
    view.scroll_into_view_if_needed()
    view.screenshot(path=shots() / f"{name}.png")


def output_of(page, call: str):
    return page.locator(".jp-CodeCell", has=page.locator(".jp-Editor", has_text=call)).locator(
        ".jp-Cell-outputArea"
    )


def moved(handle) -> None:
    """A slider goes one step up, by keyboard."""
    before = float(handle.get_attribute("aria-valuenow"))
    handle.press("ArrowRight")
    assert float(handle.get_attribute("aria-valuenow")) > before


def slider(view, label: str):
    named = view.page.locator(".widget-label", has_text=re.compile(f"^{label}$"))
    return view.locator(".widget-inline-hbox", has=named).get_by_role("slider")


def the_guess_can_be_made(page, name):
    """The slider moves, the button makes the guess final and says so."""
    view = output_of(page, "ga.predict(").first
    moved(view.get_by_role("slider"))
    view.get_by_role("button", name="This is my guess").click()
    view.get_by_text(re.compile(r"Your guess: \d+")).wait_for()
    shoot(view, f"{name}-guess")


def circuitsvis_is_drawn(page, name):
    view = output_of(page, "ga.attention_view(")
    drawn = view.locator("[id^=attention-]").locator("canvas, svg")
    drawn.first.wait_for()
    assert min(drawn.last.bounding_box()[side] for side in ("width", "height")) > 50
    shoot(view, f"{name}-circuitsvis")


def changed_picture(view, act) -> None:
    image = view.locator("img").last
    image.wait_for()
    before = image.get_attribute("src")
    act()
    playwright.expect(image).not_to_have_attribute("src", before)


def the_explorer_answers(page, name):
    view = output_of(page, "ga.head_explorer(")
    changed_picture(view, lambda: moved(slider(view, "layer")))
    changed_picture(view, lambda: moved(slider(view, "head")))
    view.get_by_text("disable this head").click()
    view.get_by_role("status").filter(has_text="disabled").wait_for()
    shoot(view, f"{name}-explorer")


def the_sweep_answers(page, name):
    view = output_of(page, "ga.sweep_view(")
    view.get_by_role("button", name=re.compile("L1H0")).click()
    view.get_by_role("status").filter(has_text="L1H0 disabled").wait_for()
    changed_picture(view, lambda: view.get_by_role("button", name=re.compile("L2H1")).click())
    shoot(view, f"{name}-sweep")


def run_again(page, call: str) -> None:
    """Run the one cell that makes a call, again."""
    cell = page.locator(".jp-CodeCell", has=page.locator(".jp-Editor", has_text=call))
    before = cell.locator(".jp-InputPrompt").inner_text()
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    playwright.expect(cell.locator(".jp-InputPrompt")).to_have_text(re.compile(r"\[\d+\]"))
    playwright.expect(cell.locator(".jp-InputPrompt")).not_to_have_text(before)


def views_answer_when_their_cells_run_again(page, name):
    drawn = output_of(page, "ga.attention_view(").locator("[id^=attention-]")
    before = drawn.get_attribute("id")
    run_again(page, "ga.attention_view(")
    playwright.expect(drawn).not_to_have_attribute("id", before)
    circuitsvis_is_drawn(page, name)
    run_again(page, "ga.sweep_view(")
    the_sweep_answers(page, name)


def the_two_patterns_answer(page, name):
    view = output_of(page, "ga.attention_beside(")
    changed_picture(view, lambda: moved(slider(view, "layer").last))
    shoot(view, f"{name}-beside")


def the_answer_follows_the_slider(page, name):
    """From between the options to the one on its right: the model answers that letter."""
    view = output_of(page, "ga.steer_view(")
    view.get_by_role("status").filter(has_text="Move the slider").wait_for()
    slider(view, "look at").press("ArrowRight")
    view.get_by_role("status").filter(has_text="made to look at C: the model answers C").wait_for()
    shoot(view, f"{name}-steer")


VIEWS = {
    "00_start_here": [the_answer_follows_the_slider],
    "02_finding_ga_heads": [
        the_explorer_answers,
        the_sweep_answers,
        views_answer_when_their_cells_run_again,
    ],
    "04_ssm_implicit_attention": [the_two_patterns_answer],
}


@pytest.mark.parametrize("name", OPENED)
def test_a_notebook_runs_in_jupyterlab_and_its_live_views_answer(name, lab, browser):
    address, token = lab
    page, outside = new_page(browser, 1300, 1000)
    page.goto(f"{address}/lab/tree/{name}.ipynb?reset&token={token}")
    run_all(page)
    errors = page.locator('[data-mime-type="application/vnd.jupyter.error"], .jp-RenderedText .ansi-red-fg')
    assert errors.all_inner_texts() == []
    prompts = page.locator(".jp-CodeCell .jp-InputArea-prompt").all_inner_texts()
    assert prompts == [f"[{i + 1}]:" for i in range(len(prompts))]
    if name.startswith("02"):
        circuitsvis_is_drawn(page, name)
    shoot(page.locator(".jp-CodeCell").last, f"{name}-end")
    assert outside == []
    if ipywidgets.__version__ < "8":
        pytest.skip("all cells ran, but JupyterLab 4 shows no live views of ipywidgets 7")
    assert (
        page.get_by_text(re.compile("Error displaying widget|Failed to load model|Loading widget")).count()
        == 0
    )
    for use in [the_guess_can_be_made, *VIEWS.get(name, [])]:
        use(page, name)
    page.screenshot(path=shots() / f"{name}.png")
    assert outside == []
    page.close()


def test_a_view_shown_twice_is_drawn_twice_and_waits_for_its_script(browser, tmp_path):
    cells = [
        'import ga_utils as ga\nlm = ga.load_model("tiny-llama", device="cpu")',
        'ga.attention_view(lm, "A B", 0)',
        'ga.attention_view(lm, "C D", 1)',
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, resources={"metadata": {"path": tmp_path}}).execute()
    first, second = [cell.outputs[0].data["text/html"] for cell in notebook.cells[1:]]
    # The second view twice, in front of the first, which has the script.
    (tmp_path / "page.html").write_text(f"<!doctype html>{second}<p>{second}<p>{first}", encoding="utf-8")
    page, outside = new_page(browser, 1300, 1000)
    page.goto((tmp_path / "page.html").as_uri())
    views = page.locator("[id^=attention-]")
    playwright.expect(views).to_have_count(3)
    for i, name in enumerate(("L1H3", "L1H3", "L0H3")):
        playwright.expect(views.nth(i)).to_contain_text(name)
        playwright.expect(views.nth(i)).not_to_contain_text("where scripts may run")
    assert len(set(views.evaluate_all("views => views.map(view => view.id)"))) == 3 and outside == []
    (tmp_path / "page.html").write_text(f"<!doctype html>{second}", encoding="utf-8")
    page.reload()
    page.get_by_text("run that view's cell again").wait_for()
    page.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    target = tmp_path_factory.mktemp("course") / "site"
    build.site(target)
    return target


def pages_of(site):
    return [site / "index.html", site / "search.html", *sorted(site.glob("*/[0-9R]*.html"))]


def test_every_page_fits_a_phone_describes_its_figures_asks_nobody_and_is_light(browser, site):
    page, outside = new_page(browser, 390, 844)
    loaded = []
    page.on("request", lambda request: loaded.append(request.url))
    pages = pages_of(site)
    assert {path.stem for path in pages} >= {*NOTEBOOKS, "index", "README"}
    for path in pages:
        loaded.clear()
        page.goto(path.as_uri())
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path.name
        alts = page.locator("article img").evaluate_all("all => all.map(image => image.alt)")
        assert all(len(alt) > 20 for alt in alts), path.name
        files = {unquote(urlparse(url).path) for url in loaded if url.startswith("file:")}
        assert sum(Path(file).stat().st_size for file in files) < 3_000_000, path.name
        if path.name.startswith("02"):
            page.locator("[id^=attention-] canvas, [id^=attention-] svg").first.wait_for()
    assert outside == []
    page.close()


def test_the_side_bar_leads_everywhere_also_on_a_phone(browser, site):
    for width in (1300, 390):
        page, _ = new_page(browser, width, 844)
        page.goto((site / "index.html").as_uri())
        for name, landed in (("03 ·", "03_ablating_heads_on_mmlu"), ("For the teacher", "notebooks/README")):
            if width == 390:
                page.get_by_role("button", name="Toggle primary sidebar").click()
            page.get_by_role("navigation").get_by_role("link", name=re.compile(f"^{name}")).click()
            page.wait_for_url(f"**/{landed}.html")
        page.screenshot(path=shots() / f"site-{width}.png")
        page.close()


def test_the_pages_turn_in_order(browser, site):
    page, _ = new_page(browser, 1300, 900)
    page.goto((site / "index.html").as_uri())
    for name in NOTEBOOKS:
        page.locator(".prev-next-footer a.right-next").click()
        page.wait_for_url(f"**/{name}.html")
    page.close()


def test_search_finds_a_word_and_leads_to_it(browser, site):
    page, outside = new_page(browser, 1300, 900)
    page.goto((site / "data" / "README.html").as_uri())
    page.keyboard.press("Control+k")
    page.keyboard.type("Aggregate")
    page.keyboard.press("Enter")
    result = page.locator("#search-results").get_by_role("link", name=re.compile("^02 ·")).first
    result.wait_for()
    page.screenshot(path=shots() / "site-search.png")
    result.click()
    page.wait_for_url("**/02_finding_ga_heads.html**")
    assert outside == []
    page.close()


def test_dark_mode_can_be_chosen_and_stays(browser, site):
    page, _ = new_page(browser, 1300, 900)
    page.goto((site / "index.html").as_uri())
    brightness = "() => Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])"
    assert page.evaluate(brightness) > 200
    page.get_by_role("button", name="Color mode").click()
    page.get_by_role("button", name="Dark", exact=True).click()
    assert page.evaluate(brightness) < 50
    page.goto((site / "notebooks" / f"{NOTEBOOKS[0]}.html").as_uri())
    assert page.evaluate(brightness) < 50
    page.screenshot(path=shots() / "site-dark.png")
    page.close()
