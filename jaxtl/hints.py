"""What a command advises once."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from pathlib import Path

_LARGE_PAGES = "GLIBC_TUNABLES=glibc.malloc.hugetlb=1"
_OTHER_ALLOCATORS = ("tcmalloc", "jemalloc", "mimalloc")


def allocator_hint(environment: Mapping[str, str], maps: Path) -> str | None:
    """Advice for a CPU where large arrays come from glibc in pages of 4 KiB.

    Training a whole network is then bound by page faults
    (docs/decisions/0009-speed-of-a-training-step-on-a-cpu.md).

    Args:
        environment: of this process, as it was when it started.
        maps: where the kernel says what the process has loaded, `/proc/self/maps`.

    Returns:
        One line; None where there is nothing to advise.
    """
    if platform.libc_ver()[0] != "glibc" or not maps.exists():
        return None
    if re.search(r"\bglibc\.malloc\.hugetlb=[12]\b", environment.get("GLIBC_TUNABLES", "")):
        return None
    if any(name in maps.read_text(errors="replace") for name in _OTHER_ALLOCATORS):
        return None
    return f"hint: {_LARGE_PAGES} before the command makes training on a CPU faster"
