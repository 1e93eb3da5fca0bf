"""Take the picture of the page that the README shows, of a server that runs with --web."""

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

FILE = Path(__file__).with_name("web.png")


def take(url: str, chromium: str) -> None:
    """Ask the first example question, and write what the page shows then.

    Args:
        url: of the server, e.g. that of `ptune serve --model tiny --prefix ads=demo/prefix --web`.
        chromium: the browser's program.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1080, "height": 860}, locale="en-US")
        page.goto(f"{url}/web/")
        page.locator("#examples button").nth(1).click()
        page.wait_for_function("document.querySelector('#question textarea').value != ''")
        page.click("#ask")
        page.wait_for_selector("#stop:enabled")
        page.wait_for_selector("#stop:disabled")
        page.mouse.move(0, 0)
        page.wait_for_timeout(500)  # colours fade
        page.screenshot(path=FILE)
        browser.close()


if __name__ == "__main__":
    take(*sys.argv[1:])
