"""Checkpoints: weights as safetensors, the rest as one file of tensors; complete or absent."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rlpref.logging.folder import read_json, write_json

KEPT = 2  # an older one stays as a fallback


def save(folder: Path, step: int, modules: dict[str, nn.Module], state: dict) -> Path:
    """Writes `step-<n>`: one safetensors file per module, state.pt, and a manifest of hashes; prunes old ones.

    Everything goes to a temporary folder first, which is then renamed: a killed run leaves no half checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".tmp-*"):
        shutil.rmtree(stale)
    target, temporary = folder / f"step-{step:08d}", folder / f".tmp-{step}-{os.getpid()}"
    temporary.mkdir()
    for name, module in modules.items():
        save_weights(module, temporary / f"{name}.safetensors")
    torch.save(state, temporary / "state.pt")
    write_json(temporary / "manifest.json", {file.name: _digest(file) for file in sorted(temporary.iterdir())})
    if target.exists():
        shutil.rmtree(target)
    os.rename(temporary, target)
    for old in _all(folder)[:-KEPT]:
        shutil.rmtree(old)
    return target


def latest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are what its manifest says, and what was wrong with newer ones."""
    complaints = []
    for path in reversed(_all(folder)):
        problem = _problem(path)
        if problem is None:
            return path, complaints
        complaints.append(f"{path.name}: {problem}")
    return None, complaints


def load(path: Path, modules: dict[str, nn.Module]) -> dict:
    """Fills the modules and returns the state; tensors only, nothing in the files is executed."""
    for name, module in modules.items():
        load_weights(module, path / f"{name}.safetensors")
    return torch.load(path / "state.pt", weights_only=True)


def save_weights(module: nn.Module, path: Path) -> None:
    """All weights, or under an adapter the trained ones only; tied ones once."""
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in _own(module).items()}, path)


def load_weights(module: nn.Module, path: Path) -> None:
    """Raises ValueError where the file does not fit the module."""
    stored, own = load_file(path), _own(module)
    if stored.keys() != own.keys():
        missing, unknown = sorted(own.keys() - stored.keys()), sorted(stored.keys() - own.keys())
        raise ValueError(f"{path} does not fit this model: it lacks {missing[:3]} and has {unknown[:3]} besides")
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.shape != stored[name].shape:
                raise ValueError(f"{path}: {name} is {tuple(stored[name].shape)}, the model's {tuple(tensor.shape)}")
            tensor.copy_(stored[name])


def _own(module: nn.Module) -> dict[str, torch.Tensor]:
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return trained or dict(module.named_parameters())


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _problem(path: Path) -> str | None:
    try:
        manifest = read_json(path / "manifest.json")
    except (OSError, ValueError) as error:
        return f"no readable manifest ({error})"
    for name, digest in manifest.items():
        if not (path / name).exists():
            return f"{name} is missing"
        if _digest(path / name) != digest:
            return f"{name} is damaged"
    return None


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
