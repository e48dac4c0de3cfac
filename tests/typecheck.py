"""The run-time check of annotations under pytest: beartype, with whole numbers accepted for floats as Python itself does."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
