"""A report is one file that loads nothing, runs nothing, and shows a stranger's words as words."""

import base64
import re
from html.parser import HTMLParser

import pytest

from sora.report import plots
from sora.report.page import Commands, Figure, Figures, Folded, Links, Page, Plot, Prose, Section, Table, Video, VideoGrid, number, render

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "</style><script>x</script>",
    "javascript:alert(1)",
    "<svg/onload=alert(1)>",
    "&lt;b&gt;",
    "\u202egnp.exe",
    "</video></figure>",
    "]]><!--",
]

pytestmark = pytest.mark.slow


class Reader(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self):
        super().__init__()
        self.tags, self.words = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    return reader


def page_of(word: str) -> Page:
    clip = Video(b"\x00\x01mp4", 16, 24, word, note=word, marks={word: True, "shape": False, "count": None}, jpeg=b"jpeg")
    parts = [
        Prose(word),
        Commands([word, "second line"]),
        Figures([Figure(word, word, word)]),
        Table([word], [[word, 3, 0.5]]),
        Plot(plots.curves({word: ([0, 1], [1, 2]), "b": ([0], [1])}, across=word, up=word), word),
        Plot(plots.bars({word: 1.0}, across=word), word),
        Plot([plots.bars({word: 1.0}, across=word)] * 2, word),
        VideoGrid([clip, clip, clip], together=2),
        VideoGrid([Video(b"", 8, 8, word, jpeg=b"jpeg", still=True)]),
        Folded(word, [Prose(word), Table([word], [[word]])]),
        Links([(word, f"scores/{word}/report.html")]),
    ]
    return Page(word, word, [Section(word, parts), Section("b", []), Section("c", [])])


@pytest.mark.parametrize("word", HOSTILE)
def test_words_of_strangers_stay_words(word):
    plain, hostile = read(render(page_of("harmless"))), read(render(page_of(word)))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(attributes) for _, attributes in hostile.tags] == [sorted(attributes) for _, attributes in plain.tags]
    assert word in "".join(hostile.words)


def test_a_row_that_is_not_full_leaves_no_empty_places_beside_it():
    """auto-fill keeps columns for what is not there; how far few parts may grow follows from their number."""
    text = render(page_of("x"))
    assert "auto-fill" not in text and text.count("repeat(auto-fit") == 4
    counts = [attributes["style"] for _, attributes in read(text).tags if attributes.get("style", "").startswith("--parts")]
    assert counts == ["--parts: 1", "--parts: 2", "--parts: 1"]  # the figure, three clips in rows of two, the still


def test_nothing_runs_and_nothing_is_loaded():
    reader = read(render(page_of("x")))
    assert "script" not in [tag for tag, _ in reader.tags]
    for tag, attributes in reader.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href", "xlink:href", "poster", "data"):
            value = attributes.get(name) or "#"
            kinds = {"poster": "data:image/jpeg;base64,", "src": "data:"}
            assert value.startswith(("#", "./", kinds.get(name, "#"))), (tag, name, value)
            assert ":" not in value.partition(";")[0].removeprefix("data:"), (tag, name, value)
    policy = next(a["content"] for t, a in reader.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "script-src" not in policy


def test_videos_are_whole_inside_and_play_by_themselves():
    reader = read(render(page_of("x")))
    videos = [attributes for tag, attributes in reader.tags if tag == "video"]
    assert len(videos) == 3
    for video in videos:
        assert base64.b64decode(video["src"].partition(",")[2]) == b"\x00\x01mp4"
        assert {"autoplay", "loop", "muted", "playsinline", "controls"} <= set(video)
        assert base64.b64decode(video["poster"].partition(",")[2]) == b"jpeg"


@pytest.mark.parametrize(("width", "height", "tiny"), [(16, 24, True), (32, 320, True), (176, 160, False), (640, 360, False)])
def test_tiny_clips_keep_their_pixels_sharp(width, height, tiny):
    assert Video(b"", width, height, "").tiny == tiny
    assert ('class="tiny"' in render(Page("", "", [Section("a", [VideoGrid([Video(b"", width, height, "")])])]))) == tiny


def test_a_command_stands_alone_so_that_one_click_takes_it_whole_and_it_wraps():
    text = render(Page("", "", [Section("a", [Commands(["sora train a=1", "sora sample 'b c'"])])]))
    assert "<pre>sora train a=1</pre>" in text and "<pre>sora sample &#39;b c&#39;</pre>" in text
    assert re.search(r"pre \{[^}]*white-space: pre-wrap;[^}]*user-select: all;", text)


@pytest.mark.parametrize("path", ["/etc/passwd", ""])
def test_links_lead_nowhere_but_beside_the_page(path):
    with pytest.raises(ValueError, match="no path relative"):
        Links([("x", path)]).safe()
    assert Links([("x", "javascript:alert(1)"), ("y", "a b/ü#?.html")]).safe() == [
        ("x", "./javascript%3Aalert%281%29"),
        ("y", "./a%20b/%C3%BC%23%3F.html"),
    ]


def test_a_page_loads_itself_anew_only_where_it_is_written_again():
    assert 'http-equiv="refresh" content="30"' in render(Page("", "", [], again=30))
    assert "refresh" not in render(Page("", "", []))


def test_rows_keep_an_original_beside_its_reconstruction():
    clips = [Video(b"", 8, 8, str(index)) for index in range(5)]
    assert [[clip.caption for clip in row] for row in VideoGrid(clips, together=2).rows()] == [["0", "1"], ["2", "3"], ["4"]]


def test_marks_say_yes_no_or_nothing():
    words = "".join(read(render(page_of("colour"))).words)
    assert "✓ colour" in words and "✗ shape" in words and "count" not in words


def test_plots_follow_the_pages_colours_and_are_the_same_each_time():
    series = {"loss": (list(range(50)), [1 / (step + 1) for step in range(50)])}
    first, second = (plots.curves(series, across="step", up="loss", logarithmic=True, smooth=5) for _ in range(2))
    assert first == second
    assert "currentColor" in first and plots.INK not in first and "#000000" not in re.sub(r"<defs>.*?</defs>", "", first, flags=re.S)


def test_a_running_mean_is_the_mean_of_its_window():
    assert plots._running_mean([1, 2, 3, 6], 2) == [1.5, 2.5, 4.5]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234567, "1\u2009234\u2009567"), (0.123456, "0.1235"), (31.456, "31.46"), (12345.6, "12\u2009346"), (float("nan"), "nan"), (0, "0")],
)
def test_numbers_for_people(value, text):
    assert number(value) == text
