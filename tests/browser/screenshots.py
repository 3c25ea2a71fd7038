"""The README's two pictures, of the committed example record's report.

.venv/bin/python -m tests.browser.screenshots
"""

import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from evalkit.show import report

ROOT = Path(__file__).resolve().parent.parent.parent
PICTURES = {
    "report-scores": ("", "light"),
    "report-sample": ("#sample/demo_endings/3", "dark"),
}


def main() -> None:
    """Write them into docs/images."""
    (run,) = (ROOT / "results/example").glob("*/record.json")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        path = report.write([run.parent], Path(folder) / "report.html")
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for name, (place, scheme) in PICTURES.items():
            page = browser.new_page(viewport={"width": 1180, "height": 700}, color_scheme=scheme)
            page.goto(path.as_uri() + place)
            page.wait_for_timeout(1_000)
            page.screenshot(path=ROOT / f"docs/images/{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
