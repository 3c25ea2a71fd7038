"""Reports opened in a real browser: Debian's chromium, driven by Playwright, judged by axe-core.

The full-size record is made up (`tests/full.py`); the demo's is real. Every page is opened from the
disk, and fails the test if it logs an error or asks the network for anything.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import full
import pytest
import support

from evalkit.show import report

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
AXE = Path(__file__).parent / "node_modules/axe-core/axe.min.js"
Open = Callable[..., Any]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The browser, started once."""
    assert CHROMIUM, "there is no chromium: apt-get install chromium"
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any) -> Open:
    """`with opened(path, hash="", **context) as page`: a page whose errors fail the test."""

    @contextmanager
    def open_page(path: Path, hash: str = "", **options: Any) -> Iterator[Any]:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        page = context.new_page()
        problems: list[str] = []
        page.on("console", lambda m: problems.append(m.text) if m.type != "log" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda r: problems.append(r.url) if not r.url.startswith(
            ("file:", "data:", "blob:")) else None)  # fmt: skip
        page.goto(path.as_uri() + hash)
        yield page
        context.close()
        assert problems == []

    return open_page


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two made-up records of core's size, of the same questions."""
    folder = tmp_path_factory.mktemp("full")
    return [full.make(folder / str(seed), seed) for seed in (0, 1)]


@pytest.fixture(scope="session")
def large(records: list[Path]) -> Path:
    """The report of a full-size record."""
    return report.write(records[:1], records[0].parent / "large.html")


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the demo's run."""
    run = support.finished(tmp_path_factory.mktemp("demo"))
    return report.write([run])


def until(page: Any, expression: str) -> None:
    """Wait for JavaScript to be true. Playwright's own way needs eval, which the page forbids."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {expression}")


def found(page: Any) -> int:
    """How many samples the browser says it found."""
    until(page, "!document.getElementById('found').textContent.startsWith('Searching')")
    return int(page.inner_text("#found").split()[0].replace(",", ""))


def choose(page: Any, name: str, value: str) -> int:
    page.select_option(f"#f-{name}", value)
    return found(page)


def test_a_full_size_report_is_small_and_paints_within_two_seconds(
    large: Path, opened: Open
) -> None:
    assert large.stat().st_size < 5 << 20
    with opened(large) as page:
        until(page, "performance.getEntriesByName('first-contentful-paint').length > 0")
        painted = page.evaluate(
            "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        )
        assert painted < 2_000
        assert found(page) == 31_767


def test_filters_narrow_the_list_and_search_reads_the_texts(large: Path, opened: Open) -> None:
    with opened(large) as page:
        assert choose(page, "task", "family:mmlu") == 14_042
        assert choose(page, "task", "mmlu_anatomy") == 135
        wrong = choose(page, "result", "wrong")
        assert choose(page, "result", "right") + wrong == 135
        assert "✓ right" in page.inner_text("#rows tbody tr >> nth=0")
        choose(page, "result", "")
        close = choose(page, "only", "32")
        assert 0 < close < 135
        assert all(float(cell) < 0.1 for cell in page.locator("#rows td.number").all_inner_texts())
        choose(page, "only", "")
        page.fill("#f-query", "mmlu_anatomy 134")
        until(page, "document.getElementById('found').textContent.includes('among')")
        assert found(page) >= 1
        page.fill("#f-query", "no-such-word-anywhere")
        until(page, "document.getElementById('found').textContent.startsWith('0 ')")


def test_a_sample_has_a_link_and_shows_prompt_choices_and_answer(large: Path, opened: Open) -> None:
    with opened(large, "#sample/bbh_cot_fewshot_navigate/0") as page:
        page.wait_for_selector("#sample pre")
        told = page.inner_text("#sample")
        assert "bbh_cot_fewshot_navigate 0" in told and "Let's think" in told
        assert "Found by get-answer" in told
        page.goto(large.as_uri() + "#sample/hellaswag/0")
        page.wait_for_selector("#sample .option")
        assert page.locator("#sample .option").count() == 4
        assert page.locator("#sample .option.gold").count() == 1
        assert page.locator("#sample .tag", has_text="chosen").count() == 1


def test_pages_turn_and_a_leaf_tasks_bar_leads_to_its_samples(large: Path, opened: Open) -> None:
    with opened(large) as page:
        page.click("#next")
        assert page.inner_text("#page").startswith("2 of ")
        page.click("a[href='#task=mmlu_virology']")
        until(page, "document.getElementById('f-task').value === 'mmlu_virology'")
        assert found(page) == 166


def test_the_keyboard_alone_opens_a_sample_and_goes_on(demo: Path, opened: Open) -> None:
    with opened(demo) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.focus("#rows tbody a")
        page.keyboard.press("Enter")
        page.wait_for_selector("#sample h3")
        first = page.inner_text("#sample h3")
        page.keyboard.press("j")
        until(page, f"document.querySelector('#sample h3').innerText !== {first!r}")
        page.keyboard.press("k")
        until(page, f"document.querySelector('#sample h3').innerText === {first!r}")
        assert page.locator("#rows [aria-current]").count() == 1


def test_a_flip_is_followed_to_both_answers(
    records: list[Path], opened: Open, tmp_path: Path
) -> None:
    path = report.write(records, tmp_path / "compared.html")
    assert path.stat().st_size < 5 << 20
    with opened(path) as page:
        flips = found(page)
        assert choose(page, "only", "flip:lost") + choose(page, "only", "flip:gained") == flips
        page.click("#rows tbody a >> nth=0")
        page.wait_for_selector("#sample h4")
        heads = page.locator("#sample h4").all_inner_texts()
        assert {"A", "B"} <= set(heads)
        told = page.inner_text("#sample")
        assert "✗ wrong" in told and "✓ right" in told


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_and_nothing_overflows(
    demo: Path, opened: Open, scheme: str, width: int
) -> None:
    assert AXE.is_file(), "axe-core is missing: npm ci --prefix tests/browser"
    size = {"width": width, "height": 844}
    with opened(demo, "#sample/demo_qa/0", viewport=size, color_scheme=scheme) as page:
        page.wait_for_selector("#sample .option")
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        page.evaluate(AXE.read_text())
        judged = page.evaluate("axe.run()")
        broken = {
            rule["id"]: [node["html"][:120] for node in rule["nodes"]][:3]
            for rule in judged["violations"]
        }
        assert broken == {}, json.dumps(broken, indent=1)


def test_the_index_sorts_and_filters(demo: Path, opened: Open, tmp_path: Path) -> None:
    results = demo.parent.parent.parent
    broken = shutil.copytree(demo.parent, demo.parent.parent / "a-broken-one")
    (broken / "record.json").write_text("{}")
    twin = shutil.copytree(demo.parent, demo.parent.parent / "a-twin")
    path = report.make([], results, tmp_path)
    with opened(path) as page:
        rows = page.locator("table.matrix tbody tr:visible")
        assert rows.count() == 3
        page.click("section.suite >> nth=0 >> table thead button >> nth=0")
        first = page.locator("table.matrix >> nth=0 >> tbody th a")
        names = [link.get_attribute("href") for link in first.all()]
        page.click("section.suite >> nth=0 >> table thead button >> text=Finished")
        page.click("section.suite >> nth=0 >> table thead button >> text=Finished")
        assert sorted(names) == sorted(link.get_attribute("href") for link in first.all())
        for tick in page.locator("table.matrix >> nth=0 >> input").all():
            tick.check()
        assert "demo_letters" in page.inner_text(".versus")
        assert "not told apart" in page.inner_text(".versus")
        page.select_option("#f-verdict", "BROKEN")
        assert rows.count() == 1
        page.evaluate(AXE.read_text())
        assert page.evaluate("axe.run()")["violations"] == []
    shutil.rmtree(broken)
    shutil.rmtree(twin)


def test_what_is_asked_stands_in_the_address_and_the_chosen_row_stays_in_view(
    large: Path, opened: Open
) -> None:
    with opened(large, "#samples?task=hellaswag&result=wrong&sort=sure") as page:
        assert page.input_value("#f-task") == "hellaswag"
        wrong = found(page)
        assert 0 < wrong < 10_042
        margins = [float(text) for text in page.locator("#rows td.number").all_inner_texts()]
        assert margins == sorted(margins, reverse=True)
        page.click("#rows tbody a >> nth=0")
        page.wait_for_selector("#sample h3")
        for _ in range(60):  # over the end of the list's page
            page.keyboard.press("j")
        until(page, "document.getElementById('page').textContent.startsWith('2 of')")
        chosen = "document.querySelector('#rows tr.chosen')"
        until(page, f"{chosen} && {chosen}.contains(document.activeElement)")
        box = page.evaluate(f"{chosen}.getBoundingClientRect().toJSON()")
        assert box["top"] >= 0 and box["bottom"] <= 900
        address = page.evaluate("location.hash")
        assert "sort=sure" in address and "result=wrong" in address
        title = page.inner_text("#sample h3")
    with opened(large, address) as page:
        page.wait_for_selector("#sample h3")
        assert page.inner_text("#sample h3") == title and found(page) == wrong


def test_a_card_shows_what_is_worth_reading_first(large: Path, opened: Open) -> None:
    with opened(large) as page:
        page.click("#showme button >> text=Most confident wrong")
        page.wait_for_selector("#sample h3")
        assert page.input_value("#f-result") == "wrong" and page.input_value("#f-sort") == "sure"
        assert "✗ wrong" in page.inner_text("#sample .line >> nth=0")
        page.click("#showme button >> text=Closest calls")
        until(page, "document.getElementById('f-only').value === '32'")


def test_print_has_all_scores_and_the_chosen_sample(demo: Path, opened: Open) -> None:
    with opened(demo, "#sample/demo_qa/0") as page:
        page.wait_for_selector("#sample .option")
        page.emulate_media(media="print")
        assert page.locator("#sample .option").first.is_visible()
        assert page.locator("#rows tbody tr:visible").count() == 1
        assert page.locator("table.scores tbody tr:visible").count() == 6
        assert not page.locator("#filters").is_visible()
