"""Holds loaders to silence: Python's warnings are errors, and so is what libraries log from warnings on."""

import logging
import sys
import warnings
from contextlib import contextmanager


class Complaints(logging.Handler):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(f"{record.name}: {record.getMessage()}")


@contextmanager
def silent(what):
    """Ends the script with what diffusers, PEFT and transformers complain of meanwhile, under the name of what is loaded."""
    complaints = Complaints()
    loggers = [logging.getLogger(name) for name in ("diffusers", "peft", "transformers")]
    for logger in loggers:
        logger.addHandler(complaints)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        for logger in loggers:
            logger.removeHandler(complaints)
    if complaints.lines:
        sys.exit(f"{what}: " + "\n".join(complaints.lines))
