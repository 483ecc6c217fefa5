"""The report: one file that needs nothing else, runs no script, and escapes all it is given."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from jwm_jax.errors import ResourceError
from jwm_jax.export import Headline, Report, Series, line_chart

EVIL = '<script>alert("x")</script>&<img src=x onerror=y>'
VOID = {"meta", "img", "link", "br"}


class Elements(HTMLParser):
    """Collects elements and checks that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def html():
    frames = np.random.default_rng(0).random((3, 9, 15, 3)).astype(np.float32)
    report = (
        Report(f"Title {EVIL}", EVIL, {EVIL: EVIL})
        .headlines([Headline(EVIL, EVIL, EVIL)])
        .warnings([EVIL])
        .section(EVIL, EVIL)
        .text(EVIL)
        .table([EVIL, "PSNR"], [[EVIL, 21.5], ["b", np.float32(3.25)]], EVIL)
        .figure(frames[0], EVIL)
        .figures([(frames[0], EVIL), (frames[1], "b")])
        .videos([(frames, EVIL)], rate=10)
        .strip({EVIL: [frames[0]], "b": [frames[1]]}, [EVIL], EVIL)
        .chart([Series(EVIL, [0, 1], [1.0, 2.0]), Series("b", [0, 1], [2, 1])], EVIL, EVIL, EVIL)
        .timings({EVIL: 1.5, "b": 0})
        .commands([EVIL])
    )
    return report.html()


def test_everything_is_escaped_and_well_formed(html):
    elements = Elements(html).found
    assert not [tag for tag, _ in elements if tag in ("script", "iframe", "object", "link")]
    handlers = [name for _, attributes in elements for name in attributes if name.startswith("on")]
    assert handlers == []
    assert html.count("&lt;script&gt;") >= 15


def test_no_address_but_data_in_the_file(html):
    for tag, attributes in Elements(html).found:
        for name in ("src", "href", "action", "poster"):
            assert attributes.get(name, "data:").startswith("data:"), tag
        assert "style" not in attributes
    assert "http://" not in html and "https://" not in html and "url(" not in html


def test_policy_allows_exactly_its_own_style(html):
    policy = next(a["content"] for t, a in Elements(html).found if a.get("http-equiv"))
    style = re.search(r"<style>(.*?)</style>", html, re.S).group(1)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_numbers_stand_right_and_words_left(html):
    assert '<th scope="col" class="n">PSNR</th>' in html
    assert '<td class="n">21.5</td>' in html and '<td class="n">3.25</td>' in html
    assert "<td>b</td>" in html


def test_videos_play_by_themselves(html):
    video = next(a for t, a in Elements(html).found if t == "video")
    assert {"autoplay", "muted", "loop", "playsinline"} <= set(video)
    content = base64.b64decode(video["src"].split(",")[1])
    assert content[4:8] == b"ftyp"


def test_a_report_is_written_whole_or_not_at_all(tmp_path):
    path = Report("a").write(tmp_path / "report.html")
    assert path.read_text().startswith("<!doctype html>")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(ResourceError, match="cannot be written"):
        Report("a").write(tmp_path / "absent" / "report.html")


def coordinates(svg):
    line = re.search(r'<polyline[^>]*points="([^"]*)"', svg).group(1)
    return np.array([[float(n) for n in p.split(",")] for p in line.split()])


def test_chart_is_linear_and_upward():
    points = coordinates(line_chart([Series("a", [0, 1, 3], [10.0, 20.0, 40.0])], "x", "y"))
    assert (np.diff(points[:, 0]) > 0).all() and (np.diff(points[:, 1]) < 0).all()
    slope = np.diff(points[:, 1]) / np.diff(points[:, 0])
    np.testing.assert_allclose(slope[0], slope[1], rtol=0.01)


def test_logarithmic_chart_spaces_decades_evenly():
    svg = line_chart([Series("a", [0, 1, 2], [1.0, 10.0, 100.0])], "x", "y", log_y=True)
    steps = np.diff(coordinates(svg)[:, 1])
    np.testing.assert_allclose(steps[0], steps[1], rtol=0.01)
    assert all(f">{tick}</text>" in svg for tick in ("1", "10", "100"))


def test_gaps_and_nothing_to_draw():
    gap = line_chart([Series("a", [0, 1, 2, 3], [1, float("nan"), 2, 3])], "x", "y")
    assert gap.count("<polyline") == 2 and gap.count("<title>") == 3
    assert "No finite values" in line_chart([Series("a", [0], [float("inf")])], "x", "y")
    line_chart([Series("a", [5], [2.0])], "x", "y")  # one point spans no range


def test_legend_names_lines_only_where_there_are_several():
    one, two = Series("only", [0, 1], [0, 1]), Series("other", [0, 1], [1, 0], dashed=True)
    assert "legend" not in line_chart([one], "x", "y")
    both = line_chart([one, two], "x", "y")
    assert "legend" in both and both.count("stroke-dasharray") == 2
