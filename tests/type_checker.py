"""What checks annotations at run time: beartype, with whole numbers where floats are asked for."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # PEP 484: an int is a float too
