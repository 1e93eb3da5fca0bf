"""Python and packages that fit, and that do not."""

import platform
from dataclasses import replace
from importlib import metadata

import pytest

from ptune.commands.doctor.check import Status
from ptune.commands.doctor.packages import PackageFacts, judge_packages, judge_python, read_packages

FACTS = PackageFacts(
    "3.11.7",
    ">=3.10",
    (
        "torch>=2.7",
        "transformers<6,>=5.15",
        "jieba",
        "cpm_kernels>=1.0.11",
        'nothing-here; python_version < "3"',
        'bitsandbytes>=0.45; extra == "nf4"',
        'pytest>=8; extra == "dev"',
    ),
    {"torch": "1.0", "transformers": "5.20.1", "jieba": "0.42", "cpm_kernels": "1.0.11"},
    ("nf4",),
)


def judge(facts):
    checks = judge_packages(facts)
    for check in checks:
        assert bool(check.mend) == (check.status is not Status.OK)
    return {check.name: check for check in checks}


def without(name):
    installed = {key: value for key, value in FACTS.installed.items() if key != name}
    return replace(FACTS, installed=installed)


def with_(**versions):
    return replace(FACTS, installed={**FACTS.installed, **versions})


def test_of_this_machine():
    facts = read_packages()
    assert facts.python == platform.python_version()
    assert facts.installed["torch"] == metadata.version("torch")
    assert facts.specifier("torch").startswith(">=")
    assert "dev" not in facts.extras
    assert judge_python(facts).status is Status.OK


def test_all_fit():
    checks = judge(FACTS)
    assert list(checks) == ["as asked for"]
    assert checks["as asked for"].message == "transformers 5.20.1, jieba 0.42, cpm_kernels 1.0.11"


@pytest.mark.parametrize("version", ["5.14.0", "4.57.1", "6.0.0"])
def test_other_version(version):
    check = judge(with_(transformers=version))["transformers"]
    assert check.status is Status.FAILURE
    assert check.message == f"{version} is installed; ptune asks for <6,>=5.15"
    assert check.mend == 'pip install "transformers<6,>=5.15"'


def test_versions_of_one_build_or_before_a_release_fit():
    assert list(judge(with_(transformers="5.16.0rc1", jieba="0.42+local"))) == ["as asked for"]


def test_missing():
    check = judge(without("jieba"))["jieba"]
    assert check.status is Status.FAILURE
    assert check.message == "not installed; ptune asks for it"
    assert check.mend == 'pip install "jieba"'


def test_cpm_kernels_is_optional():
    check = judge(without("cpm_kernels"))["cpm_kernels"]
    assert check.status is Status.OK
    assert check.message == "not installed; it is only for --quantization-backend cpm"


def test_cpm_kernels_beside_new_setuptools():
    check = judge(replace(FACTS, has_pkg_resources=False))["cpm_kernels"]
    assert check.status is Status.OK
    assert "cannot be imported beside setuptools 82 or newer" in check.message


def test_extra_that_is_installed():
    assert "bitsandbytes 0.50" in judge(with_(bitsandbytes="0.50"))["as asked for"].message
    check = judge(with_(bitsandbytes="0.40"))["bitsandbytes"]
    assert check.status is Status.WARNING
    assert check.message == "0.40 is installed; ptune[nf4] asks for >=0.45"
    assert check.mend == 'pip install "bitsandbytes>=0.45"'


def test_ptune_is_not_installed(monkeypatch):
    def fail(name):
        raise metadata.PackageNotFoundError(name)

    for name in ("metadata", "requires"):
        monkeypatch.setattr(metadata, name, fail)
    facts = read_packages()
    assert facts.requirements is None
    check = judge(facts)["ptune"]
    assert check.status is Status.WARNING
    assert "ptune is not installed" in check.message
    assert judge_python(facts).status is Status.OK


def test_old_python():
    check = judge_python(replace(FACTS, python="3.9.2"))
    assert check.status is Status.FAILURE
    assert "3.9.2" in check.message
    assert "ptune asks for >=3.10" in check.message
    assert check.mend == "make an environment with a newer Python"
