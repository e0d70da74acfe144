import html.parser
import json
import re

import numpy as np
import pytest

from adaptlab.report.landscape.captions import landscape_caption
from adaptlab.report.landscape.data import load_spectrum, load_surface, save_picture
from adaptlab.report.landscape.page import draw_landscape, write_landscape
from tests.report.landscape.planted import bowl, landscape, spectrum


class _Sources(html.parser.HTMLParser):
    """Collects what a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]


def fetched(page):
    """What the elements of a page would have a browser fetch."""
    parser = _Sources()
    parser.feed(page)
    return parser.found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found, *_ = landscape()
    folder = tmp_path_factory.mktemp("page")
    write_landscape(folder, found, {"base": {"sha256": "b179c952"}}, "optim: {}\n", title="Title", question="Why?")
    return folder


def test_the_page_holds_the_library_once_and_fetches_nothing(folder):
    page = (folder / "report.html").read_text()
    assert page.count("* plotly.js v") == 1
    assert all(source.startswith("data:image/svg+xml;base64,") for source in fetched(page))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "http" not in policy[1]


def test_every_figure_is_a_picture_too_and_has_its_caption(folder):
    found, *_ = landscape()
    page = (folder / "report.html").read_text()
    names = re.findall(r'<figure id="(\w+)">', page)
    assert names == [
        *("contours_of_models", "surface_of_models", "lines", "twins", "barriers", "directions", "forecasts", "spectra")
    ]
    for name in names:
        assert (folder / "figures" / f"{name}.svg").read_bytes().rstrip().endswith(b"</svg>")
        assert landscape_caption(name, found.summary, found.surfaces).title in page
    assert page.count('<img class="still"') == page.count('class="plotly-graph-div"') == 4


def test_numbers_of_the_page_are_those_of_the_study(folder):
    page = (folder / "report.html").read_text()
    assert "10 of 10 of far full and 5 of 10 of far lora" in page
    kept = json.loads((folder / "landscape.json").read_text())
    assert kept["surfaces"]["models"]["loss"]["german"][2][4] == pytest.approx(2 + 4 * 0.1**2)


def test_a_study_without_surfaces_and_spectra_has_a_page_without_the_library(tmp_path):
    found, *_ = landscape()
    bare = found._replace(surfaces={}, spectra=[], lines=[], twins=[])
    bare = bare._replace(summary={**bare.summary, "spectra": {}, "runs": {}})
    path = write_landscape(tmp_path, bare, {}, "", title="Title", question="Why?")
    assert "<script" not in path.read_text()
    assert draw_landscape(bare) == {}


def test_pictures_come_back_from_disk_as_they_were(tmp_path):
    save_picture(tmp_path / "surface.json", bowl())
    save_picture(tmp_path / "spectrum.json", spectrum())
    for one, other in (
        (bowl(), load_surface(tmp_path / "surface.json")),
        (spectrum(), load_spectrum(tmp_path / "spectrum.json")),
    ):
        for name, value in one._asdict().items():
            np.testing.assert_equal(getattr(other, name), value)
