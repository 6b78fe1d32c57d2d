"""The page of a run: complete in itself, correct, legible, and safe with any class name."""

import base64
import dataclasses
import html
import io
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from small_network import small_network

import jaxtl.reports
from jaxtl.config import Config
from jaxtl.data.sources import ArraySource
from jaxtl.errors import UserError
from jaxtl.metrics import Evaluation, Sums
from jaxtl.models import split
from jaxtl.reports import PlannedPhase, find, write_page
from jaxtl.reports.charts import Line, chart
from jaxtl.reports.measures import calibration
from jaxtl.reports.thumbnails import overlay
from jaxtl.runs.directory import RunDirectory, RunMetadata
from jaxtl.runs.metrics_log import MetricsLog

STYLE = Path(jaxtl.reports.__file__).parent / "templates" / "style.css"
PLAN = [
    PlannedPhase("head", "head", {"top": 0.0, "head": 1.0}, [(0.5, 0.1), (1.0, 0.1), (2.0, 0.1)]),
    PlannedPhase("finetune", "top", {"top": 0.5, "head": 1.0}, [(0.5, 0.01), (1.0, 0.005)]),
]
CLASSES = ("<b>&", "$x_$ or $\\frac$", "naïve")
# Rows are classes: 6 of 7 are correct, 1 of 2, and 0 of 1; nothing is classified as the last class.
CONFUSION = np.array([[6, 1, 0], [1, 1, 0], [0, 1, 0]])
# Rows are images. Wrong, the worst first: the last label of the last image and the second one of
# the first are given; both of the second image are missed, and so is that of the third one.
HAS = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 0]])
PROBABILITIES = np.array(
    [[0.97, 0.9, 0.1], [0.3, 0.15, 0.41], [0.19, 0.1, 0.85], [0.45, 0.62, 0.95]]
)
THRESHOLDS = np.array([0.5, 0.2, 0.9])


class Reader(HTMLParser):
    """Collects tags, attributes and the text of table rows."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.rows = [], [], []
        self.elements = {"img": [], "svg": [], "html": []}
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag in self.elements:
            self.elements[tag].append(dict(attrs))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.in_cell:
            self.rows[-1][-1] += data


def begun(path, classes, task="single-label"):
    """A run of these classes with the log of three epochs."""
    run = RunDirectory(path)
    run.path.mkdir()
    phases = (
        {"name": "head", "train": {"head/.*": 1.0}, "epochs": 2},
        {"name": "finetune", "train": {"(top|head)/.*": 0.5}, "epochs": 2},
    )
    metadata = {
        "classes": list(classes),
        "task": task,
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
    steps = enumerate((("head", 1), ("head", 2), ("finetune", 1)), start=1)
    for (step, (name, epoch)), part in itertools.product(steps, ("train", "val")):
        metrics = {"loss": 1 / step, "accuracy": 0.5, "a_new_metric": 2.0}
        log.write(name, epoch, step, part, metrics)
    log.close()
    return run


def found_in(classes, counts):
    """What is found in a validation with these confusions, at 32 pixels, by a random network."""
    labels, predicted = (
        np.repeat(side, counts.ravel()) for side in np.indices(counts.shape).reshape(2, -1)
    )
    images = len(labels)
    logs = np.full((images, len(classes)), np.log(0.3 / (len(classes) - 1)))
    logs[np.arange(images), predicted] = np.log(0.7)
    sums = Sums(images / 2, int(counts.trace()), images, images)
    return concluded(classes, Evaluation(sums, labels, predicted, logs))


def found_in_labels():
    """What is found in a validation of several labels, likewise."""
    sums = Sums(2.0, 0, 0, len(HAS))
    predicted = (PROBABILITIES >= 0.5).astype(int)
    return concluded(CLASSES, Evaluation(sums, HAS, predicted, np.log(PROBABILITIES)), THRESHOLDS)


def concluded(classes, evaluation, thresholds=None):
    network = small_network(num_classes=len(classes))
    labels = evaluation.labels.astype(np.int32)
    phases = ({"name": "head", "train": {"head/.*": 1.0}, "epochs": 2},)
    return find(
        Config.model_validate({"model": {"image_size": 32}, "phases": phases}),
        evaluation,
        ArraySource("pixels", pixels(len(labels)), labels, tuple(classes)),
        network,
        split(network)[1],
        thresholds,
    )


def pixels(images):
    return np.random.default_rng(0).integers(0, 256, (images, 32, 32, 3)).astype(np.uint8)


def written(path, classes, counts):
    """The text of the page of a run whose validation has these confusions."""
    page = write_page(begun(path, classes), PLAN, found_in(classes, counts))
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The text of a page with awkward names."""
    return written(tmp_path_factory.mktemp("runs") / "a <i>run", CLASSES, CONFUSION)


@pytest.fixture(scope="module")
def labels():
    """What is found of several labels."""
    return found_in_labels()


@pytest.fixture(scope="module")
def page_of_labels(labels, tmp_path_factory):
    """The text of such a page with the same names."""
    run = begun(tmp_path_factory.mktemp("labels") / "a <i>run", CLASSES, "multi-label")
    return write_page(run, PLAN, labels).read_text(encoding="utf-8")


@pytest.fixture(params=["page", "page_of_labels"])
def each_page(request):
    return request.getfixturevalue(request.param)


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
    assert sorted(drawn) == sorted([f"a name that …n a line, {n}" for n in range(5)] * 2)


@pytest.mark.slow
def test_of_many_classes_there_are_all_in_the_table_a_picture_and_the_worst_pairs(tmp_path):
    names = [f"class {n}" for n in range(200)]
    counts = 3 * np.eye(200, dtype=int)
    counts[17, 4] = 40
    page = written(tmp_path / "run", names, counts)
    assert all(f"<td>{name}</td>" in page for name in names)
    assert ["class 17", "class 4", "40 of 43"] in Reader(page).rows
    assert "Confusions of 200 classes" in page
    assert len(page) < 500_000  # bytes; twelve pairs of thumbnails come along


def test_the_page_loads_nothing(each_page):
    page, reader = each_page, Reader(each_page)
    assert not {"script", "iframe", "object", "embed", "base"} & set(reader.tags)
    links = [value for name, value in reader.attributes if name in ("src", "href", "xlink:href")]
    assert links
    assert all(value.startswith("data:") for value in links)
    assert not any(name.startswith("on") for name, _ in reader.attributes)
    assert "@import" not in page
    assert "url(" not in page
    assert "http" not in re.sub('data:image[^"]*', "", page)


def test_what_is_seen_is_also_said(each_page):
    reader = Reader(each_page)
    assert reader.elements["img"]
    assert all(image.get("alt") for image in reader.elements["img"])
    assert reader.elements["svg"]
    for svg in reader.elements["svg"]:
        assert svg["role"] == "img"
        assert svg["aria-label"]
    assert reader.elements["html"] == [{"lang": "en"}]
    assert reader.tags.count("main") == reader.tags.count("h1") == 1


def luminance(colour):
    """Relative luminance of a colour 0..255, by WCAG 2.2."""
    parts = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(first, second):
    dark, light = sorted(map(luminance, (first, second)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_the_contrast_that_wcag_asks_for(scheme):
    light, dark = STYLE.read_text().split("@media (prefers-color-scheme: dark)")
    colours = {
        name: np.array([int(value[i : i + 2], 16) for i in (0, 2, 4)])
        for name, value in re.findall(r"--([\w-]+): #(\w{6})", light if scheme == "light" else dark)
    }
    ground = colours["ground"]
    strongest_cell = ground + 0.55 * (colours["accent"] - ground)
    pairs = [
        *itertools.product(("text", "soft"), ("ground", "raised")),
        ("text", "frozen"),
        ("on-accent", "accent"),
    ]
    ratios = {pair: contrast(*(colours[name] for name in pair)) for pair in pairs}
    ratios["text", "cell"] = contrast(colours["text"], strongest_cell)
    assert {pair: ratio for pair, ratio in ratios.items() if ratio < 4.5} == {}
    lines = {n: contrast(colours[f"line-{n}"], ground) for n in range(1, 9)}
    assert {n: ratio for n, ratio in lines.items() if ratio < 3} == {}


def test_a_metric_that_the_page_does_not_know_is_drawn(page):
    assert "<b>a new metric</b>" in page


def test_a_run_that_trains_has_a_page_without_what_its_end_brings(tmp_path):
    page = write_page(begun(tmp_path / "run", CLASSES), PLAN).read_text()
    assert "not complete: phase finetune, epoch 1 of 2" in page
    assert "loss (nats): train from 1 to 0.3333, val from 1 to 0.3333" in page
    assert "Confusions" not in page
    assert "50.00%" in page


@pytest.mark.parametrize("value", [0.0, 0.97, 1234.5])
def test_the_ticks_of_a_flat_line_can_be_told_apart(value):
    drawn = chart("x", [Line("x", 1, [(1, value), (2, value)])])
    texts = [text for _, text in drawn.y_ticks]
    assert len(set(texts)) == len(texts) > 1
    assert all(float(text.replace(",", "")) >= 0 for text in texts)


def test_a_log_of_another_phase_is_refused_in_one_line(tmp_path):
    run = begun(tmp_path / "run", CLASSES)
    run.metrics.write_text(run.metrics.read_text().replace('"finetune"', '"gone"'))
    with pytest.raises(UserError, match="phase 'gone'"):
        write_page(run, PLAN)


def test_the_chain_says_what_trains_and_where_the_frontier_is(page):
    assert '<li class="frozen">top</li>' in page
    assert '<li class="trained frontier"><b>frontier ▸ </b>head</li>' in page
    assert '<li class="partly frontier"><b>frontier ▸ </b>top (partly)</li>' in page


def test_the_wrong_images_are_shown_with_what_was_said_of_them(page):
    reader = Reader(page)
    assert len(reader.elements["img"]) == 2 * 3
    alts = {image["alt"] for image in reader.elements["img"]}
    assert "pixels[6]: <b>&, classified as $x_$ or $\\frac$" in alts
    assert page.count("with 70.0%") == 3


def test_the_wrong_labels_are_shown_the_worst_first(page_of_labels):
    first, second, third = map(html.escape, CLASSES)
    limits = [f"{threshold:.1%}" for threshold in THRESHOLDS]
    told = [
        f"<b>{third}</b> wrongly given, probability 95.0%, threshold {limits[2]}<br>pixels[3]",
        f"<b>{second}</b> wrongly given, probability 90.0%, threshold {limits[1]}<br>pixels[0]",
        f"<b>{second}</b> missed, probability 15.0%, threshold {limits[1]}<br>pixels[1]",
        f"<b>{first}</b> missed, probability 30.0%, threshold {limits[0]}<br>pixels[1]",
        f"<b>{third}</b> missed, probability 85.0%, threshold {limits[2]}<br>pixels[2]",
    ]
    shown = page_of_labels.partition("<h2>Confidently wrong")[2]
    assert re.findall(r"<figcaption>(.*?)</figcaption>", shown) == told
    alts = [image["alt"] for image in Reader(page_of_labels).elements["img"]]
    assert alts[:2] == ["pixels[3]: naïve wrongly given", "Grad-CAM of naïve over pixels[3]"]
    assert alts[6:8] == ["pixels[1]: <b>& missed", "Grad-CAM of <b>& over pixels[1]"]
    assert len(alts) == 2 * len(told)


def test_the_grad_cam_of_a_wrong_label_is_that_of_its_logit(labels):
    """The maps by the kernel of the head, see `test_gradcam.py`."""
    network, shown = small_network(num_classes=3), pixels(len(HAS))
    maps = np.asarray(jax.jit(lambda x: network(x, stop="pool"))(shown), np.float64)
    raw = np.maximum(maps @ np.asarray(network.head.kernel[...], np.float64), 0)
    cams = raw / np.maximum(raw.max(axis=(1, 2), keepdims=True), 1e-12)
    wrong = [(3, 2), (0, 1), (1, 1), (1, 0), (2, 2)]
    for mistake, (image, label) in zip(labels.mistakes, wrong, strict=True):
        expected = overlay(shown[image], cams[image, ..., label])
        np.testing.assert_allclose(drawn(mistake.overlay), drawn(expected), atol=8)
    assert np.ptp(cams[1][..., :2] @ [1, -1]) > 0.1  # two labels of an image can be told apart


def drawn(uri):
    """The pixels of a `data:` URI."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), int)


def test_the_page_of_labels_says_how_far_each_probability_can_be_trusted(page_of_labels, labels):
    """By hand: 0.97 and 0.95 share a bin, and so do 0.15 and 0.19, 0.41 and 0.45, and both 0.1."""
    apart = (0.92, 0.9, 0.2, 0.7, 0.66, 0.86, 0.15, 0.38)  # sums of probabilities less labels
    assert labels.calibration.error == pytest.approx(sum(apart) / HAS.size)
    assert "<div>calibration error<b>39.75%</b>" in page_of_labels
    assert ["expected calibration error", "39.75%"] in Reader(page_of_labels).rows
    assert "2 labels, mean probability 17.0%, fraction present 50.0%" in page_of_labels
    assert "Confusions" not in page_of_labels
    assert "confidence (%)" not in page_of_labels


def test_names_are_text_and_never_markup(each_page):
    page, reader = each_page, Reader(each_page)
    assert "i" not in reader.tags
    assert "<td><b>" not in page
    assert html.escape("<b>&") in page
    assert "<title>a &lt;i&gt;run</title>" in page


def test_the_page_gives_the_result(page):
    assert "70.00%" in page
    assert "7 of 10 images; 95% interval 39.7% to 89.2%" in page  # Wilson's, by hand
    assert "<b>0.5000</b>" in page


@pytest.mark.parametrize(
    ("predicted", "said"), [([0, 1, 2], "at most 0.05"), ([1, 2, 0], "at least 20")]
)
def test_a_temperature_at_a_bound_is_given_as_a_bound(tmp_path, predicted, said):
    """Of a network that is always right, which could be surer without end, or always wrong."""
    findings = found_in(CLASSES, np.eye(3, dtype=int))
    logs = np.log(0.1 + 0.7 * np.eye(3)[predicted])
    measured = calibration(logs, np.arange(3))
    page = write_page(
        begun(tmp_path / "run", CLASSES), PLAN, dataclasses.replace(findings, calibration=measured)
    )
    assert ["best temperature", said] in Reader(page.read_text()).rows


def test_the_page_of_an_average_names_its_epochs(tmp_path):
    run = begun(tmp_path / "run", CLASSES)
    run.note_average("head", [1, 2])
    run.note_average("finetune", [1, 3, 4])
    run.finish({"step": 6, "best_epoch": 3, "loss": 0.2, "accuracy": 0.6})
    page = write_page(run, PLAN).read_text()
    assert "<div>average of epochs<b>1, 3, 4</b><span>of the last phase; 6 steps" in page
    assert "best epoch" not in page


def test_the_page_gives_precision_recall_and_f1_of_each_class(page):
    rows = Reader(page).rows
    start = rows.index(["class", "images", "precision", "recall", "F1"])
    first, second, third = rows[start + 1 : start + 4]
    assert first[:2] == ["<b>&", "7"]
    assert re.match(r"85\.7%.* to .*%", first[4])
    assert first[2].startswith("85.7%")
    assert second[2].startswith("33.3%")
    assert second[3].startswith("50.0%")
    assert second[4].startswith("40.0%")
    assert third[2] == "-"
    assert third[3].startswith("0.0%")
    macro = (12 / 14 + 2 / 5 + 0) / 3  # 6 of 7 right and 7 said, 1 of 2 and 3, 0 of 1 and 0
    assert f"<div>validation macro F1<b>{macro:.2%}</b><span>mean over the classes; 95%" in page


def test_the_page_says_what_the_run_was(page):
    about = {row[0]: row[1] for row in Reader(page).rows if len(row) == 2}
    assert about["network"] == "mobilenet_v2, width 1, 224 px"
    assert about["weights"] == "keras c0ffee"
    assert about["data"] == "folder <i>& \\udce9: 1,234 to train on, 10 to validate on"
    assert about["phases.head.train"] == "[('head/.*', 1.0)]"
    assert about["phases.finetune.epochs"] == "2"
    assert "jax " in about["versions"]
