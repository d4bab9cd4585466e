"""A page in a headless Chromium, where one is installed."""

import html
import json
import re
import shutil
import subprocess

import pytest

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: the page is not tried in one")

# Runs in a copy of the page: uses it as a reader would, and leaves what it saw in the document.
DRIVER = """
<script>
window.requestAnimationFrame = (draw) => setTimeout(draw, 5);  // nothing is shown, so that no frames come
window.errors = [];
window.addEventListener("error", (event) => errors.push(event.message));
for (const kind of ["error", "warn"]) console[kind] = (...parts) => errors.push(parts.join(" "));
</script>
"""


def browse(page, steps, folder, *options):
    """What the steps (a script that leaves JSON in an element `seen`) saw of a page in a headless Chromium."""
    path = folder / "driven.html"
    page = page.replace("<head>", "<head>" + DRIVER, 1).replace("</body>", steps + "</body>")
    path.write_text(page, encoding="utf-8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900", *options,
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=15000", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    [seen] = re.findall(r'<pre id="seen">(.*?)</pre>', result.stdout, re.DOTALL)
    return json.loads(html.unescape(seen))
