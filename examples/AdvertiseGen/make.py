"""Makes train.json and dev.json beside this file: attribute lists with advertising copy.

Run ``python examples/AdvertiseGen/make.py``; the same seed gives the same files.  The form is that
of the ADGEN data set, the texts come from the grammar in `ptune.tiny.adverts`.
"""

import argparse
import json
import random
from pathlib import Path

from ptune.tiny.adverts import format_attributes, sample_attributes, write_copy

COPY_LENGTHS = range(40, 111)


def make_records(rng: random.Random, count: int) -> list[dict[str, str]]:
    """Draw records with attribute lists that are all different and copy of a fair length."""
    records: dict[str, str] = {}
    while len(records) < count:
        attributes = sample_attributes(rng)
        summary = write_copy(rng, attributes)
        if len(summary) in COPY_LENGTHS:
            records.setdefault(format_attributes(attributes), summary)
    return [{"content": content, "summary": summary} for content, summary in records.items()]


def write_records(file: Path, records: list[dict[str, str]]) -> None:
    """Write one JSON object per line."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    file.write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Write both files; no attribute list is in both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--train", type=int, default=2000, help="records of train.json")
    parser.add_argument("--dev", type=int, default=200, help="records of dev.json")
    parser.add_argument("--seed", type=int, default=2023)
    arguments = parser.parse_args()
    records = make_records(random.Random(arguments.seed), arguments.train + arguments.dev)
    write_records(arguments.output / "train.json", records[: arguments.train])
    write_records(arguments.output / "dev.json", records[arguments.train :])


if __name__ == "__main__":
    main()
