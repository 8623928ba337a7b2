"""Pages in headless Chromium by playwright, which must both be on the machine (Debian: apt-get install chromium)."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (390, 1400)


@contextlib.contextmanager
def opened(address: str, width: int, dark: bool = False) -> Iterator[Any]:
    """A page of playwright in a window of this width.

    At the end nothing may have been said on the console or fetched from elsewhere, and nothing may scroll sideways.
    """
    from playwright import sync_api

    faults: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        scheme = "dark" if dark else "light"
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        # Chromium itself notes every answer that is an error.
        page.on("console", lambda message: "400 (Bad Request)" in message.text or faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda one: one.url.startswith((address, "data:", "blob:")) or faults.append(one.url))
        page.goto(address)
        yield page
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        browser.close()
    assert not faults
