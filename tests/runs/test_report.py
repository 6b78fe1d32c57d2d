"""The page of a run: complete in itself, right in its numbers, and safe with any class name."""

import html
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from jaxtl.config import Config
from jaxtl.metrics import Evaluation, Sums
from jaxtl.runs.directory import RunDirectory, RunMetadata
from jaxtl.runs.metrics_log import MetricsLog
from jaxtl.runs.report import write_report

CLASSES = ("<b>&", "$x_$ or $\\frac$", "naïve")
# Rows are classes: 6 of 7 right, 1 of 2, and 0 of 1; nothing is taken for the last class.
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


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The text of a page with awkward names."""
    run = RunDirectory(tmp_path_factory.mktemp("runs") / "a <i>run")
    run.path.mkdir()
    phases = (
        {"name": "head", "train": {"head/.*": 1.0}, "epochs": 2},
        {"name": "finetune", "train": {"(top|head)/.*": 0.5}, "epochs": 1},
    )
    metadata = {
        "classes": list(CLASSES),
        "source": "folder <i>&",
        "weights": {"source": "keras", "sha256": "c0ffee", "convention": "keras"},
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
        np.repeat(side, CONFUSION.ravel()) for side in np.indices((3, 3)).reshape(2, 9)
    )
    evaluation = Evaluation(Sums(5.0, 7, 10, 10), labels, predicted)
    write_report(run, evaluation)
    return run.report.read_text(encoding="utf-8")


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
    assert about["data"] == "folder <i>&: 1,234 to train on, 10 to validate on"
    assert about["phase head"] == "train {'head/.*': 1.0}, epochs 2"
    assert about["phase finetune"] == "train {'(top|head)/.*': 0.5}, epochs 1"
    assert "jax " in about["versions"]


def test_the_page_draws_curves_and_confusions(page):
    assert Reader(page).tags.count("svg") == 2
