"""All checks of `ptune doctor`: machine, torch, cards, dequantization backends, packages, a model.

Facts are gathered apart from the checks of them, so that a test can describe a machine.
"""

from __future__ import annotations

from pathlib import Path

from ptune import __version__
from ptune.commands.doctor.cards import Machine, judge_cards, judge_driver, judge_torch
from ptune.commands.doctor.check import Check, Status, overall
from ptune.commands.doctor.dequantizing import examine_dequantizing
from ptune.commands.doctor.driver import read_driver
from ptune.commands.doctor.host import free_disk, hub_cache, judge_cache, judge_disk, judge_memory
from ptune.commands.doctor.packages import judge_packages, judge_python, read_packages
from ptune.commands.doctor.torch_probe import probe_torch
from ptune.config.settings import DoctorSettings
from ptune.device.host_memory import read_host_memory

__all__ = ["Check", "Status", "examine", "overall"]


def examine(settings: DoctorSettings) -> list[Check]:
    """Run all checks.

    Args:
        settings: `model` is a folder, a hub id or `tiny` to check, too.
    """
    packages = read_packages()
    machine = Machine(probe_torch(), read_driver(), packages.specifier("torch"))
    torch_checks = [*judge_torch(machine), judge_driver(machine), *judge_cards(machine)]
    memory = read_host_memory(), bool(machine.torch.cards)
    memory_check, to_download = judge_memory(*memory), None
    dequantizing, model_checks = [], []
    if machine.torch.version:
        dequantizing = examine_dequantizing(machine.torch.cards, machine.torch.cuda)
    if machine.torch.version and settings.model:
        try:
            from ptune.commands.doctor.model_folder import examine_model
        except ImportError as error:  # one of the packages that are judged below
            said = f"not looked at, since a package cannot be imported ({error})"
            mend = "mend the packages, or reinstall the one that is named"
            model_checks = [Check("model", "model", Status.FAILURE, said, mend)]
        else:
            model = examine_model(settings.model, settings.prompt_format)
            to_download, model_checks = model.to_download, model.checks
            if model.parameters:
                memory_check = judge_memory(*memory, model.parameters, settings.model)
    here, cache = Path.cwd(), hub_cache()
    return [
        Check("machine", "ptune", Status.OK, __version__),
        judge_python(packages),
        memory_check,
        judge_disk(free_disk(here), here),
        judge_cache(free_disk(cache), cache, to_download),
        *torch_checks,
        *dequantizing,
        *judge_packages(packages),
        *model_checks,
    ]
