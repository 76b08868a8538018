"""What the doctor sees of a machine: packages, devices, data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch

from gradward import __version__
from gradward.data import (
    PARTS,
    SPLITS,
    DataError,
    data_root,
    dataset_names,
    dataset_spec,
    load_public_set,
    load_split,
)
from gradward.flare.doctor.findings import ATTENTION, OK, PROBLEM, Finding
from gradward.flare.kit_setup import component_arguments
from gradward.flare.policies import SiteSettingsError
from gradward.flare.site import choose_audit_devices, choose_device

TESTED_NVFLARE = "2.9.0"
# Reading at any size shows whether files can be read.
_TRIAL: dict[str, Any] = {"image_size": (32, 32), "channels": 3}


def packages() -> Finding:
    """Whether the package is installed, beside an NVFlare that it is tested with."""
    version = metadata.version("nvflare")
    text = f"gradward {__version__}, NVFlare {version}"
    if version.split(".")[:2] != TESTED_NVFLARE.split(".")[:2]:
        remedy = f"pip install nvflare=={TESTED_NVFLARE}"
        return Finding(PROBLEM, "packages", f"{text}; tested with {TESTED_NVFLARE}", remedy)
    try:
        metadata.version("gradward")
    except metadata.PackageNotFoundError:
        remedy = "install it for the python3 that the site starts, or every job must bring the code"
        return Finding(ATTENTION, "packages", f"{text}; gradward is not installed", remedy)
    return Finding(OK, "packages", text)


def devices(settings: Mapping[str, Any], resources: Mapping[str, Any]) -> Finding:
    """Whether the device is there, and as many GPUs as the party offers to jobs.

    Args:
        settings: ``local/gradward.json`` of the party.
        resources: its ``local/resources.json``.
    """
    visible, offered = torch.cuda.device_count(), _gpus_offered(resources)
    chosen = os.environ.get("GRADWARD_DEVICE") or settings.get("device")
    try:
        device = choose_device(chosen)
    except SiteSettingsError as error:
        return Finding(PROBLEM, "device", str(error), "correct 'device' in local/gradward.json")
    if offered > visible:
        return Finding(
            PROBLEM,
            "device",
            f"{offered} GPUs are offered to jobs, {visible} are there",
            "correct num_of_gpus of the resource_manager in local/resources.json",
        )
    if visible and not offered and device == "cpu":
        return Finding(
            ATTENTION,
            "device",
            f"computes on the CPU although {visible} GPUs are there",
            "set num_of_gpus of the resource_manager in local/resources.json, or 'device' in "
            "local/gradward.json",
        )
    where = "a GPU where a job asks for one" if chosen is None and offered else device
    return Finding(OK, "device", f"{where}; {visible} GPUs are there, {offered} offered to jobs")


def audit_devices(settings: Mapping[str, Any]) -> list[Finding]:
    """Whether the devices of the attack workers are there, where the party names any.

    Args:
        settings: ``local/gradward.json`` of the party.
    """
    if "audit_devices" not in settings:
        return []
    try:
        named = choose_audit_devices(settings["audit_devices"])
    except SiteSettingsError as error:
        remedy = "no job can run before 'audit_devices' in local/gradward.json is corrected"
        return [Finding(PROBLEM, "audit devices", str(error), remedy)]
    return [Finding(OK, "audit devices", f"attack workers compute on {', '.join(named)}")]


def data_sets(described: Mapping[str, Any], name: str, role: str) -> list[Finding]:
    """Whether every data set that a party describes can be read; with the number of images.

    Args:
        described: data specifications by name, the party's own.
        name: of the party.
        role: ``"site"`` reads its own images and declared public ones, ``"server"`` the latter.
    """
    if described:
        return [_data_set(data_set, described, name, role) for data_set in sorted(described)]
    remedy = "describe the party's own under 'data' in local/gradward.json"
    try:
        root = data_root()
    except DataError as error:
        return [Finding(PROBLEM, "data", str(error), remedy)]
    built_in = "histology" if root is None else ", ".join(dataset_names())
    return [Finding(ATTENTION, "data", f"only the built-in sets are known: {built_in}", remedy)]


def _data_set(data_set: str, described: Mapping[str, Any], name: str, role: str) -> Finding:
    topic, counts = f"data {data_set}", []
    try:
        spec = dataset_spec(data_set, described)
        if role == "site":
            for split in SPLITS:
                counts.append(f"{len(load_split(spec, split, site=name, **_TRIAL))} {split}")
        if "public" in spec:
            public = load_public_set(spec, name=data_set, **_TRIAL)
            counts.append(f"{sum(len(public.part(part)) for part in PARTS)} public")
    except DataError as error:
        remedy = f"correct 'data.{data_set}' in local/gradward.json"
        return Finding(PROBLEM, topic, str(error), remedy)
    except Exception as error:
        # Its message may hold what has no place on a screen.
        remedy = f"try `gradward data {data_set} --site-settings local/gradward.json`"
        return Finding(PROBLEM, topic, f"cannot be read ({type(error).__name__})", remedy)
    return Finding(OK, topic, f"images: {', '.join(counts) or 'none that this party reads'}")


def _gpus_offered(resources: Mapping[str, Any]) -> int:
    number = (component_arguments(resources, "resource_manager") or {}).get("num_of_gpus", 0)
    return number if isinstance(number, int) else 0
