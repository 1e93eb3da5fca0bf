"""Debian's Chromium, and a server whose answers take as long as a test wants."""

import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def chromium():
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("needs Chromium; install your system's package, e.g. apt-get install chromium")
    from playwright.sync_api import sync_playwright

    # Chromium's sandbox does not start for root, as whom containers run.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """Open the page of a server; fails for whatever it asks of others, or is refused."""
    contexts, wrong = [], []

    def open_one(url, locale="en-US", wait_for="#question textarea"):
        context = chromium.new_context(locale=locale, viewport={"width": 1200, "height": 1000})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("request", lambda asked: asked.url.startswith(url) or wrong.append(asked.url))
        page.on("response", lambda given: given.status >= 400 and wrong.append(given.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"{url}/web/")
        page.wait_for_selector(wait_for)
        return page

    yield open_one
    for context in contexts:
        context.close()
    meant = ("/favicon.ico", "/queue/join?", "/queue/join")  # the latter are looked at by a test
    assert [url for url in wrong if not url.endswith(meant)] == []
