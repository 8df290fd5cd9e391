"""The page in a browser, as people use it."""

import contextlib
import io
import os
import pathlib
import shutil
import urllib.parse

import numpy as np
import pytest
from PIL import Image

from biggan_jax import api

pytestmark = [pytest.mark.multiprocess, pytest.mark.browser, pytest.mark.slow]

ARGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run"
    " --disable-background-networking --disable-component-update --disable-sync"
)
WAIT = 30_000  # Milliseconds; machines of continuous integration are busy.


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    sync_api = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        if os.environ.get("BIGGAN_REQUIRE_INTEROP"):
            pytest.fail("BIGGAN_REQUIRE_INTEROP is set and there is no chromium.")
        pytest.skip("there is no chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=ARGS.split())
        yield started
        started.close()


@contextlib.contextmanager
def opened(browser, served, path="/", width=1280, scheme="light", **options):
    """A page that is ready, of a browser that has never been here; it must stay on this machine."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, **options
    )
    context.set_default_timeout(WAIT)
    page = context.new_page()
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    try:
        page.goto(served.url + path)
        # In the page, not on screen: a link may have chosen another tab by now.
        page.wait_for_selector("#picture img", state="attached")
        page.wait_for_selector("body[data-ready]")  # What the link says has arrived.
        yield page
        assert not errors
        away = [url for url in asked if not url.startswith((served.url, "data:", "blob:"))]
        assert not away
    finally:
        context.close()


def settled(page, address):
    """Waits until link and pictures say `address`; returns the pictures' addresses."""
    page.wait_for_function("a => location.pathname + location.search === a", arg=address)
    query = address.partition("?")[2].partition("&keep")[0]
    page.wait_for_function(
        "q => document.querySelector('#picture img').getAttribute('src').includes(q)", arg=query
    )
    return [i.get_attribute("src") for i in page.query_selector_all("#picture img")]


def pixels(served, address):
    return np.asarray(Image.open(io.BytesIO(served.get(address)[2])))


def fill(page, label, value):
    box = page.get_by_label(label, exact=True).first
    box.fill(value)
    box.press("Enter")
    box.blur()


def choose(page, words):
    """Chooses classes by searching for each, with the keyboard alone."""
    page.get_by_label("Classes (type to search)").focus()
    for _ in range(10):
        page.keyboard.press("Backspace")
    for word in words:
        page.keyboard.type(word)
        page.wait_for_timeout(300)
        page.keyboard.press("Enter")
    page.keyboard.press("Escape")


def test_the_nearest_real_images(browser, served):
    with opened(browser, served) as page:
        fill(page, "Seed", "99")
        settled(page, "/?seed=99")
        page.get_by_role("tab", name="Nearest").click()
        picture = page.locator("#nearest img")
        picture.wait_for()
        assert "/api/nearest?seed=99" in picture.get_attribute("src")
        page.wait_for_function("document.querySelector('#nearest img').naturalWidth > 100")
        # Its images are of that seed, the first of each class among them.
        text = page.locator("#nearest .facts").inner_text()
        assert "of 20 are nearer to a real image than 99 of 100 real ones" in text
        assert int(text.split()[0]) >= 3
    with opened(browser, served, "/?seed=99&tab=nearest") as page:
        page.locator("#nearest img").wait_for()


def test_choose_seed_and_truncation(browser, served, folder):
    with opened(browser, served) as page:
        choose(page, ["emu"])
        settled(page, "/?classes=emu")
        fill(page, "Seed", "7")
        settled(page, "/?classes=emu&seed=7")
        slider = page.locator("#truncation input[type=range]")
        slider.focus()
        for _ in range(10):
            page.keyboard.press("ArrowLeft")
        sources = settled(page, "/?classes=emu&seed=7&truncation=0.5")
        assert page.get_by_label("Truncation mode").input_value() == "threshold"
        want = api.load(folder).sample([2] * 20, truncation=0.5, seed=7)
        for i in (0, 19):
            np.testing.assert_array_equal(pixels(served, sources[i]), want[i])
        text = page.locator("#picture .facts").inner_text()
        assert "EMA weights; threshold truncation 0.5; BN statistics: standing" in text
        assert "float32" in text and "ms an image" in text
        assert "about 30 here" in page.get_by_role("tabpanel").inner_text()  # The scores.


def test_random_keeps_what_is_locked(browser, served):
    with opened(browser, served, "/?classes=emu&seed=7&num=2") as page:
        page.get_by_label("Lock class").check()
        settled(page, "/?classes=emu&seed=7&num=2&keep_class=true")
        page.get_by_role("button", name="Random").click()
        page.wait_for_function("!location.search.includes('seed=7&')")
        given = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(page.url).query))
        assert given["classes"] == "emu" and given["seed"] != "7"
        page.get_by_label("Lock class").uncheck()
        page.get_by_label("Lock z").check()
        page.wait_for_function("location.search.includes('keep_z')")
        seen = set()
        for _ in range(12):  # Each keeps the class with a chance of one in three.
            page.get_by_role("button", name="Random").click()
            page.wait_for_timeout(400)
            now = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(page.url).query))
            assert now["seed"] == given["seed"]
            seen.add(now["classes"])
            if len(seen) > 1:
                break
        assert len(seen) > 1


def test_mix_rows_chunks_and_sorting(browser, served, folder):
    model = api.load(folder)
    with opened(browser, served, "/?classes=cat%2Cemu&num=4") as page:
        page.get_by_label("Mix the classes").check()
        settled(page, "/?classes=cat%2Cemu&num=4&weights=1%2C1")
        weight = page.locator("input[type=range][aria-label*='Weight of cat']")
        weight.focus()
        weight.press("Home")
        sources = settled(page, "/?classes=cat%2Cemu&num=4&weights=0%2C1")
        want = model.sample([2] * 4, seed=0)
        np.testing.assert_array_equal(pixels(served, sources[3]), want[3])
        page.get_by_label("Mix the classes").uncheck()
        page.get_by_label("One latent a row").check()
        sources = settled(page, "/?classes=cat%2Cemu&num=4&lock_z=true")
        z = model.latents(2)
        np.testing.assert_array_equal(pixels(served, sources[3]), model.render(z[1:], [2])[0])
        page.get_by_label("One latent a row").uncheck()
        page.get_by_label("Sort by D").check()
        settled(page, "/?classes=cat%2Cemu&num=4&sort=true")
        captions = page.locator("#picture figcaption").all_inner_texts()
        scores = [float(text.rsplit(" ", 1)[1]) for text in captions]
        assert len(scores) == 4 and scores == sorted(scores, reverse=True)
        page.get_by_label("Sort by D").uncheck()
        page.get_by_label("chunk 1").uncheck()
        page.wait_for_function("location.search.includes('chunks=')")


def test_walk_compare_training_and_programs(browser, served):
    with opened(browser, served, "/?classes=cat%2Cemu&frames=3&num=2") as page:
        page.get_by_role("tab", name="Walk").click()
        page.get_by_role("button", name="Make the walk").click()
        page.wait_for_function("document.querySelector('#walk video')?.readyState >= 2")
        assert page.evaluate("document.querySelector('#walk video').videoWidth") == 256
        with page.expect_download() as download:
            page.get_by_role("link", name="MP4").click()
        assert download.value.suggested_filename == "walk.mp4"
        assert pathlib.Path(download.value.path()).stat().st_size > 1000
        settled_address = "/?classes=cat%2Cemu&num=2&frames=3&tab=walk"
        page.wait_for_function(
            "a => location.pathname + location.search === a", arg=settled_address
        )
        page.get_by_role("tab", name="Compare").click()
        page.get_by_label("Checkpoint to compare with").click()
        page.get_by_role("option", name="other").click()
        page.wait_for_function("document.querySelectorAll('#compared img').length === 4")
        assert page.locator("#compared h3").all_inner_texts() == ["toy", "second"]
        sources = [i.get_attribute("src") for i in page.query_selector_all("#compared img")]
        assert served.get(sources[0])[2] != served.get(sources[2])[2]
        page.get_by_role("tab", name="Training").click()
        page.wait_for_function("document.querySelector('#training img')?.naturalWidth === 61")
        page.get_by_role("button", name="Play the time-lapse").click()
        page.wait_for_function(
            "document.querySelector('video[src=\"/api/timelapse\"]')?.readyState >= 2"
        )
        page.get_by_role("tab", name="For programs").click()
        page.wait_for_function("document.body.innerText.includes('curl -o images.npz')")


def test_a_picture_is_there_before_the_program(browser, served):
    loaded = "document.querySelector('#first-look')?.naturalWidth > 100"
    with contextlib.closing(browser.new_context()) as context:
        context.set_default_timeout(WAIT)
        page = context.new_page()
        page.route("**/assets/*.js", lambda route: route.abort())
        page.goto(served.url)
        page.wait_for_function(loaded)
        # Another state has other pictures.
        page.goto(f"{served.url}/?seed=3")
        assert page.query_selector("gradio-app") and not page.query_selector("#first-look")
    with opened(browser, served) as page:
        page.wait_for_selector("#first-look", state="detached")


def test_a_link_restores_everything(browser, served):
    link = (
        "/?classes=emu%2Ccat&seed=9&truncation=0.35&mode=std&num=6&weights=0.5%2C1&keep_z=true"
        "&frames=2&loop=false&fps=5&tab=walk"
    )
    with opened(browser, served, link) as page:
        page.wait_for_function("document.querySelector('#walk video')?.readyState >= 2")
        page.wait_for_function("document.querySelectorAll('#picture img').length === 6")
        label = lambda text: page.get_by_label(text, exact=True).first  # noqa: E731
        assert label("Seed").input_value() == "9"
        assert label("Truncation mode").input_value() == "std"
        assert page.locator("#truncation input[type=range]").input_value() == "0.35"
        assert label("Lock z").is_checked() and not label("Lock class").is_checked()
        assert not label("Loop").is_checked()
        assert page.locator("input[aria-label*='Weight of emu']").first.input_value() == "0.5"
        assert page.get_by_role("tab", name="Walk").get_attribute("aria-selected") == "true"
        given = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(page.url).query))
        assert given == dict(urllib.parse.parse_qsl(link[2:]))


def test_downloads(browser, served, folder):
    with opened(browser, served, "/?classes=emu&seed=4&num=2") as page:
        settled(page, "/?classes=emu&seed=4&num=2")
        for name, file in (
            ("Sheet (PNG)", "sheet.png"),
            ("Images (zip)", "images.zip"),
            ("Arrays (npz)", "images.npz"),
            ("image 1 of seed 4", "000001_class0002.png"),
        ):
            with page.expect_download() as download:
                page.get_by_role("link", name=name).first.click()
            assert download.value.suggested_filename == file
            kept = pathlib.Path(download.value.path())
        want = api.load(folder).sample([2, 2], seed=4)[1]
        np.testing.assert_array_equal(np.asarray(Image.open(kept)), want)


@pytest.mark.parametrize(
    ("link", "sentence"),
    [
        ("/?truncation=nan", "truncation=nan: must be a finite number."),
        ("/?classes=<script>alert(1)</script>", "classes: '<script>alert(1)</script>' is no class"),
        ("/?colour=red", "colour: there is no such field"),
    ],
)
def test_a_broken_link_is_a_sentence_and_the_page_works(browser, served, link, sentence):
    with opened(browser, served, link) as page:
        alert = page.get_by_role("alert").filter(has_text="The link: ")
        assert sentence in alert.inner_text()
        fill(page, "Seed", "3")
        settled(page, "/?seed=3")
        assert alert.count() == 0


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark"), (390, "light")])
def test_nothing_serious_for_axe_and_nothing_beside_the_screen(browser, served, width, scheme):
    axe = pytest.importorskip("axe_playwright_python")
    program = pathlib.Path(axe.__file__).with_name("axe.min.js").read_text()
    tabs = ("Images", "Walk", "Compare", "Training", "For programs")
    with opened(browser, served, width=width, scheme=scheme) as page:
        page.evaluate(program)
        for tab in tabs if width > 1000 else ("Images", "Walk"):
            page.get_by_role("tab", name=tab).click()
            page.wait_for_timeout(400)  # Until colours have faded in.
            found = page.evaluate("axe.run()")
            bad = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
            assert not bad, [(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in bad]
            assert found["passes"]
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        dark = page.evaluate("document.body.classList.contains('dark')")
        assert dark == (scheme == "dark")
