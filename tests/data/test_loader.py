"""Batches: every image once, in an order of seed and epoch, from memory as from the stream."""

import dataclasses
import threading
import time

import numpy as np
import pytest
from PIL import Image

from jaxtl.data.decoding import decode
from jaxtl.data.loader import Loader, balanced_order
from jaxtl.data.sources import ArraySource, open_all
from jaxtl.errors import UserError

STREAM, MEMORY = 0, 1e9


def numbered(count):
    """A source whose image i is filled with the value i."""
    pixels = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None], (count, 4, 4)).copy()
    labels = (np.arange(count) % 3).astype(np.int32)
    return ArraySource("numbered", pixels, labels, ("a", "b", "c"))


def loader(source, **options):
    defaults = {
        "image_size": 4,
        "resize": "stretch",
        "batch_size": 4,
        "seed": 0,
        "shuffle": True,
        "memory_bytes": STREAM,
    }
    return Loader(source, **defaults | options)


def values(batches):
    """The numbers of the images in the batches, padding left out."""
    return [int(v) for batch in batches for v in batch.inputs[batch.valid][:, 0, 0, 0]]


def same(left, right):
    left, right = list(left), list(right)
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("memory_bytes", [STREAM, MEMORY])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 16, 50])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_image_comes_once_an_epoch_with_its_label(count, shuffle, memory_bytes):
    load = loader(numbered(count), shuffle=shuffle, memory_bytes=memory_bytes)
    batches = list(load.epoch(2))
    assert len(load) == count
    assert len(batches) == load.steps_per_epoch == -(-count // 4)
    seen = values(batches)
    assert sorted(seen) == list(range(count))
    labels = np.concatenate([batch.labels[batch.valid] for batch in batches])
    np.testing.assert_array_equal(labels, np.array(seen) % 3)
    assert shuffle or seen == list(range(count))


def test_the_last_batch_is_filled_up_with_zeros_that_are_not_valid():
    *full, last = loader(numbered(6), shuffle=False).epoch(0)
    assert all(batch.valid.all() for batch in full)
    np.testing.assert_array_equal(last.valid, [True, True, False, False])
    assert last.inputs.shape == (4, 4, 4, 3)
    assert last.inputs.dtype == np.uint8
    assert last.labels.dtype == np.int32
    assert not last.inputs[2:].any()
    assert not last.labels[2:].any()


def test_each_epoch_has_its_own_order_which_its_seed_decides():
    orders = {
        (seed, epoch): tuple(values(loader(numbered(20), seed=seed).epoch(epoch)))
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(set(orders.values())) == 16
    again = loader(numbered(20), seed=2)
    list(again.epoch(1))  # what was read before does not matter
    assert tuple(values(again.epoch(3))) == orders[2, 3]


def test_the_order_is_close_to_uniform():
    load = loader(numbered(5), batch_size=5, memory_bytes=MEMORY)
    firsts = [values(load.epoch(epoch))[0] for epoch in range(300)]
    counts = np.bincount(firsts, minlength=5)
    assert counts.min() > 25  # 60 expected, with a standard deviation of 7


@pytest.mark.parametrize("memory_bytes", [STREAM, MEMORY])
@pytest.mark.parametrize("start", [0, 1, 3, 4, 5])
def test_starting_in_the_middle_gives_the_tail_of_the_same_epoch(start, memory_bytes):
    whole = list(loader(numbered(18)).epoch(7))
    tail = loader(numbered(18), memory_bytes=memory_bytes).epoch(7, start)
    same(tail, whole[start:])


@pytest.mark.parametrize("views", [1, 2, 3, 7])
@pytest.mark.parametrize("first", [0, 5])
def test_so_many_epochs_show_every_view_of_every_image_once(views, first):
    load = loader(numbered(11))
    seen = [
        (int(index), int(view))
        for epoch in range(first, first + views)
        for batch in load.rows(epoch, views=views)
        for index, view in zip(batch.indices[batch.valid], batch.views[batch.valid], strict=True)
    ]
    assert sorted(seen) == [(index, view) for index in range(11) for view in range(views)]


def test_each_epoch_mixes_the_views():
    for epoch in range(4):
        batches = list(loader(numbered(30)).rows(epoch, views=3))
        views = np.concatenate([batch.views[batch.valid] for batch in batches])
        np.testing.assert_array_equal(np.bincount(views), [10, 10, 10])


def test_without_a_number_of_views_every_epoch_is_one_of_its_own():
    for epoch in (0, 1, 6):
        for batch in loader(numbered(11)).rows(epoch):
            assert set(batch.views[batch.valid].tolist()) == {epoch}


@pytest.mark.parametrize("memory_bytes", [STREAM, MEMORY])
@pytest.mark.parametrize("views", [0, 1, 3])
def test_rows_name_the_images_of_the_same_epoch(views, memory_bytes):
    load = loader(numbered(18), memory_bytes=memory_bytes)
    for start in (0, 2):
        batches = list(load.epoch(7, start, views=views))
        rows = list(load.rows(7, start, views=views))
        same([row[1:] for row in rows], [batch[1:] for batch in batches])
        for row, batch in zip(rows, batches, strict=True):
            np.testing.assert_array_equal(row.inputs, row.indices)
            images = batch.inputs[batch.valid][:, 0, 0, 0]
            np.testing.assert_array_equal(images, row.indices[row.valid])


def test_a_loader_reads_once_through_in_the_order_of_its_source_and_keeps_nothing():
    load = loader(numbered(10), memory_bytes=MEMORY, seed=3)
    through = load.once_through(6)
    assert (len(through), through.steps_per_epoch, through.batch_size) == (10, 2, 6)
    assert values(through.epoch(0)) == list(range(10))
    load.source.pixels[:] = 7
    assert values(through.epoch(0)) == [7] * 10


@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_once_through_decodes_as_the_epochs_do(tmp_path, resize):
    load = loader(open_all(photographs(tmp_path, 7)), resize=resize, image_size=16, shuffle=False)
    (batch,) = load.once_through(7).epoch(0)
    expected = np.concatenate([b.inputs[b.valid] for b in load.epoch(0)])
    np.testing.assert_array_equal(batch.inputs, expected)


@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_memory_and_stream_give_the_same_bits(tmp_path, resize):
    source = open_all(photographs(tmp_path, 11))
    stream = loader(source, resize=resize, image_size=16)
    memory = loader(source, resize=resize, image_size=16, memory_bytes=MEMORY)
    for epoch in range(3):
        same(stream.epoch(epoch), memory.epoch(epoch))
    expected = {decode(source[i], 16, resize).tobytes() for i in range(11)}
    seen = [p.tobytes() for b in memory.epoch(0) for p in b.inputs[b.valid]]
    assert set(seen) == expected


def counting(count):
    """`numbered(count)`, and a list that the number of each image is added to when it is read."""
    plain, reads = numbered(count), []

    class Counting(ArraySource):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    return Counting(plain.name, plain.pixels, plain.labels, plain.classes), reads


@pytest.mark.parametrize("host", [0, 1])
def test_hosts_decode_only_their_own_validation_images_and_once(host):
    source, reads = counting(11)
    mine = [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10]][host]
    bytes_of_mine = len(mine) * 4 * 4 * 3
    options = {"shuffle": False, "memory_bytes": bytes_of_mine, "part": (host, 2)}
    load = loader(source, **options)
    assert [values(load.epoch(epoch)) for epoch in range(3)] == [mine] * 3
    assert sorted(reads) == mine
    streamed = loader(numbered(11), **options | {"memory_bytes": STREAM})
    same(load.epoch(3, 1), streamed.epoch(3, 1))


def test_what_fits_into_memory_is_read_once_and_what_does_not_every_epoch():
    needed = 10 * 4 * 4 * 3
    for memory_bytes, expected in [(needed, 1), (needed - 1, 2)]:
        source, reads = counting(10)
        load = loader(source, memory_bytes=memory_bytes)
        assert not reads
        for epoch in range(2):
            list(load.epoch(epoch))
        assert sorted(reads) == sorted(list(range(10)) * expected)


def photographs(root, count):
    generator = np.random.default_rng(0)
    for index in range(count):
        path = root / "ab"[index % 2] / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        height, width = generator.integers(20, 60, 2)
        pixels = generator.integers(0, 256, (height, width, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
    return str(root)


@pytest.mark.parametrize("memory_bytes", [STREAM, MEMORY])
def test_a_damaged_image_is_named_and_the_threads_end(tmp_path, memory_bytes):
    photographs(tmp_path, 12)
    broken = tmp_path / "b" / "5.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    load = loader(open_all(str(tmp_path)), memory_bytes=memory_bytes)
    with pytest.raises(UserError) as caught:
        list(load.epoch(0))
    assert type(caught.value) is UserError
    assert str(caught.value).startswith(f"{broken}: damaged or not supported: ")
    assert no_threads_left()


def test_a_image_that_vanished_is_named(tmp_path):
    photographs(tmp_path, 4)
    load = loader(open_all(str(tmp_path)))
    (tmp_path / "a" / "2.jpg").unlink()
    with pytest.raises(UserError, match=r"a/2\.jpg: cannot be read: No such file"):
        list(load.epoch(0))


def test_an_epoch_that_is_left_in_the_middle_leaves_no_threads():
    batches = loader(numbered(200)).epoch(0)
    next(batches)
    batches.close()
    assert no_threads_left()


def no_threads_left():
    for _ in range(100):
        if not any("grain" in thread.name for thread in threading.enumerate()):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("memory_bytes", [STREAM, MEMORY])
@pytest.mark.parametrize("hosts", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 13, 24, 50])
def test_hosts_read_every_image_once_an_epoch_in_an_order_of_seed_and_epoch(
    count, hosts, memory_bytes
):
    def batches(host, of, epoch, seed=0, **options):
        load = loader(numbered(count), batch_size=6, seed=seed, part=(host, of), **options)
        return list(load.epoch(epoch, views=3))

    options = {"memory_bytes": memory_bytes}
    parts = [batches(host, hosts, 1, **options) for host in range(hosts)]
    for joined, whole in zip(zip(*parts, strict=True), batches(0, 1, 1), strict=True):
        for each, expected in zip(zip(*joined, strict=True), whole, strict=True):
            np.testing.assert_array_equal(np.concatenate(each), expected)
    seen = [value for part in parts for value in values(part)]
    assert sorted(seen) == list(range(count))
    if count > 6:  # some order is the same by chance otherwise
        assert values(parts[0]) == values(batches(0, hosts, 1, **options))
        assert values(parts[0]) != values(batches(0, hosts, 2, **options))
        assert values(parts[0]) != values(batches(0, hosts, 1, seed=1, **options))


@pytest.mark.parametrize("counts", [(50, 7, 3), (1, 20), (5, 5, 5, 0, 5)])
def test_balanced_epochs_have_each_class_and_over_time_each_image_equally_often(counts):
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    labels = np.random.default_rng(0).permutation(labels)
    there, epochs = [n for n in counts if n], 2 * 3 * 7 * 5
    shown = np.zeros(len(labels), int)
    for epoch in range(epochs):
        order, before = balanced_order(labels, 3, epoch)
        assert len(order) == len(labels)
        for image in np.unique(order):
            times = np.sort(before[order == image])
            np.testing.assert_array_equal(times, shown[image] + np.arange(len(times)))
        of_class = np.bincount(labels[order], minlength=len(counts))[np.array(counts) > 0]
        assert of_class.max() - of_class.min() <= 1
        shown += np.bincount(order, minlength=len(labels))
    for label, count in enumerate(counts):
        times = shown[labels == label]
        if count:
            assert times.max() - times.min() <= 1
            assert abs(times.sum() - epochs * len(labels) / len(there)) <= 1
    first, second = (balanced_order(labels, 3, epoch)[0] for epoch in (0, 1))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, balanced_order(labels, 3, 0)[0])
    assert not np.array_equal(first, balanced_order(labels, 4, 0)[0])


@pytest.mark.parametrize("views", [0, 3])
def test_an_image_that_comes_again_in_a_balanced_epoch_shows_another_view(views):
    source = numbered(13)
    labels = (np.arange(13) >= 12).astype(np.int32)  # the last image is a class of its own
    source = dataclasses.replace(source, labels=labels, classes=("a", "b"))
    load = loader(source, balanced=True, memory_bytes=MEMORY)
    seen = [
        int(view)
        for epoch in range(6)
        for batch in load.epoch(epoch, views=views)
        for view in batch.views[batch.valid & (batch.indices == 12)]
    ]
    assert len(seen) == 6 * 13 / 2
    if views:
        assert np.ptp(np.bincount(seen, minlength=views)) == 0
    else:
        assert len(set(seen)) == len(seen)
