"""The site of the documentation, opened from its folder: `make docs` builds it."""

import pytest

from browser.conftest import ROOT, fits, shoot

SITE = ROOT / "build" / "site"
PAGES = ["index.html", "data.html", "results.html", "scaling.html", "api/programs.html"]

pytestmark = [pytest.mark.long, pytest.mark.skipif(not SITE.exists(), reason="no site: make docs")]


@pytest.mark.parametrize("width", ["phone", "desktop"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_by_itself(opened, name, width):
    page = opened((SITE / name).as_uri(), width)
    assert page.locator("h1").count() == 1
    shoot(page, f"site-{name.replace('/', '-').removesuffix('.html')}-{width}")
    assert fits(page)
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth)")
    # What is wider than the page scrolls, by keyboard too.
    assert page.evaluate("[...document.querySelectorAll('.table-wrapper, pre')].every(wide => wide.tabIndex === 0)")


def test_the_search_finds_a_name_and_a_word_without_a_server(opened):
    for word, place in (("expected_age", "api/method.html"), ("Slurm", "scaling.html")):
        page = opened((SITE / "index.html").as_uri())
        page.locator("input[name=q]").first.fill(word)
        page.keyboard.press("Enter")
        page.locator(f"#search-results a[href*='{place}']").first.click()
        assert place in page.url and word in page.locator("article").inner_text()


def test_the_pages_stand_in_an_order_and_lead_on(opened):
    page = opened((SITE / "index.html").as_uri())
    listed = page.locator(".sidebar-tree a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
    assert listed.index("predicting.html") < listed.index("data.html") < listed.index("training.html")
    assert listed.index("training.html") < listed.index("scaling.html") < listed.index("api/method.html")
    page.locator(".sidebar-tree a").first.click()
    assert page.url.endswith("predicting.html")
