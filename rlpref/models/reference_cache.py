"""Log-probs of a fixed reference on fixed data, computed once and kept on disk for every run that asks for the same.

A file is named by the sha256 of all that decides its values, so a run reads the very bits that it would have computed.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rlpref.models.adapters import has_adapter
from rlpref.types import Sequences

KERNELS = ("model name", "flags", "Features")  # lines of /proc/cpuinfo


@dataclass
class ReferenceCache:
    """The files of one reference; several processes may share the folder."""

    folder: Path
    decides: dict[str, Any]  # what its log-probs follow but for the rows: `what_decides` and the settings of the run
    asked: list[dict] = field(default_factory=list)  # what a run was given, and whether it was read: for its card

    def logps(self, sequences: Sequences, compute: Callable[[Sequences], Tensor]) -> Tensor:
        """[B, T] what `compute` gives for these rows: read, or else computed and kept. Of several processes that ask
        at once one computes, the others wait. A damaged file is made again, with a warning."""
        decides = self.decides | {"rows": rows_hash(sequences), "threads": torch.get_num_threads()}
        key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
        path = self.folder / f"{key}.safetensors"
        with _alone(path.with_suffix(".lock")):
            values = _read(path, int(sequences.mask.sum()))
            self.asked.append({"key": key, "rows": len(sequences), "read": values is not None})
            if values is None:
                found = compute(sequences)
                _write(path, found[sequences.mask], decides)
                return found
        found = torch.zeros(sequences.mask.shape, dtype=values.dtype, device=sequences.mask.device)
        return found.masked_scatter_(sequences.mask, values.to(found.device))


def what_decides(model: nn.Module) -> dict[str, Any]:
    """What the log-probs of `model` follow besides its weights, rows and the settings of the run.

    Versions, the processor and (`ReferenceCache.logps`) the number of threads change a log-prob by rounding alone. They
    count all the same: else the numbers of a run would depend on which other run was there first, and none could be
    repeated bit for bit. So does the code that computes them: a mended error must not live on in a file.
    """
    base = model.get_base_model() if has_adapter(model) else model
    config = {key: value for key, value in base.config.to_dict().items() if not key.startswith("_")}
    device = next(base.parameters()).device.type
    return {
        "architecture": type(base).__name__,
        "config": json.loads(json.dumps(config, default=str)),
        "dtype": str(base.dtype),
        "attention": base.config._attn_implementation,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else [device, platform.machine(), *_processor()],
        "matmul": torch.get_float32_matmul_precision(),
        "code": _code(),
    }


def rows_hash(sequences: Sequences) -> str:
    """sha256 of ids and masks, padding included."""
    digest = hashlib.sha256()
    for name, tensor in sequences.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()


@cache
def _processor() -> list[str]:
    """What chooses the kernels: torch's own level, and where it is told the processor's name and instructions."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return [torch.backends.cpu.get_cpu_capability(), *sorted({one for one in lines if one.startswith(KERNELS)})]


@cache
def _code() -> str:
    """sha256 of the files between a row and its log-probs: the rooms of models and tensor operations, and the types."""
    types = Path(inspect.getfile(Sequences))
    files = [types, *sorted((types.parent / "ops").glob("*.py")), *sorted((types.parent / "models").glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Held by one process at a time; given back by the operating system where that process is killed."""
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        print("waiting for another run that computes the same log-probs of the reference", file=sys.stderr)
        lock.acquire()
    except OSError as error:  # no file can be made there: `_write` will say that nothing is kept
        warnings.warn(f"no lock at {path} ({error}): other runs may compute the same", stacklevel=4)
    try:
        yield
    finally:
        lock.release()


def _read(path: Path, count: int) -> Tensor | None:
    """The values in that file, one for each completion token; None, with a warning, where it is not sound."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            values, stored = file.get_tensor("logps"), file.metadata()["sha256"]
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        problem = f"cannot be read ({error})"
    else:
        if len(values) == count and _checksum(values) == stored:
            return values
        problem = "is damaged"
    warnings.warn(f"{path} {problem}: the log-probs of the reference are computed again", stacklevel=3)
    return None


def _write(path: Path, values: Tensor, decides: dict) -> None:
    """The whole file under that name or none; whoever wonders what it is reads `decides` in its header."""
    values = values.detach().cpu().contiguous()
    temporary = path.with_name(f".{path.stem}-{os.getpid()}.tmp")
    try:
        save_file({"logps": values}, temporary, {"sha256": _checksum(values), "decides": json.dumps(decides)})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # a full or read-only disk costs the next run time, this one nothing
        warnings.warn(f"{path} cannot be written ({error}): the log-probs of the reference are not kept", stacklevel=3)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _checksum(values: Tensor) -> str:
    return hashlib.sha256(values.numpy()).hexdigest()
