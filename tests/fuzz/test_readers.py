"""A valid file that was damaged or edited is read, or refused in one line, in bounded memory."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))  # lets the tests here import what lies beside them

from readers import (
    LINE,
    RUN_FILES,
    checkpoint_files,
    encoded,
    read_weights,
    refuses_or_reads,
    targets,
    weights,
)

TARGETS = targets()
JSON_FILES = RUN_FILES | checkpoint_files()
SLOW = checkpoint_files()  # to open checkpoints takes a tenth of a second
MOST_MEMORY = 64_000_000  # bytes, for files of 200 KB at most

# In CI the same examples every time: a new one is found by fuzzing, not by the next change.
deterministic = bool(os.environ.get("CI"))
fast = settings(
    max_examples=60,
    deadline=None,
    derandomize=deterministic,
    database=None,
    suppress_health_check=list(HealthCheck),
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**400, -1, 2**63, "x" * 9000, "../../..", "\x1b[2J\n"]),
    lambda inside: (
        st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=8), inside, max_size=3)
    ),
    max_leaves=6,
)


def each(names: Iterable[str]) -> Any:
    return pytest.mark.parametrize(
        "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in names]
    )


def check(name: str, data: bytes) -> bool:
    tracemalloc.start()
    try:
        taken = refuses_or_reads(TARGETS[name][0], data)
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()
    return taken


@st.composite
def damaged(draw: Callable[..., Any], whole: bytes) -> bytes:
    """The bytes with some overwritten, cut out, doubled or cut off."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from([1, 1, 2, 4, 8, 64, 1000]))
        kind = draw(st.sampled_from(["overwrite", "overwrite", "cut out", "double", "cut off"]))
        if kind == "overwrite":
            bits = draw(st.binary(min_size=1, max_size=8) | st.just(b"\xff" * 8))
            data[place : place + len(bits)] = bits
        elif kind == "cut out":
            del data[place : place + length]
        elif kind == "double":
            data[place:place] = data[place : place + length]
        else:
            del data[place:]
    return bytes(data)


@st.composite
def edited_json(draw: Callable[..., Any], whole: Any) -> Any:
    """A JSON value with one value inside it replaced, taken away or added."""
    whole = json.loads(json.dumps(whole))
    holder, key = {"all": whole}, "all"
    result = holder
    while isinstance(holder[key], dict | list) and holder[key] and draw(st.integers(0, 3)):
        holder = holder[key]
        keys = range(len(holder)) if isinstance(holder, list) else sorted(holder)
        key = draw(st.sampled_from(keys))
    if draw(st.integers(0, 4)):
        holder[key] = draw(JSON)
    elif holder is not result:
        del holder[key]
    elif isinstance(whole, dict):
        whole[draw(st.text(max_size=8))] = draw(JSON)
    return result["all"]


@pytest.mark.parametrize("name", TARGETS)
def test_a_valid_file_is_read(name):
    for data in TARGETS[name][1]:
        assert check(name, data)


@each(TARGETS)
@fast
@given(data=st.data())
def test_damaged_bytes_are_read_or_refused(name, data):
    check(name, data.draw(damaged(data.draw(st.sampled_from(TARGETS[name][1])))))


@each(JSON_FILES)
@fast
@given(data=st.data())
def test_edited_run_files_are_read_or_refused(name, data):
    lines = [data.draw(edited_json(JSON_FILES[name]))]
    if name == "metrics.jsonl":
        lines = [LINE, *lines, LINE]
    check(name, "".join(json.dumps(line) + "\n" for line in lines).encode())


@fast
@given(data=st.data())
def test_an_edited_header_of_safetensors_is_read_or_refused(data):
    whole = TARGETS["safetensors"][1][0]
    length = int.from_bytes(whole[:8], "little")
    header = data.draw(edited_json(json.loads(whole[8 : 8 + length])))
    text = json.dumps(header).encode()
    check("safetensors", len(text).to_bytes(8, "little") + text + whole[8 + length :])


@fast
@given(data=st.data())
def test_an_edited_config_in_a_keras_file_is_read_or_refused(data):
    layer = {"class_name": "Conv2D", "config": {"name": "Conv1"}}
    config = {"config": {"layers": [layer, layer]}}
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(TARGETS["keras"][1][0])) as whole:
        trunk = whole.read("model.weights.h5")
    with zipfile.ZipFile(file, "w", data.draw(st.sampled_from([0, 8, 12, 14]))) as archive:
        archive.writestr("config.json", json.dumps(data.draw(edited_json(config))))
        archive.writestr("model.weights.h5", data.draw(st.just(trunk) | damaged(trunk)))
    check("keras", file.getvalue())


@pytest.mark.parametrize("name", ["h5", "weights.h5"])
@settings(fast, max_examples=20)
@given(data=st.data())
def test_edited_hdf5_is_read_or_refused(name, data):
    file = io.BytesIO(TARGETS[name][1][0])
    with h5py.File(file, "r+") as opened:
        names: list[str] = []
        opened.visit(names.append)
        place = opened[data.draw(st.sampled_from(names))]
        value = data.draw(
            st.sampled_from([1.0, b"text", "text", [1, 2], [b"a", b"b"], float("nan")])
        )
        with contextlib.suppress(ValueError, TypeError, OSError):  # h5py cannot write that there
            kind = data.draw(st.sampled_from(["replace", "link", "attribute", "names"]))
            if kind == "replace":
                path = place.name
                del opened[path]
                opened[path] = value
            elif kind == "link":
                target = data.draw(st.sampled_from(["/", place.parent.name, "/nowhere"]))
                link = data.draw(
                    st.sampled_from([h5py.SoftLink(target), h5py.ExternalLink("/etc/x", target)])
                )
                opened[f"{place.parent.name}/zz"] = link
            elif kind == "attribute":
                for attribute in (*place.attrs, "layer_names"):
                    place.attrs[attribute] = value
            else:
                opened.attrs["layer_names"] = value
    check(name, file.getvalue())


@fast
@given(data=st.data())
def test_edited_png_chunks_are_read_or_refused(data):
    """With right checksums, so that the decoder sees what is inside."""
    whole, chunks = encoded("PNG"), []
    place = 8
    while place < len(whole):
        (length,) = struct.unpack(">I", whole[place : place + 4])
        chunks.append((whole[place + 4 : place + 8], whole[place + 8 : place + 8 + length]))
        place += 12 + length
    for _ in range(data.draw(st.integers(1, 3))):
        number = data.draw(st.integers(0, len(chunks) - 1))
        kind, body = chunks[number]
        new_kind = data.draw(st.just(kind) | st.sampled_from([b"tEXt", b"iCCP", b"eXIf", b"PLTE"]))
        chunks[number] = new_kind, data.draw(damaged(body) if body else st.binary(max_size=64))
    parts = [whole[:8]]
    for kind, body in chunks:
        checksum = zlib.crc32(kind + body)
        parts.append(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum))
    check("image", b"".join(parts))


@pytest.mark.peers
@fast
@given(data=st.data())
def test_damaged_pickles_of_torch_are_read_or_refused(data):
    """Inside the zip file too, whose checksums torch does not ask for."""
    pytest.importorskip("torch")
    whole, file = weights("pth"), io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            member = old.read(name)
            edit = name.endswith(".pkl") and data.draw(st.booleans())
            new.writestr(name, data.draw(damaged(member)) if edit else member)
    refuses_or_reads(read_weights("pth"), data.draw(st.just(file.getvalue()) | damaged(whole)))
