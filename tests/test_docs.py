"""What README and docs name is there: links, files, modules, flags, keys and excerpts."""

from __future__ import annotations

import importlib
import pkgutil
import re
import runpy
import textwrap
from pathlib import Path

import pytest

from jaxtl.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
}
FOLDERS = ("jaxtl", "configs", "docs", "scripts", "tests", ".ci")
FILES = [
    path.relative_to(ROOT).as_posix()
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*")
    if path.is_file()
]

every_page = pytest.mark.parametrize("page", sorted(PAGES))


def anchors(text: str) -> set[str]:
    """Where GitHub lets a link point to inside a page."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@every_page
def test_relative_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL))
    for link in links:
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


@every_page
def test_named_files_exist(page):
    """By the end of their path; `my_network.py`, `NAME.py` and `best.py` are the reader's."""
    named = re.findall(r"(?<![\w/.:-])((?:[\w.-]+/)*[\w-]+\.py)\b", PAGES[page])
    named += re.findall(rf"(?<![\w/.:-])((?:{'|'.join(FOLDERS[1:])})/[\w./-]+\.\w+)", PAGES[page])
    missing = {name for name in named if not any(f"/{file}".endswith(f"/{name}") for file in FILES)}
    assert {name for name in missing if not re.search("my_network|NAME|best.py", name)} == set()


@every_page
def test_named_modules_and_functions_exist(page):
    for name in set(re.findall(r"\bjaxtl(?:\.[A-Za-z_]\w*)+", PAGES[page])):
        pkgutil.resolve_name(name)


def test_what_is_named_for_a_feature_is_in_the_files_that_are_named_beside_it():
    rows = [line for line in PAGES["docs/extending.md"].splitlines() if line.startswith("| a")]
    assert len(rows) >= 7
    for row in rows:
        files = [ROOT / "jaxtl" / name for name in re.findall(r"`([\w/]+\.py)`", row)]
        text = "".join(file.read_text() for file in files if file.exists())
        names = re.findall(r"`([A-Za-z_]\w+)`", row.partition("; `tests/")[0])
        assert [name for name in names if name not in text] == [], row


def test_flags_of_commands_in_the_docs_are_theirs(capsys):
    helps = {}
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            importlib.import_module(f"jaxtl.{command}").main(["--help"])
        helps[command] = capsys.readouterr().out
    text = "\n".join(PAGES.values()).replace("\\\n", " ")
    used = re.findall(r"(?:python -m jaxtl\.|\bjaxtl )(\w+)\b(?= --)([^\n`#]*)", text)
    assert len(used) >= 10
    for command, arguments in used:
        for flag in re.findall(r"(?<!\S)--(?!cfg\.)[\w-]+", arguments):
            assert flag in helps[command], f"{command} {flag}"


def test_the_page_of_the_config_is_that_of_its_classes():
    written = runpy.run_path(str(ROOT / "scripts" / "write_config_page.py"))["page"]()
    assert PAGES["docs/config.md"] == written, "run python scripts/write_config_page.py"


def test_keys_in_the_docs_are_keys_of_a_config():
    known = re.findall(r"^\| `([\w.]+)` \|", PAGES["docs/config.md"], re.MULTILINE)
    flags = {flag for text in PAGES.values() for flag in re.findall(r"--cfg\.([a-z_.]+)", text)}
    assert len(flags) >= 8
    for flag in flags - {"a.b"}:
        assert re.sub(r"^phases\.\w+", "phases.NAME", flag) in known


def test_the_excerpt_in_the_readme_is_that_config():
    (excerpt,) = re.findall(r"```python\n(phases = .*?)```", PAGES["README.md"], re.DOTALL)
    phases = excerpt.partition("(")[2].rpartition(")")[0]
    config = textwrap.dedent((ROOT / "configs" / "mnv2.py").read_text().partition("phases=(")[2])
    assert " ".join(phases.split()) in " ".join(config.split())
