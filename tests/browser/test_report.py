"""The report of an evaluation, opened as a file."""

import pytest

from browser.conftest import barriers, fits, shoot


@pytest.mark.parametrize("width", ["phone", "desktop"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_report_is_whole_by_itself(opened, folder, width, dark):
    (report,) = folder.glob("run/evaluation/*/report.html")
    page = opened(report.as_uri(), width, dark)
    assert page.title() and page.locator("h1").count() == 1
    shoot(page, f"report-{width}-{'dark' if dark else 'light'}")
    assert not barriers(page) and fits(page)
