"""The config of a run: its schema, config files and flags, and what a config file imports."""

from jaxtl.config.augment import Augment
from jaxtl.config.config_file import REQUIRED, Cache, Checkpoint, Config, Data, Model
from jaxtl.config.counts import Counts
from jaxtl.config.phases import Phase, everything, from_stage, gradual, head_only
from jaxtl.config.recipes import fine_tuning, recipe

__all__ = [
    "REQUIRED",
    "Augment",
    "Cache",
    "Checkpoint",
    "Config",
    "Counts",
    "Data",
    "Model",
    "Phase",
    "everything",
    "fine_tuning",
    "from_stage",
    "gradual",
    "head_only",
    "recipe",
]
