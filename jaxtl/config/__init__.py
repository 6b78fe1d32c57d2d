"""The config of a run: its schema, config files and flags."""

from jaxtl.config.config_file import Augment, Cache, Config, Data, Model, Phase
from jaxtl.config.phases import everything, from_stage, gradual, head_only

__all__ = [
    "Augment",
    "Cache",
    "Config",
    "Data",
    "Model",
    "Phase",
    "everything",
    "from_stage",
    "gradual",
    "head_only",
]
