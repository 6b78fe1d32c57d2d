"""A file that was made to harm, or was damaged, is refused in one line, before it takes memory."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from jaxtl.errors import UserError
from jaxtl.models import build
from jaxtl.weights import create
from jaxtl.weights.write import write_weights

NAME, WIDTH = "mobilenet_v2", 0.35
KERNEL = {"whole.h5": "block_3_expand/block_3_expand", "whole.weights.h5": "layers/conv2d_5/vars"}
ARRAY = {"whole.h5": "kernel", "whole.weights.h5": "0"}
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def trunks(tmp_path_factory) -> Path:
    """A folder with the trunk of a network as each kind of file."""
    folder = tmp_path_factory.mktemp("trunks")
    for convention, files in (("keras", KERNEL), ("torch", ["whole.safetensors"])):
        network = build(NAME, num_classes=None, width=WIDTH, convention=convention)
        for file in files:
            write_weights(network, folder / file)
    return folder


def load(path: Path) -> None:
    create(NAME, num_classes=None, weights=str(path), width=WIDTH)


def refusal(path: Path, *, megabytes: int = 200) -> str:
    """Why a file is refused, in one line and without much memory."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as error:
            load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < megabytes * MEGABYTE
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", KERNEL)
class TestHdf5:
    @pytest.fixture
    def changed(self, trunks, kind, tmp_path) -> Callable[..., Path]:
        """A function that takes the kernel of one layer out and puts something in its place."""

        def changed(put: Callable[[h5py.Group, str, np.ndarray], object]) -> Path:
            path = tmp_path / kind.replace("whole", "changed")
            path.write_bytes((trunks / kind).read_bytes())
            with h5py.File(path, "r+") as file:
                group = file[KERNEL[kind]]
                value = group[ARRAY[kind]][()]
                del group[ARRAY[kind]]
                put(group, ARRAY[kind], value)
            return path

        return changed

    def test_is_read_when_nothing_is_wrong_with_it(self, changed):
        load(changed(lambda group, name, value: group.create_dataset(name, data=value)))

    @pytest.mark.parametrize("chunks", [None, (1024,)])
    @pytest.mark.parametrize(
        "numbers", [1 << 29, pytest.param(1 << 42, marks=pytest.mark.slow), 1 << 60]
    )
    def test_may_not_declare_more_than_it_holds(self, changed, numbers, chunks):
        path = changed(
            lambda group, name, _: group.create_dataset(name, (numbers,), np.float32, chunks=chunks)
        )
        assert path.stat().st_size < 10 * MEGABYTE
        assert "declare more than it holds" in refusal(path)

    def test_may_not_have_one_array_in_many_places(self, changed, kind):
        def many(group, name, value):
            group.create_dataset(name, data=np.zeros(MEGABYTE, np.float32))
            if kind == "whole.h5":
                layers = [name.decode() for name in group.file.attrs["layer_names"]]
                group.file.attrs["layer_names"] = [*layers, *["block_3_expand"] * 1000]
            else:
                for i in range(1, 100):
                    group[str(i)] = group[name]

        refusal(changed(many), megabytes=50)

    def test_may_not_be_compressed(self, changed):
        path = changed(
            lambda group, name, value: group.create_dataset(name, data=value, compression="gzip")
        )
        assert "is compressed; h5repack -f NONE" in refusal(path)

    def test_may_not_have_arrays_in_other_files(self, changed, tmp_path):
        def external(group, name, value):
            (tmp_path / "secret").write_bytes(value.tobytes())
            files = [(str(tmp_path / "secret"), 0, value.nbytes)]
            group.create_dataset(name, value.shape, value.dtype, external=files)

        assert "lies in another file" in refusal(changed(external))

    def test_may_not_have_virtual_arrays(self, changed, tmp_path):
        def virtual(group, name, value):
            with h5py.File(tmp_path / "secret.h5", "w") as other:
                other["value"] = value
            layout = h5py.VirtualLayout(value.shape, value.dtype)
            layout[...] = h5py.VirtualSource(tmp_path / "secret.h5", "value", value.shape)
            group.create_virtual_dataset(name, layout)

        assert "lies in another file" in refusal(changed(virtual))

    @pytest.mark.parametrize("soft", [False, True])
    def test_may_not_have_links_to_other_files(self, changed, soft, tmp_path):
        def link(group, name, value):
            with h5py.File(tmp_path / "secret.h5", "w") as other:
                other["value"] = value
            there = h5py.ExternalLink(tmp_path / "secret.h5", "/value")
            if soft:
                group.file["elsewhere"] = h5py.ExternalLink(tmp_path / "secret.h5", "/")
                there = h5py.SoftLink("/elsewhere/value")
            group[name] = there

        assert "is a link that may lead out of the file" in refusal(changed(link))

    def test_may_not_hold_text_of_any_length(self, changed):
        def text(group, name, _):
            group.create_dataset(name, (1000,), h5py.string_dtype(), data=["long" * 1000] * 1000)

        assert "does not hold numbers" in refusal(changed(text))

    def test_may_not_nest_groups_deeply(self, changed):
        def deep(group, name, value):
            group[name] = value
            for _ in range(2000):
                group = group.create_group("g", track_order=False)

        assert "is nested too deeply" in refusal(changed(deep))

    def test_may_not_have_numbers_that_float32_cannot_hold(self, changed):
        path = changed(
            lambda group, name, value: group.create_dataset(name, data=value.astype("f8") * 1e300)
        )
        assert "kernel is not finite" in refusal(path)


def test_a_list_of_names_may_not_be_one_long_text_many_times(trunks, tmp_path):
    path = tmp_path / "changed.h5"
    path.write_bytes((trunks / "whole.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        file.attrs["layer_names"] = ["x" * 4 * MEGABYTE, *["y"] * 199]
    data, length = bytearray(path.read_bytes()), (4 * MEGABYTE).to_bytes(4, "little")
    first = re.search(re.escape(length) + b".{12}\1\0\0\0", data, re.DOTALL)
    assert first is not None  # the place of the first text, before that of the second
    data[first.start() : first.start() + 16 * 200] = data[first.start() :][:16] * 200
    path.write_bytes(data)
    del data
    assert "texts that are too long" in refusal(path, megabytes=50)


def test_a_name_that_is_damaged_is_cut_in_a_message(trunks, tmp_path):
    path = tmp_path / "changed.h5"
    path.write_bytes((trunks / "whole.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        file.attrs["layer_names"] = [b"x " * 10_000]
    assert len(refusal(path)) < 500


def keras_zip(trunks: Path, path: Path, method: int = zipfile.ZIP_DEFLATED, **members) -> Path:
    parts = {"config.json": b'{"config": {}}'}
    parts["model.weights.h5"] = (trunks / "whole.weights.h5").read_bytes()
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in (parts | members).items():
            archive.writestr(name, data)
    return path


class TestKerasZip:
    @pytest.fixture
    def path(self, trunks, tmp_path) -> Path:
        return keras_zip(trunks, tmp_path / "model.keras")

    def test_is_read_when_it_is_deflated(self, path):
        load(path)

    @pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
    def test_may_not_be_compressed_by_what_has_no_bound(self, trunks, method, tmp_path):
        path = keras_zip(trunks, tmp_path / "model.keras", method)
        assert "by another method than deflate" in refusal(path)

    @pytest.mark.parametrize(
        ("name", "megabytes"), [("config.json", 17), ("model.weights.h5", 500)]
    )
    def test_may_not_unpack_to_much_more_than_it_has(self, trunks, name, megabytes, tmp_path):
        content = {name: bytes(megabytes * (1 << 20))}
        path = keras_zip(trunks, tmp_path / "model.keras", **content)
        del content
        assert path.stat().st_size < 10 * MEGABYTE
        assert f"{name} unpacks to more than" in refusal(path)

    def test_may_not_lie_about_the_length_of_a_member(self, path):
        data = bytearray(path.read_bytes())
        record = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)  # of the weights
        data[record + 24 : record + 28] = (1000).to_bytes(4, "little")
        path.write_bytes(data)
        assert "damaged" in refusal(path)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            (6, b"\xff"),  # the version of zip that it needs
            (8, b"\x01"),  # it is encrypted
            (10, b"\x63"),  # the method of compression
            (20, b"\x64\x00\x00\x00"),  # the bytes in the file
        ],
    )
    def test_is_refused_whatever_its_directory_says(self, path, field, value):
        data = bytearray(path.read_bytes())
        record = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
        data[record + field : record + field + len(value)] = value
        path.write_bytes(data)
        assert "damaged" in refusal(path)

    def test_is_refused_when_its_deflate_is_damaged(self, path):
        whole = path.read_bytes()
        for place in range(200, len(whole) - 400, len(whole) // 7):
            data = bytearray(whole)
            data[place : place + 50] = b"\xff" * 50
            path.write_bytes(data)
            assert "damaged" in refusal(path)

    @pytest.mark.parametrize("name", ['["x"]', "7"])
    def test_may_not_call_a_layer_what_is_no_text(self, trunks, name, tmp_path):
        layer = f'{{"class_name": "Conv2D", "config": {{"name": {name}}}}}'
        config = f'{{"config": {{"layers": [{layer}]}}}}'.encode()
        path = keras_zip(trunks, tmp_path / "model.keras", **{"config.json": config})
        assert "a layer is called" in refusal(path)

    def test_may_not_call_a_layer_by_a_number_of_any_length(self, trunks, tmp_path):
        name = f"conv2d_{'9' * 5000}"
        layer = {"class_name": "Conv2D", "config": {"name": name}}
        config = json.dumps({"config": {"layers": [layer]}}).encode()
        path = keras_zip(trunks, tmp_path / "model.keras", **{"config.json": config})
        load(path)  # by position, as every name that Keras did not make up and nobody knows

    @pytest.mark.parametrize("config", [b"[" * 100_000, b'{"config": 1}', b"\xff", b"{}"])
    def test_is_refused_when_its_config_is_something_else(self, trunks, config, tmp_path):
        path = keras_zip(trunks, tmp_path / "model.keras", **{"config.json": config})
        assert "damaged" in refusal(path)


class TestSafetensors:
    @staticmethod
    def written(path: Path, header: object, body: bytes = b"") -> Path:
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + body)
        return path

    @pytest.mark.parametrize(
        "shape", [[0, 1 << 62, 8], [0] * 100, [0, (1 << 64) - 1], [1 << 40], [1 << 63, 1 << 63]]
    )
    def test_may_not_have_impossible_shapes(self, shape, tmp_path):
        entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
        path = self.written(tmp_path / "a.safetensors", {"stem": entry})
        assert "damaged" in refusal(path)

    def test_may_not_have_a_header_of_another_length(self, trunks, tmp_path):
        whole = (trunks / "whole.safetensors").read_bytes()
        path = tmp_path / "a.safetensors"
        for length in (0, 7, 1 << 40, (1 << 64) - 1):
            path.write_bytes(length.to_bytes(8, "little") + whole[8:])
            assert "damaged" in refusal(path)

    def test_is_refused_in_words_when_metadata_are_something_else(self, tmp_path):
        for header in ({"__metadata__": 7}, {"__metadata__": {"a": {}}}, [], "text", {"a": 1}):
            assert "damaged" in refusal(self.written(tmp_path / "a.safetensors", header))


OLD_TORCH = """
import pathlib
from jaxtl import cli
from jaxtl.weights import create_model
cli.run(lambda _: create_model("mobilenet_v2", weights="model.pth", width=0.35), [])
"""


@pytest.mark.parametrize(
    "version",
    [
        "2.5.1",
        pytest.param("1.13.1+cu117", marks=pytest.mark.slow),
        pytest.param("2.9.1", marks=pytest.mark.slow),
        "2.10.0a0",
    ],
)
def test_a_pth_is_not_given_to_a_torch_in_which_it_can_run_code(version, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('torch was imported')")
    information = tmp_path / f"torch-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}")
    (tmp_path / "model.pth").write_bytes(b"anything")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", OLD_TORCH],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"error: model.pth is not read by torch {version}, in which such a file can run code "
        "(CVE-2026-24747): pip install 'torch>=2.10', or take a .safetensors file\n"
    )


@pytest.mark.peers
class TestPth:
    @pytest.fixture
    def torch(self):
        return pytest.importorskip("torch")

    @pytest.fixture
    def refused(self, torch, tmp_path) -> Callable[[object], str]:
        """A function that saves a tensor in a state and returns why that is refused."""

        def refused(tensor: object) -> str:
            torch.save({"conv_stem.weight": tensor}, tmp_path / "model.pth")
            return refusal(tmp_path / "model.pth")

        return refused

    def test_may_not_have_sparse_tensors(self, torch, refused):
        assert "it calls torch._utils._rebuild_sparse" in refused(torch.eye(9).to_sparse())

    def test_may_not_have_tensors_without_numbers(self, torch, refused):
        tensor = torch.empty(1 << 40, device="meta")
        assert "it calls torch._utils._rebuild_meta" in refused(tensor)

    def test_may_not_have_quantized_tensors(self, torch, refused):
        tensor = torch.quantize_per_tensor(torch.ones(9), 0.1, 0, torch.qint8)
        assert "it calls torch._utils._rebuild_qtensor" in refused(tensor)

    @pytest.mark.parametrize("numbers", [1 << 29, 1 << 45])
    def test_may_not_have_a_number_in_many_places(self, torch, refused, numbers):
        assert "more numbers than the file has" in refused(torch.ones(1).expand(numbers))

    def test_may_not_have_one_tensor_under_many_names(self, torch, tmp_path):
        tensor = torch.ones(MEGABYTE)
        torch.save({f"{i}.weight": tensor for i in range(1000)}, tmp_path / "model.pth")
        assert "more numbers than the file has" in refusal(tmp_path / "model.pth")

    def test_may_not_unpack_to_more_than_it_has(self, torch, tmp_path):
        whole = io.BytesIO()
        torch.save({"conv_stem.weight": torch.zeros(50 * MEGABYTE)}, whole)
        path = tmp_path / "model.pth"
        with zipfile.ZipFile(whole) as stored, zipfile.ZipFile(path, "w", 8) as deflated:
            for name in stored.namelist():
                deflated.writestr(name, stored.read(name))
        del whole
        assert path.stat().st_size < MEGABYTE
        assert "damaged" in refusal(path)

    @pytest.mark.parametrize(
        "name", [b"cbuiltins\nbytearray\n", b"\x8c\x08builtins\x8c\x09bytearray\x93"]
    )
    @pytest.mark.parametrize("zipped", [False, True])
    def test_may_not_ask_for_any_number_of_bytes(self, torch, name, zipped, tmp_path):
        path = tmp_path / "model.pth"
        bomb = b"\x80\x02" + name + b"J" + (1_500_000_000).to_bytes(4, "little") + b"\x85R."
        torch.save({}, path, _use_new_zipfile_serialization=zipped)
        if zipped:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("model/data.pkl", bomb)
                archive.writestr("model/version", "3\n")
        else:
            whole = path.read_bytes()
            path.write_bytes(bomb + whole)
        assert "torch's weights alone, it calls " in refusal(path, megabytes=10)

    def test_is_read_in_the_old_format_too(self, torch, trunks, tmp_path):
        from safetensors.torch import load_file

        path = tmp_path / "model.pth"
        state = load_file(trunks / "whole.safetensors")
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=False)
        load(path)

    def test_is_read_as_a_training_script_saves_it(self, torch, trunks, tmp_path):
        from safetensors.torch import load_file

        path = tmp_path / "model.pth"
        state = load_file(trunks / "whole.safetensors")
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.Adam(model.parameters())
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        states = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        torch.save({"state_dict": state, "epoch": 3, "seen": {1, 2}} | states, path)
        load(path)
