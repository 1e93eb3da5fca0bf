"""Write docs/original-flags.md from the table of the original's flags."""

import re
import textwrap
from pathlib import Path

from ptune.config.declaration import declared
from ptune.config.original_flags import COUNTERPARTS
from ptune.config.settings import TrainSettings

FILE = Path(__file__).with_name("original-flags.md")
# Flags of the original that `ptune train` has under the same name.
SAME = (
    *("history_column", "learning_rate", "logging_steps", "max_source_length"),
    *("max_steps", "max_target_length", "pre_seq_len", "prefix_projection", "prompt_column"),
    *("quantization_bit", "report_to", "response_column", "save_steps", "save_total_limit"),
    *("eval_steps", "gradient_checkpointing", "seed", "warmup_steps"),
)
TEXT = """\
# The original's flags

Made by `make docs` from `ptune/config/original_flags.py`; a test holds it up to date. A flag of the
original scripts that has another name here, or none, is answered with this table, in YAML too:

```text
$ ptune train --train_file train.json
error: --train_file is the original's; use --data FILE
```

{same}

| original | `ptune train` | `ptune eval` | `ptune chat` | else |
|---|---|---|---|---|
{rows}
"""


def page() -> str:
    """The whole page."""
    own = {field.name for field in declared(TrainSettings)}
    assert own.issuperset(SAME), set(SAME) - own
    same = ", ".join(f"`{name}`" for name in sorted(SAME))
    begin = f"`ptune train` has these under the same name, in which `_` is as good as `-`: {same}. "
    begin += "`ptune eval` and `ptune chat` have those of them that they need; `pre_seq_len` and "
    begin += "`prefix_projection` are read from the checkpoint there."
    rows = [
        "| " + " | ".join([f"`{name}`", *map(_cell, (c.train, c.eval, c.chat)), c.note]) + " |"
        for name, c in sorted(COUNTERPARTS.items())
    ]
    return TEXT.format(same=textwrap.fill(begin, 100), rows="\n".join(rows))


def _cell(text: str) -> str:
    """Flags with their values as code, what is between them as words."""
    return re.sub(r"--[a-z-]+( ([A-Z_]+|b?float16|cpu)\b)?", r"`\g<0>`", text)


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")
