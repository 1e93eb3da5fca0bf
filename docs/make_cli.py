"""Write docs/cli.md from the commands' --help."""

from pathlib import Path

from typer.testing import CliRunner

from ptune.cli import app

COMMANDS = (
    "train",
    "tune",
    "eval",
    "predict",
    "preview",
    "score",
    "chat",
    "serve",
    "merge",
    "export",
    "estimate",
    "doctor",
)
FILE = Path(__file__).with_name("cli.md")
WIDE = {"COLUMNS": "100", "TERMINAL_WIDTH": "100"}


def page() -> str:
    """The whole page, as --help prints it."""
    parts = [
        "# Commands",
        "",
        "Made by `make docs` from `--help`; a test holds it up to date. Every option of `ptune "
        "train` can",
        "stand in the YAML file of `--config`, with `_` or `-` in its name.",
    ]
    for command in ((), *((name,) for name in COMMANDS)):
        result = CliRunner().invoke(
            app, [*command, "--help"], env=WIDE, prog_name="ptune", terminal_width=100
        )
        title = " ".join(("ptune", *command))
        parts += ["", f"## {title}", "", "```text", result.stdout.strip(), "```"]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")
