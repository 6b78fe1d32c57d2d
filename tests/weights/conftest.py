"""Lets the tests here import what lies beside them: the reference models and the file server."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
