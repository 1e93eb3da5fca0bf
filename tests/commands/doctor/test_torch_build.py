"""Which torch build runs on which card, and the command that brings it."""

import pytest

from ptune.commands.doctor.torch_build import find_build, how_to_install, runs_on


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((6, 1), ["sm_60"], True),
        ((6, 0), ["sm_61"], False),
        ((8, 9), ["sm_80", "sm_86"], True),
        ((9, 0), ["sm_80", "sm_86"], False),
        ((9, 0), ["sm_80", "compute_80"], True),
        ((7, 5), ["compute_80"], False),
        ((12, 0), ["sm_120"], True),
        ((10, 3), ["sm_120", "sm_100"], True),
        ((8, 7), ["sm_80"], False),  # Jetson Orin
        ((8, 7), ["sm_87"], True),
        ((8, 9), ["sm_87"], False),
        ((9, 0), ["sm_90a"], True),
        ((10, 3), ["sm_100a"], False),
        ((10, 3), ["sm_100f"], True),
        ((6, 0), ["gfx906"], False),
        ((6, 0), [], False),
    ],
)
def test_which_code_runs_where(capability, architectures, runs):
    assert runs_on(capability, architectures) is runs


@pytest.mark.parametrize(
    ("capabilities", "driver", "python", "requirement"),
    [
        ([(6, 0)], 580, (3, 12), "torch==2.7.1"),
        ([(6, 1)], 535, (3, 13), "torch==2.7.1"),
        ([(5, 2)], None, None, "torch==2.7.1"),
        ([(7, 0)], 580, (3, 14), "torch==2.10.0"),
        ([(7, 5)], 580, (3, 10), "torch>=2.11"),
        ([(7, 5)], 550, (3, 10), "torch==2.10.0"),
        ([(12, 0)], 570, None, "torch==2.10.0"),
        ([(12, 0)], 580, None, "torch>=2.11"),
        ([(7, 0), (6, 0)], 580, None, "torch==2.7.1"),
        ([(7, 0), (12, 0)], 580, None, "torch==2.10.0"),
        ([], None, None, "torch>=2.11"),
        ([], 560, None, "torch==2.10.0"),
    ],
)
def test_newest_that_runs(capabilities, driver, python, requirement):
    assert find_build(capabilities, driver, python).requirement == requirement


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([(6, 0)], 580, (3, 11), "2.11.0"), 'pip install "torch==2.7.1"'),
        # pip takes 2.7.1+cpu for the wanted 2.7.1 and would leave it as it is.
        (
            ([(6, 0)], 580, (3, 11), "2.7.1+cpu"),
            'pip uninstall -y torch && pip install "torch==2.7.1"',
        ),
        (
            ([(9, 0)], 580, (3, 11), "2.13.0+cpu"),
            'pip uninstall -y torch && pip install "torch>=2.11"',
        ),
        (([(9, 0)], 580, (3, 11), "2.7.1"), 'pip install "torch>=2.11"'),
        (
            ([(6, 0)], 580, (3, 14), None),
            'make an environment with Python 3.13, then pip install "torch==2.7.1"',
        ),
        (
            ([(6, 0)], 470, (3, 11), None),
            "install NVIDIA driver R525 or newer (R580 is the last for this card), "
            "then ptune doctor",
        ),
        (([(8, 7)], 580, (3, 11), None), "install NVIDIA's own torch for Jetson boards"),
        (([(3, 7)], 470, (3, 11), None), "use another card, or --device cpu"),
        (
            ([(6, 0), (12, 0)], 580, (3, 11), None),
            "no torch build has code for all cards of this machine; show it those of one "
            "kind, e.g. CUDA_VISIBLE_DEVICES=0",
        ),
        (
            ([(6, 0)], 580, (3, 11), None, True),
            "take torch 2.7.1 for CUDA 12.6 with the command that the selector on PyTorch's "
            "installation page shows for Windows",
        ),
    ],
)
def test_how_to_install(arguments, text):
    assert how_to_install(*arguments) == text
