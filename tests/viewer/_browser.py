"""A real browser, without a window: Chromium and its driver. Run as a program it installs them where it can.

That is what ``make test`` does first on a new machine: by apt-get, as root. Elsewhere the tests of the page are skipped
and say so, except in CI.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--lang=en-US"),
)


def find() -> tuple[str, str] | None:
    """Return the paths of the browser and its driver, None if one is missing."""
    names = (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))
    found = [next(filter(None, map(shutil.which, candidates)), None) for candidates in names]
    return (found[0], found[1]) if found[0] and found[1] else None


@contextlib.contextmanager
def browser(
    profile: Path, *, width: int = 1360, height: int = 860, dark: bool = False, mobile: bool = False
) -> Iterator[Any]:
    """A browser, driven by selenium, for as long as the block lasts."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    paths = find()
    assert paths is not None
    options = Options()
    options.binary_location, driver_path = paths
    for flag in (*_FLAGS, f"--window-size={width},{height}", f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = Service(driver_path)
    driver = webdriver.Chrome(options=options, service=service)
    try:
        look(driver, width=width, height=height, dark=dark, mobile=mobile)
        yield driver
    finally:
        driver.quit()


def look(driver: Any, *, width: int = 1360, height: int = 860, dark: bool = False, mobile: bool = False) -> None:
    """Have the page see another screen."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [
        {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def _install() -> int:
    if find() is not None:
        return 0
    if shutil.which("apt-get") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        sys.stdout.write("Chromium is not here and cannot be installed: the tests of the page will be skipped.\n")
        return 0
    sys.stdout.write("Installing Chromium for the tests of the page.\n")
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "chromium", "chromium-driver"]):
        subprocess.run(
            command, check=False, stdout=subprocess.DEVNULL, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(_install())
