"""`python -m ptune`, and so `torchrun ... -m ptune train ...`."""

from ptune.cli import app

app(prog_name="ptune")
