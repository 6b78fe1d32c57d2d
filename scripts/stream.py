"""Makes many JPEGs of real photographs, packs them, and streams both: speed, memory, exact counts.

    python scripts/stream.py docs/images            100,000 images, about 15 GB while it runs

It writes stream.svg, the resident memory of a process that reads three epochs at 224 px in batches
of 256, from the folder and from the packed data, and prints how fast each is. Every image has to
come exactly once an epoch, in another order each time. The JPEGs are crops of scikit-learn's two
photographs and of the ELPV photographs of solar cells (scripts/fetch_elpv.py), mirrored, lighter
or darker, of 400 to 1,200 pixels a side. Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import platformdirs
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

PHOTOGRAPHS = platformdirs.user_cache_path("jaxtl") / "elpv"
_EPOCHS, _BATCH, _SIDE = 3, 256, 224
_SMALLEST, _LARGEST = 400, 1200  # pixels a side of the JPEGs
_CELLS = 100  # photographs of solar cells of either class
_PART = 10_000  # images a call that makes them


def main() -> None:
    """Makes, packs, reads and draws."""
    flags = argparse.ArgumentParser(usage=__doc__)
    flags.add_argument("folder", type=Path, help="where the drawing goes")
    flags.add_argument("--count", type=int, default=100_000, help="how many images [100,000]")
    flags.add_argument("--work", type=Path, help="where the images go [a temporary folder]")
    given = flags.parse_args()
    with tempfile.TemporaryDirectory(dir=given.work) as work:
        images, packed = Path(work) / "images", Path(work) / "packed"
        begun = time.monotonic()
        make(images, given.count)
        size = sum(path.stat().st_size for path in images.rglob("*.jpg"))
        print(f"made {given.count:,} JPEGs, {size / 1e9:.1f} GB, {time.monotonic() - begun:.0f} s")
        for again in ("", " again"):
            begun = time.monotonic()
            command = ["jaxtl.pack", images, packed, "--size", str(_SIDE)]
            subprocess.run([sys.executable, "-m", *command], check=True)
            print(f"packed{again} in {time.monotonic() - begun:.0f} s", flush=True)
        sources = {"folder": str(images), "packed": f"tfds:{packed}"}
        found = {name: _read_apart(spec) for name, spec in sources.items()}
    for name, read in found.items():
        print(f"{name}: opened in {read['opened']:.0f} s; {_speeds(read)}")
    _draw(given.folder / "stream.svg", found, given.count)


def make(folder: Path, count: int) -> None:
    """Writes so many JPEGs into class folders, the same ones every time."""
    building, flower = (Image.fromarray(pixels) for pixels in load_sample_images().images)
    photographs = {"building": [_enlarged(building)], "flower": [_enlarged(flower)]}
    for kind in ("defective", "functional"):
        paths = sorted((PHOTOGRAPHS / "train" / kind).iterdir())[:_CELLS]
        photographs[kind] = [_enlarged(Image.open(path)) for path in paths]
    names = list(photographs)
    for name in names:
        (folder / name).mkdir(parents=True)

    def write(number: int) -> None:
        name = names[number % len(names)]
        known = photographs[name]
        image = _changed(known[number // len(names) % len(known)], np.random.default_rng(number))
        image.save(folder / name / f"{number:06}.jpg", quality=90)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for first in range(0, count, _PART):
            list(threads.map(write, range(first, min(first + _PART, count))))


def _enlarged(photograph: Image.Image) -> Image.Image:
    factor = _LARGEST / min(photograph.size)
    return photograph.resize([round(factor * length) for length in photograph.size])


def _changed(photograph: Image.Image, random: np.random.Generator) -> Image.Image:
    """A part of it, mirrored or not, lighter or darker."""
    size = random.integers(_SMALLEST, _LARGEST + 1, 2)
    left, top = (int(random.integers(0, free + 1)) for free in photograph.size - size)
    image = photograph.crop((left, top, left + int(size[0]), top + int(size[1])))
    image = ImageOps.mirror(image) if random.random() < 0.5 else image
    lightness = random.uniform(0.6, 1.4)
    table = [min(255, round(lightness * value)) for value in range(256)]
    return image.point(table * len(image.getbands())).convert("RGB")


def _read_apart(spec: str) -> dict:
    """Reads in a process with the environment that jaxtl's commands give themselves."""
    program = "from stream import read; from jaxtl import cli; cli.use_large_pages(); read()"
    path = f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, "-c", program, spec],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


def read() -> None:
    """Reads all epochs of the source that the command line names, and prints what was measured."""
    from jaxtl.data.loader import Loader
    from jaxtl.data.sources import open_all

    begun = time.monotonic()
    source = open_all(sys.argv[1])
    if not source.fingerprint:
        raise AssertionError
    opened = time.monotonic() - begun
    loader = Loader(
        source,
        image_size=_SIDE,
        resize="stretch",
        batch_size=_BATCH,
        seed=0,
        shuffle=True,
        memory_bytes=0,
    )
    speeds, samples, orders = [], [], set()
    for epoch in range(_EPOCHS):
        seen, order = np.zeros(len(source), int), []
        begun, cpu = time.monotonic(), time.process_time()
        for batch in loader.epoch(epoch):
            indices = batch.indices[batch.valid]
            np.add.at(seen, indices, 1)
            order.append(indices)
            samples.append((epoch * len(source) + int(seen.sum()), _resident_mb()))
        wall, cpu = time.monotonic() - begun, time.process_time() - cpu
        if not (seen == 1).all():
            raise AssertionError(f"epoch {epoch}: an image did not come exactly once")
        orders.add(np.concatenate(order).tobytes())
        speeds.append((len(source) / wall, len(source) / cpu))
    if len(orders) != _EPOCHS:
        raise AssertionError("two epochs have the same order")
    print(json.dumps({"opened": opened, "speeds": speeds, "samples": samples}))


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _speeds(read: dict) -> str:
    wall, cpu = (np.median(values) for values in zip(*read["speeds"], strict=True))
    memory = [mb for _, mb in read["samples"]]
    later = memory[len(memory) // _EPOCHS :]
    return (
        f"{wall:,.0f} images/s, {cpu:,.0f} images/s of CPU time; memory in the second and third "
        f"epoch {min(later):.0f} to {max(later):.0f} MB"
    )


def _draw(path: Path, found: dict[str, dict], count: int) -> None:
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    highest = 0.0
    for (name, read), colour in zip(found.items(), ("#c1666b", "#2a6f97"), strict=True):
        images, memory = np.array(read["samples"]).T
        wall = np.median([speed for speed, _ in read["speeds"]])
        axes.plot(images, memory, color=colour, label=f"{name}, {wall:,.0f} images/s")
        highest = max(highest, memory.max())
    for epoch in range(1, _EPOCHS):
        axes.axvline(epoch * count, color="#cccccc", linewidth=0.8)
    axes.set(xlabel="images read", ylabel="resident memory (MB)", ylim=(0, 1.25 * highest))
    axes.set_title(f"{_EPOCHS} epochs of {count:,} JPEGs, streamed", loc="left")
    axes.legend(frameon=False, loc="lower right")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
