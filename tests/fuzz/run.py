"""Inputs that atheris makes by following branches: `make fuzz`, or `python tests/fuzz/run.py NAME`.

Ends at the first input that gives anything but an error of ptune's, and writes it to a file.
"""

import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
with atheris.instrument_imports(include=["ptune"]):
    from fuzz.targets import Targets


def main():
    name, runs = sys.argv[1], sys.argv[2]
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    targets = Targets(folder / "work")
    (folder / "work").mkdir()
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(targets.seeds[name]):
        (corpus / str(number)).write_bytes(seed)
    flags = [f"-atheris_runs={runs}", "-max_len=4096", "-rss_limit_mb=4096", "-timeout=60"]
    arguments = [sys.argv[0], *flags, f"-artifact_prefix={folder}/", "-verbosity=0", str(corpus)]
    atheris.Setup(arguments, lambda data: targets.run(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
