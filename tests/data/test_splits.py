"""The images of a test: where they come from, and what they leave as it was."""

import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxtl.config import Data
from jaxtl.data.checking import check
from jaxtl.data.folders import survey_folder
from jaxtl.data.packing import pack
from jaxtl.data.sources import open_all
from jaxtl.data.splits import open_splits
from jaxtl.errors import UserError


def write_images(root, *parts, each=2):
    """Images of two classes in folders for some splits; no two have the same bytes."""
    rng = np.random.default_rng(len(parts))
    for part in parts:
        for name in ("ant", "bee"):
            for number in range(each):
                path = root / part / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (9, 9, 3)).astype(np.uint8)).save(path)
    return root


def opened(spec, **options):
    return open_splits(Data(source=str(spec), **options))


def names(source):
    return {source.describe(i) for i in range(len(source))}


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_a_folder_for_the_test_beside_one_for_validation(tmp_path, val):
    write_images(tmp_path, "train", val, "test")
    splits = opened(tmp_path)
    for source, folder in zip(splits, ("train", val, "test"), strict=True):
        assert all(name.startswith(f"{tmp_path}/{folder}/") for name in names(source))
        assert len(source) == 4
        assert source.classes == ("ant", "bee")


@pytest.mark.parametrize("source", ["folder", "packed"])
def test_a_split_for_the_test_alone_chooses_nothing(tmp_path, source):
    spec = images = write_images(tmp_path / "images", "train", "test", each=5)
    if source == "packed":
        pack(str(images), tmp_path / "packed")
        spec = f"tfds:{tmp_path}/packed"
    splits = opened(spec)
    assert [len(part) for part in splits] == [8, 2, 10]
    assert len(names(splits.train) | names(splits.val)) == 10
    test = {(images / "test" / path).read_bytes() for path in ("ant/0.png", "bee/4.png")}
    assert test <= {splits.test[i] for i in range(10)}
    assert names(open_all(str(spec))) == names(splits.test)
    assert check(str(spec)).images == {"train": 10, "test": 10}
    with pytest.raises(UserError, match="has a test split of its own"):
        opened(spec, test_fraction=0.2)
    assert [len(part) for part in opened(spec, folds=5)] == [8, 2, 10]


def test_a_class_of_the_test_that_train_lacks_is_refused(tmp_path):
    write_images(tmp_path, "train", "val", "test")
    (tmp_path / "test" / "ant").rename(tmp_path / "test" / "cat")
    with pytest.raises(UserError, match=r"test has the class 'cat', which .*train lacks"):
        opened(tmp_path)


@pytest.mark.parametrize("kind", ["other classes", "no class folders", "empty"])
def test_a_test_folder_that_is_none_is_ignored_and_said(tmp_path, caplog, kind):
    """Many data sets have images without labels there."""
    write_images(tmp_path, "train", "val", "test")
    test = tmp_path / "test"
    if kind == "other classes":
        (test / "ant").rename(test / "cat")
        (test / "bee").rename(test / "dog")
    else:
        for image in list(test.rglob("*.*")):
            image.rename(test / image.name) if kind == "no class folders" else image.unlink()
        for folder in ("ant", "bee"):
            (test / folder).rmdir()
    with caplog.at_level(logging.WARNING, "jaxtl"):
        assert opened(tmp_path).test is None
    (said,) = caplog.messages
    assert said == f"{tmp_path}: ignored: test"
    assert list(survey_folder(tmp_path).splits) == ["train", "val"]


def test_without_a_test_fraction_the_splits_are_those_of_older_versions():
    """The fingerprints of version 0.2, which have the images and their order."""
    train, val, test = opened("digits", seed=3)
    assert train.fingerprint == "4997b9fd83d69e0460a6d48ff79fc3f6f2cb6a30626006ac3be33ff073ee69e7"
    assert val.fingerprint == "89f7abbe5176011a677d35aa83698e537d63935859dba60fab751735151b14ad"
    assert test is None


def test_a_fraction_of_each_class_is_kept_for_the_test_and_no_image_is_lost():
    splits = opened("digits", val_fraction=0.25, test_fraction=0.2)
    whole = opened("digits")
    assert sorted(names(splits.train) | names(splits.val) | names(splits.test)) == sorted(
        names(whole.train) | names(whole.val)
    )
    counts = [np.bincount(part.labels) for part in splits]
    total = np.sum(counts, axis=0)
    assert total.sum() == 1797  # the parts have no image in common
    np.testing.assert_allclose(counts[2], 0.2 * total, atol=0.5)
    np.testing.assert_allclose(counts[1], 0.25 * (total - counts[2]), atol=0.5)


def test_the_fraction_for_validation_does_not_change_the_test():
    one, other = (
        opened("digits", val_fraction=fraction, test_fraction=0.2) for fraction in (0.1, 0.5)
    )
    assert one.test.fingerprint == other.test.fingerprint
    assert one.val.fingerprint != other.val.fingerprint
    another = opened("digits", seed=1, test_fraction=0.2)
    assert another.test.fingerprint != one.test.fingerprint


def test_a_test_fraction_leaves_a_folder_for_validation_as_it_is(tmp_path):
    write_images(tmp_path, "train", "val", each=4)
    splits = opened(tmp_path, test_fraction=0.25)
    assert names(splits.val) == names(opened(tmp_path).val)
    assert [len(part) for part in splits] == [6, 8, 2]


def test_a_test_fraction_beside_a_folder_for_the_test_is_refused(tmp_path):
    write_images(tmp_path, "train", "val", "test")
    with pytest.raises(UserError, match="has a test split of its own"):
        opened(tmp_path, test_fraction=0.2)


def test_a_class_that_is_too_small_for_three_splits_is_refused(tmp_path):
    with pytest.raises(UserError, match="the class 'ant' has a single image left"):
        opened(write_images(tmp_path, "."), test_fraction=0.5)


@pytest.mark.parametrize(("other", "said"), [("train", "training"), ("val", "validation")])
def test_an_image_of_the_test_that_chose_the_result_is_warned_of(tmp_path, caplog, other, said):
    write_images(tmp_path, "train", "val", "test")
    shutil.copy(tmp_path / other / "ant" / "1.png", tmp_path / "test" / "ant" / "copy.png")
    with caplog.at_level(logging.WARNING, "jaxtl"):
        opened(tmp_path, on_bad_image="error")
    assert caplog.messages == [
        f"1 test images are among the {said} images too, so the test looks better than it is; "
        f"the first is {tmp_path}/test/ant/copy.png, the same as {tmp_path}/{other}/ant/1.png"
    ]
    assert check(str(tmp_path)).leaks == [
        (f"{tmp_path}/{other}/ant/1.png", f"{tmp_path}/test/ant/copy.png")
    ]


def test_bad_images_of_the_test_are_left_out_as_others_are(tmp_path):
    write_images(tmp_path, "train", "val", "test")
    path = tmp_path / "test" / "bee" / "0.png"
    path.write_bytes(path.read_bytes()[:60])
    assert names(opened(tmp_path, on_bad_image="skip").test) == {
        f"{tmp_path}/test/{name}" for name in ("ant/0.png", "ant/1.png", "bee/1.png")
    }


def test_packed_images_keep_their_splits(tmp_path):
    images = write_images(tmp_path / "images", "train", "val", "test")
    packed = pack(str(images), tmp_path / "packed")
    assert packed.images == {"train": 4, "validation": 4, "test": 4}
    for one, other in zip(opened(images), opened(f"tfds:{tmp_path}/packed"), strict=True):
        assert [one[i] for i in range(4)] == [other[i] for i in range(4)]
        np.testing.assert_array_equal(one.labels, other.labels)


def test_each_image_is_in_one_fold_and_each_class_in_all_of_them():
    parts = [opened("digits", folds=5, fold=fold) for fold in range(5)]
    held_out = [names(part.val) for part in parts]
    whole = names(opened("digits").train) | names(opened("digits").val)
    assert sum(map(len, held_out)) == len(whole) == 1797
    assert set.union(*held_out) == whole
    for part, held in zip(parts, held_out, strict=True):
        assert names(part.train) == whole - held
    counts = np.array([np.bincount(part.val.labels) for part in parts])
    assert (counts.max(axis=0) - counts.min(axis=0) <= 1).all()


def test_folds_are_drawn_by_the_seed_and_leave_the_test_alone():
    first, again, other = (
        opened("digits", seed=seed, folds=3, fold=1, test_fraction=0.1) for seed in (0, 0, 1)
    )
    assert first.val.fingerprint == again.val.fingerprint != other.val.fingerprint
    plain = opened("digits", test_fraction=0.1)
    assert first.test.fingerprint == plain.test.fingerprint
    assert not names(first.test) & (names(first.train) | names(first.val))


def test_folds_of_images_that_cannot_be_divided_are_refused(tmp_path):
    images = write_images(tmp_path, "train", "val", each=4)
    with pytest.raises(UserError, match=rf"data\.folds would divide .* such as {images}/train"):
        opened(images, folds=3)
    with pytest.raises(UserError, match="the class 'ant' has 4 images, too few for"):
        opened(images / "train", folds=5)
    assert len(opened(images / "train", folds=4, fold=3).val) == 2
