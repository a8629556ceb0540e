"""The page in a browser without a window: it answers, follows a slider, asks nobody else, and its server goes."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contracting import InputError, MissingExtraError
from equilibrium.explorer.command import ServerError, serving
from equilibrium.explorer.script import _rows
from equilibrium.explorer.setting import EXAMPLES

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--window-size=1400,1700",
)  # fmt: skip
_PATIENCE = 150  # seconds for an answer; the first one imports everything
# Controls live in shadow trees, which selectors do not see into.
_FIND = """
const found = [], look = root => root.querySelectorAll('*').forEach(node => {
  if (node.matches(arguments[0])) found.push(node);
  if (node.shadowRoot) look(node.shadowRoot);
});
look(document); return found;
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    driver, binary = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
    if driver is None or binary is None:
        pytest.skip("there is no chromium with its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


def when(browser: Any, condition: Callable[[], Any]) -> Any:
    """What the condition gives as soon as it gives something."""
    from selenium.common.exceptions import StaleElementReferenceException

    last = time.monotonic() + _PATIENCE
    while time.monotonic() < last:
        try:
            if found := condition():
                return found
        except StaleElementReferenceException:  # the page has changed in between
            pass
        time.sleep(0.1)
    raise AssertionError(f"the page shows: {browser.find_element('tag name', 'body').text[:2000]}")


@pytest.mark.slow
def test_the_page_answers_in_a_browser(browser: Any, tmp_path: Path) -> None:
    pytest.importorskip("marimo", reason="marimo is not installed")
    start = EXAMPLES["three units in a ring"]
    with serving(start) as address:
        browser.get(address)
        when(browser, lambda: browser.find_elements("css selector", "#answer[data-when=complete]"))
        answer = browser.find_element("id", "answer")
        said = answer.text
        assert "Proved: distances shrink by" in said and "upper bound" in said and "SemismoothNewton" in said
        assert "EquilibriumProblem(linear=Dense(W)" in browser.find_element("tag name", "body").text
        assert len(browser.find_elements("css selector", "#answer polyline")) > 100

        sliders = browser.execute_script(_FIND, "[role=slider]")
        assert len(sliders) == 5  # the skew part, α and three inputs
        sliders[0].send_keys("\ue014" * 10)  # the right arrow: half a unit more of the skew part
        when(browser, lambda: browser.find_element("id", "answer").text.split("\n")[:8] != said.split("\n")[:8])
        sliders[0].send_keys("\ue014" * 10)  # while the answer to the former is not complete
        script = f"torch.tensor({_rows(replace(start, skewness=start.skewness + 1.0).W)})"
        when(browser, lambda: script in browser.find_element("tag name", "body").text)
        assert browser.find_elements("css selector", "#answer[data-when=complete]")
        browser.save_screenshot(str(tmp_path / "explorer.png"))
        assert (tmp_path / "explorer.png").stat().st_size > 50_000

        areas = browser.execute_script(_FIND, "textarea")
        areas[0].clear()
        areas[0].send_keys("1 2 3", "\ue004")  # and the tabulator, which leaves the field
        when(browser, lambda: "W must be square" in browser.find_element("tag name", "body").text)

        names = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert names and all(name.startswith((address, "data:", "blob:")) for name in names)
    with socket.socket() as probe:  # nobody listens any more
        assert probe.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) != 0


def test_a_server_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("marimo", reason="marimo is not installed")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for port in (taken.getsockname()[1], 10**6):
            with pytest.raises(InputError, match="port"), serving(port=port):
                pass
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(ServerError), serving():
        pass


def test_without_marimo_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "marimo", None)
    with pytest.raises(MissingExtraError, match="explore"), serving():
        pass
