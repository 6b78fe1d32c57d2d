"""Pages in a real browser: no message, no request, nothing cut off, and text that can be read."""

import contextlib
import runpy
import shutil
from pathlib import Path

import pytest
import small_run
from logged_run import logged_run

from jaxtl.reports import write_comparison
from jaxtl.training.report import draw_again

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small")]

WRITE_PAIRS = Path(__file__).parents[2] / "scripts" / "write_digit_pairs.py"
HEAD = {"train": {"head/.*": 1.0}}
NAMES = ("chromium", "chromium-browser", "google-chrome")
# The least contrast of any text with the nearest ground below it that is opaque, by WCAG 2.2.
CONTRAST = """() => {
  const parts = colour => colour.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parts(getComputedStyle(at).backgroundColor);
      if (colour.length == 3 || colour[3] == 1) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some(n => n.nodeType == 3 && n.textContent.trim());
    const shown = element.getClientRects().length && element.tagName != 'title';
    if (!own || !shown || element.classList.contains('number')) continue;
    const style = getComputedStyle(element);
    const svg = element instanceof SVGElement;
    const [a, b] = [parts(svg ? style.fill : style.color), ground(element)].map(luminance);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push([element.outerHTML.slice(0, 80), ratio]);
  }
  return poor;
}"""


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with contextlib.ExitStack() as opened:
        playwright = opened.enter_context(sync_api.sync_playwright())
        path = next(filter(None, map(shutil.which, NAMES)), None)
        try:
            started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no Chromium on this machine: {str(error).splitlines()[0]}")
        yield opened.enter_context(contextlib.closing(started))


@pytest.fixture(scope="module")
def pages(small, tmp_path_factory):
    """The pages of a run on digits and of one on pairs of them, and one that compares two."""
    folder = tmp_path_factory.mktemp("pages")
    small_run.run(small_run.settings(HEAD), folder / "run")
    pairs = runpy.run_path(str(WRITE_PAIRS))["write_pairs"](folder / "images", 200, side=32)
    data = {"source": f"csv:{pairs}", "batch_size": 64}
    small_run.run(small_run.settings(HEAD, data=data), folder / "labels")
    compared = [logged_run(folder / name, 0.1, [0.5, 0.6]) for name in ("a", "b")]
    return {
        "run": draw_again(folder / "run", None),
        "labels": draw_again(folder / "labels", None),
        "comparison": write_comparison(compared, folder / "both.html"),
    }


@pytest.mark.parametrize("width", [1100, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["run", "labels", "comparison"])
def test_a_page_is_quiet_legible_and_fits_the_screen(browser, pages, name, scheme, width):
    context = browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme=scheme, reduced_motion="reduce"
    )
    with contextlib.closing(context):
        page, said, asked = context.new_page(), [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(pages[name].as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert said == []
        assert [url for url in asked if not url.startswith("data:")] == [pages[name].as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CONTRAST) == []
        without = "[...document.images].filter(i => !i.alt || !i.naturalWidth).length"
        assert page.evaluate(without) == 0
        images = page.evaluate("document.images.length")
        assert images == 0 if name == "comparison" else images > 0
