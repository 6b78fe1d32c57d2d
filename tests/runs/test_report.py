"""The page of a run: complete in itself, with correct numbers, and safe with any class name."""

import html
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from jaxtl.runs.report import write_report

from jaxtl.config import Config
from jaxtl.metrics import Evaluation, Sums
from jaxtl.runs.directory import RunDirectory, RunMetadata
from jaxtl.runs.metrics_log import MetricsLog

CLASSES = ("<b>&", "$x_$ or $\\frac$", "naïve")
# Rows are classes: 6 of 7 are correct, 1 of 2, and 0 of 1; nothing is classified as the last class.
CONFUSION = np.array([[6, 1, 0], [1, 1, 0], [0, 1, 0]])


class Reader(HTMLParser):
    """Collects tags, attributes and the text of table rows."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.rows = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.tags[-1] in ("td", "th"):
            self.rows[-1][-1] += data.strip()


def written(path, classes, counts):
    """The text of the page of a run whose validation has these confusions."""
    run = RunDirectory(path)
    run.path.mkdir()
    phases = (
        {"name": "head", "train": {"head/.*": 1.0}, "epochs": 2},
        {"name": "finetune", "train": {"(top|head)/.*": 0.5}, "epochs": 1},
    )
    metadata = {
        "classes": list(classes),
        "source": "folder <i>& \udce9",
        "weights": {
            "source": "keras",
            "file": "a.h5",
            "sha256": "c0ffee",
            "convention": "keras",
            "head": "new",
            "left_out": [],
        },
        "data": {
            "train": {"images": 1234, "sha256": "1"},
            "val": {"images": 10, "sha256": "2"},
        },
    }
    run.begin(Config.model_validate({"phases": phases}), RunMetadata.model_validate(metadata))
    log = MetricsLog(run.metrics, run.tensorboard, until=0)
    for step, name in enumerate(("head", "head", "finetune"), start=1):
        for split in ("train", "val"):
            log.write(name, step, step, split, {"loss": 1 / step, "accuracy": 0.5})
    log.close()
    labels, predicted = (
        np.repeat(side, counts.ravel()) for side in np.indices(counts.shape).reshape(2, -1)
    )
    images, top1 = int(counts.sum()), int(counts.trace())
    write_report(run, Evaluation(Sums(images / 2, top1, images, images), labels, predicted))
    return run.report.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The text of a page with awkward names."""
    return written(tmp_path_factory.mktemp("runs") / "a <i>run", CLASSES, CONFUSION)


def labels_of_figures(page):
    """The text that is drawn as text in the figures."""
    return [html.unescape(text) for text in re.findall(r"<text [^>]*>([^<]*)</text>", page)]


@pytest.mark.filterwarnings("error")
def test_names_in_any_script_are_text_in_the_figure_without_a_warning(tmp_path):
    names = ("日本語", "القطة", "\N{CAT FACE} cat", "हिन्दी")
    drawn = labels_of_figures(written(tmp_path / "run", names, np.eye(4, dtype=int)))
    assert [drawn.count(name) for name in names] == [2] * 4


@pytest.mark.filterwarnings("error")
def test_long_names_lose_their_middle_in_the_figure_alone(tmp_path):
    names = [f"a name that goes on and on for more than a line, {n}" * 2 for n in range(5)]
    page = written(tmp_path / "run", names, np.eye(5, dtype=int))
    assert all(f"<td>{name}</td>" in page for name in names)
    drawn = [text for text in labels_of_figures(page) if "…" in text]
    assert drawn == [f"a name that …n a line, {n}" for n in range(5)] * 2


def test_of_many_classes_the_table_has_all_and_the_figure_as_many_as_fit(tmp_path):
    names = [f"class {n}" for n in range(130)]
    page = written(tmp_path / "run", names, np.eye(130, dtype=int))
    assert all(f"<td>{name}</td>" in page for name in names)
    drawn = [text for text in labels_of_figures(page) if text.startswith("class ")]
    assert drawn == names[::3] * 2


def test_the_page_loads_nothing(page):
    reader = Reader(page)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(reader.tags)
    links = [value for name, value in reader.attributes if name in ("src", "href", "xlink:href")]
    assert links
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in links)
    assert not any(name.startswith("on") for name, _ in reader.attributes)
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []


def test_names_are_text_and_never_markup(page):
    reader = Reader(page)
    assert "b" not in reader.tags
    assert "i" not in reader.tags
    assert html.escape("<b>&") in page
    assert "<title>a &lt;i&gt;run</title>" in page


def test_the_page_gives_the_result(page):
    assert "70.00%" in page
    assert "(7 of 10), loss 0.5000" in page


def test_the_page_gives_recall_and_precision_of_each_class(page):
    rows = Reader(page).rows
    start = rows.index(["class", "images", "recall", "precision"])
    assert rows[start + 1 : start + 4] == [
        ["<b>&", "7", "85.7%", "85.7%"],
        ["$x_$ or $\\frac$", "2", "50.0%", "33.3%"],
        ["naïve", "1", "0.0%", "-"],
    ]


def test_the_page_says_what_the_run_was(page):
    about = {row[0]: row[1] for row in Reader(page).rows if len(row) == 2}
    assert about["network"] == "mobilenet_v2, width 1, 224 px"
    assert about["weights"] == "keras c0ffee"
    assert about["data"] == "folder <i>& \\udce9: 1,234 to train on, 10 to validate on"
    assert about["phase head"] == "train {'head/.*': 1.0}, epochs 2"
    assert about["phase finetune"] == "train {'(top|head)/.*': 0.5}, epochs 1"
    assert "jax " in about["versions"]


def test_the_page_draws_curves_and_confusions(page):
    assert Reader(page).tags.count("svg") == 2
