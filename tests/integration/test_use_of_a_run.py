"""A finished run measures and classifies images from the terminal and from Python."""

import csv
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from workplace import COLOURS, write_images

import jaxtl
from jaxtl.errors import UserError


def classified(out):
    """The probabilities of each image by class, from the JSON of `predict`."""
    return {
        entry["path"]: {guess["class"]: guess["probability"] for guess in entry["classes"]}
        for entry in json.loads(out)
    }


def interval(result, images):
    """Wilson's, of 95 %, by hand."""
    z, p = 1.959963984540054, result["accuracy"]
    centre = (p + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z * math.sqrt(p * (1 - p) / images + z**2 / (4 * images**2)) / (1 + z**2 / images)
    return f"{max(centre - half, 0):.4f} to {min(centre + half, 1):.4f}"


def label(path):
    return Path(path).parent.name


@pytest.fixture(scope="module")
def evaluated(whole, workplace):
    """How `evaluate` ended on the run's own images."""
    ended = workplace.run("jaxtl.evaluate", "--run", "whole")
    assert ended.code == 0, ended.err
    return ended


@pytest.fixture(scope="module")
def as_json(whole, workplace):
    """What `predict` says of every validation image."""
    ended = workplace.here("jaxtl.predict", "--run", "whole", "data/val", "--format", "json")
    assert ended.code == 0, ended.err
    return classified(ended.out)


@pytest.fixture(scope="module")
def predictor(whole):
    return jaxtl.load_run(whole.path)


def test_evaluate_finds_the_accuracy_that_training_reported(evaluated, whole):
    result = json.loads((whole.path / "run.json").read_text())["result"]
    lines = evaluated.out.splitlines()
    assert lines[0] == "Found 18 images belonging to 3 classes."
    assert lines[-1] == (
        f"loss {result['loss']:.4f} accuracy {result['accuracy']:.4f}  "
        f"({round(result['accuracy'] * 18)}/18 correct, 95 % interval {interval(result, 18)})"
    )


def test_evaluate_counts_each_class_as_predict_classifies_its_images(evaluated, as_json):
    guessed = {path: max(classes, key=classes.get) for path, classes in as_json.items()}
    rows = [re.split(r"\s*[│|]\s*", line.strip("│ ")) for line in evaluated.out.splitlines()]
    table = {row[0]: row[1:] for row in rows if row[0] in COLOURS}
    for name in COLOURS:
        correct = sum(label(path) == name == guess for path, guess in guessed.items())
        found = sum(guess == name for guess in guessed.values())
        precision = f"{correct / found:.4f}" if found else "-"
        recall = [f"{correct / 6:.4f}", interval({"accuracy": correct / 6}, 6)]
        f1 = f"{2 * correct / (6 + found):.4f}"
        assert table[name][:-1] == ["6", str(correct), *recall, precision, f1]
        low, _, high = table[name][-1].partition(" to ")
        assert low == "-" or float(low) <= float(f1) <= float(high)


def test_evaluate_measures_other_images(whole, workplace):
    write_images(workplace.path / "other", each=4, seed=3)
    ended = workplace.here("jaxtl.evaluate", "--run", "whole", "--data", "other")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[0] == "Found 12 images belonging to 3 classes."
    correct = int(re.search(r"\((\d+)/12 correct, .*\)$", lines[-1])[1])
    assert f"accuracy {correct / 12:.4f}" in lines[-1]


def test_predict_says_as_many_images_correct_as_training_reported(as_json, whole):
    result = json.loads((whole.path / "run.json").read_text())["result"]
    correct = [max(classes, key=classes.get) == label(path) for path, classes in as_json.items()]
    assert len(correct) == 18
    assert sum(correct) == round(result["accuracy"] * 18)
    assert len(set(map(str, as_json.values()))) == 18  # not one answer for all


def test_predict_gives_the_cross_entropy_that_training_reported(as_json, whole):
    result = json.loads((whole.path / "run.json").read_text())["result"]
    losses = [-np.log(classes[label(path)]) for path, classes in as_json.items()]
    assert np.mean(losses) == pytest.approx(result["loss"], rel=1e-5)


def test_predict_writes_csv(whole, workplace, as_json):
    images = ["data/val/red/01.png", "data/val/blue/00.jpg"]
    ended = workplace.here("jaxtl.predict", "--run", "whole", *images, "--format", "csv")
    assert ended.code == 0, ended.err
    rows = list(csv.DictReader(io.StringIO(ended.out)))
    assert [row["path"] for row in rows] == [path for path in images for _ in range(3)]
    assert [row["rank"] for row in rows] == ["1", "2", "3"] * 2
    for path in images:
        found = {r["class"]: float(r["probability"]) for r in rows if r["path"] == path}
        assert found == pytest.approx(as_json[path], abs=1e-5)
        assert sum(found.values()) == pytest.approx(1, abs=3e-6)
        assert list(found.values()) == sorted(found.values(), reverse=True)


def test_predict_shows_a_table(whole, workplace, as_json):
    ended = workplace.here("jaxtl.predict", "--run", "whole", "data/val/green", "--top", "2")
    assert ended.code == 0, ended.err
    rows = [line.strip("│ ") for line in ended.out.splitlines() if "data/val" in line]
    paths = [f"data/val/green/{n:02}.{'png' if n % 2 else 'jpg'}" for n in range(6)]
    for row, path in zip(rows, paths, strict=True):
        (first, p1), (second, p2), _ = sorted(as_json[path].items(), key=lambda item: -item[1])
        cells = [cell.strip() for cell in row.split("│")]
        assert cells[:2] == [path, first]
        assert float(cells[2]) == pytest.approx(p1, abs=1e-3)
        assert cells[3].startswith(f"{second} ")
        assert float(cells[3].split()[1]) == pytest.approx(p2, abs=1e-3)


def test_a_loaded_run_classifies_files_as_the_command_does(predictor, workplace, as_json):
    found = predictor.predict([workplace.path / path for path in as_json])
    assert predictor.classes == ("blue", "green", "red")
    expected = [[classes[name] for name in predictor.classes] for classes in as_json.values()]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def test_a_loaded_run_classifies_an_array_as_it_does_the_files(predictor, workplace, as_json):
    paths = [path for path in as_json if path.endswith(".png")]
    images = np.stack([np.asarray(Image.open(workplace.path / path)) for path in paths])
    assert images.shape == (9, 40, 40, 3)
    expected = [[as_json[path][name] for name in predictor.classes] for path in paths]
    np.testing.assert_allclose(predictor.predict(images), expected, atol=1e-5)


@pytest.mark.parametrize(("shape", "dtype"), [((40, 40, 3), "uint8"), ((1, 40, 40, 3), "float32")])
def test_an_array_that_is_no_batch_of_images_is_refused(predictor, shape, dtype):
    with pytest.raises(UserError, match=r"for one image: image\[None\]"):
        predictor.predict(np.zeros(shape, dtype))


def test_no_images_have_no_probabilities(predictor):
    assert predictor.predict([]).shape == (0, 3)


def test_evaluate_refuses_images_that_are_not_those_of_the_run_any_more(whole, workplace):
    added = workplace.path / "data" / "val" / "red" / "new.png"
    added.write_bytes((added.parent / "01.png").read_bytes())
    try:
        refused = workplace.here("jaxtl.evaluate", "--run", whole.path)
    finally:
        added.unlink()
    assert refused.code == 2
    assert "changed since the run" in refused.err


def test_hidden_files_in_a_folder_are_no_images(whole, workplace, tmp_path):
    (tmp_path / "._a.png").write_bytes(b"resource fork")
    image = next((workplace.path / "data" / "val" / "red").glob("*.png"))
    (tmp_path / "a[b].png").write_bytes(image.read_bytes())
    ended = workplace.here("jaxtl.predict", "--run", whole.path, tmp_path)
    assert ended.code == 0, ended.err
    assert "a[b].png" in ended.out
    assert "._a.png" not in ended.out


def test_a_loaded_run_takes_one_path(predictor, workplace):
    image = next((workplace.path / "data" / "val" / "red").glob("*.png"))
    assert predictor.predict(image).shape == (1, 3)
    assert predictor.predict(str(image)).shape == (1, 3)
