"""Fuzzes one reader with atheris, which is installed for this alone: `pip install atheris`.

    python tests/fuzz/fuzz_readers.py TARGET [-max_total_time=600 ...]

TARGET is image, h5, weights.h5, keras, safetensors, pth (where torch is installed), config.json,
run.json, metrics.jsonl, initial.json, group.json, or checkpoint: the JSON of one. The other flags
are libFuzzer's. It begins with valid files, and ends at the first input for which a reader raises
anything but `UserError`, or takes more than 2 GB.
"""

import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent))

with atheris.instrument_imports(include=["jaxtl", "PIL", "h5py", "zipfile", "json", "pickletools"]):
    import readers


def main() -> None:
    """Reads the flags and fuzzes until time or an error ends it."""
    name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    known = readers.targets()
    if name == "pth":
        known["pth"] = readers.read_weights("pth"), [readers.weights("pth")]
    if name not in known:
        sys.exit(f"which reader? {', '.join([*known, 'pth'])}")
    reader, files = known[name]
    corpus = Path(tempfile.mkdtemp(prefix=f"corpus-{name}-"))
    for number, data in enumerate(files):
        assert readers.refuses_or_reads(reader, data), name
        (corpus / str(number)).write_bytes(data)
    longest = 2 * max(map(len, files))
    limits = [f"-max_len={longest}", "-rss_limit_mb=2048", "-timeout=20"]
    atheris.Setup(
        [sys.argv[0], str(corpus), *limits, *sys.argv[1:]],
        lambda data: readers.refuses_or_reads(reader, data),
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
