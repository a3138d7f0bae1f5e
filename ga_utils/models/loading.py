"""Reading checkpoints from a folder: all layers or only the first ones, and never with weights missing."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock

import numpy as np
import pandas as pd
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from ga_utils.models.catalog import MODELS, TINY
from ga_utils.models.gguf_files import wheel_file

LOADING = Lock()
INDEX = "model.safetensors.index.json"
MANIFEST = "SHA256SUMS"  # beside the folders of the models that ship, in the format of `sha256sum -c`
PER_LAYER = (
    "layer_types",
    "layers_block_type",
    "mlp_layer_types",
)  # configuration lists, an item for each layer


def data_dir() -> Path:
    """The folder `data/`: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).parents[1]
    inside = package / "data"
    return inside if inside.is_dir() else package.parent / "data"


def runs(name: str) -> pd.DataFrame:
    """What a grid of trainings measured, from `data/runs/NAME.csv`; data/README.md says how each was made.

    In tables of answers, columns of tasks hold for each run a bool array [n], question by question.

    Raises:
        ValueError: there is no such table (lists those there are).
    """
    file = data_dir() / "runs" / f"{name}.csv"
    if not file.is_file():
        known = sorted(other.stem for other in file.parent.glob("*.csv"))
        raise ValueError(f"no table {name!r} in data/runs: there are {', '.join(known) or 'none'}")
    if not name.endswith("_answers"):
        return pd.read_csv(file)
    table = pd.read_csv(file, dtype=str)
    for column in table:
        answers = table[column].str.len().min() > 20  # "0110...", a digit a question
        table[column] = (
            [np.array(list(text)) == "1" for text in table[column]] if answers else table[column].astype(int)
        )
    return table


def size_of(local: Path) -> int:
    """Bytes of the weights, as they are stored."""
    files = [local] if local.is_file() else local.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)


def local_copy(name: str) -> Path | None:
    """The folder or GGUF file of a model that is on this machine; None for one that the hub has."""
    if name in TINY:
        check_sums(data_dir() / "models" / name)
        return data_dir() / "models" / name
    if name in MODELS:
        wheel = MODELS[name].wheel
        return wheel_file(wheel) if wheel else None
    if (Path(name) / "config.json").is_file() or (name.endswith(".gguf") and Path(name).is_file()):
        return Path(name)
    if name.endswith(".gguf"):
        raise ValueError(f"there is no file {name}")
    raise ValueError(
        f"unknown model {name!r}: known are {', '.join([*TINY, *MODELS])}, or a folder with a config.json, "
        "or a GGUF file"
    )


def read_model(
    folder: Path, dtype: torch.dtype, n_layers: int | None = None, device="cpu"
) -> PreTrainedModel:
    """A causal language model from safetensors files, or its first layers.

    Of a checkpoint in several files, only those that hold a needed weight are opened. Weights go to the
    device one by one, so the machine's memory never holds a second copy of the model.

    Raises:
        ValueError: `n_layers` is out of range, a file is damaged, or the files lack weights or have them in
            another shape (names the first). For a Llamba, whose code is ours, an unknown weight is an error
            as well; for other models it is a warning.
    """
    folder = folder.resolve()
    config = AutoConfig.from_pretrained(folder)
    whole = config.get_text_config().num_hidden_layers
    if n_layers is not None and not 1 <= n_layers <= whole:
        raise ValueError(f"n_layers={n_layers}: {folder.name} has {whole} layers, ask for 1 or more of them")
    if n_layers is not None:
        config = first_layers(config, n_layers)
    with quietly(), needed_files(folder, n_layers or whole) as source:
        for file in sorted(source.glob("*.safetensors")):
            check_header(file)
        model, found = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            device_map={"": device},
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    lacking = sorted(found["missing_keys"]) + sorted(str(key) for key in found["mismatched_keys"])
    if lacking:
        raise ValueError(
            f"{folder} lacks {len(lacking)} weights of a {type(model).__name__}, or has them in another "
            f"shape: {lacking[0]}"
        )
    unused = sorted(key for key in found["unexpected_keys"] if layer_of(key) < (n_layers or whole))
    if unused:
        message = f"{folder} has {len(unused)} weights that a {type(model).__name__} does not: {unused[0]}"
        if config.model_type == "llamba":
            raise ValueError(message)
        warnings.warn(message, stacklevel=2)  # Hugging Face ignores such leftovers
    model.name_or_path = model.config.name_or_path = str(folder)
    return model


@contextmanager
def quietly() -> Iterator[None]:
    """Without Hugging Face's list of the layers left out, which would fill a page; we check ourselves.

    One thread at a time: how much Hugging Face says, and much of how it loads, is a setting of the process.
    """
    with LOADING:
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)


def check_header(file: Path) -> None:
    """Refuse a file that is no safetensors file, or that is shorter than its header says.

    Raises:
        ValueError: names the file.
    """
    try:
        with safe_open(file, "pt"):
            pass
    except SafetensorError as error:
        raise ValueError(
            f"{file.resolve()} is damaged ({error}): delete it and fetch or copy it again"
        ) from None


def check_sums(folder: Path) -> None:
    """Compare a shipped model's files with their SHA-256 sums in `MANIFEST`, which lies beside its folder.

    Raises:
        ValueError: a file is missing or differs; names it, and the command that brings it back.
    """
    models = folder.parent.resolve()
    sums = (models / MANIFEST).read_text() if (models / MANIFEST).is_file() else ""
    listed = {line[66:]: line[:64] for line in sums.splitlines() if line[66:].startswith(f"{folder.name}/")}
    wrong, lost = [], folder.name
    if not listed:
        wrong, lost = [f"{models / MANIFEST} is missing, or lists no file of {folder.name}"], MANIFEST
    for name, expected in listed.items():
        if not (models / name).is_file():
            wrong.append(f"{models / name} is missing")
        elif (found := sha256(models / name)) != expected:
            wrong.append(f"{models / name} is damaged (its SHA-256 should be {expected} and is {found})")
    if wrong:
        raise ValueError(
            f'{"; ".join(wrong)}. Bring it back with  git -C "{models}" checkout -- {lost}  (a copy without '
            "git: download or install the course again; changed on purpose: load it by its folder's path)"
        )


def write_sums(folder: Path) -> None:
    """Write the sums of a model's files into `MANIFEST` beside its folder, in place of the old ones."""
    path = folder.with_name(MANIFEST)
    lines = [line for line in path.read_text().splitlines() if not line[66:].startswith(f"{folder.name}/")]
    lines += [f"{sha256(file)}  {folder.name}/{file.name}" for file in folder.iterdir()]
    path.write_text("".join(f"{line}\n" for line in sorted(lines, key=lambda line: line[66:])))


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def first_layers(config: PreTrainedConfig, n_layers: int) -> PreTrainedConfig:
    """The configuration of the same model with its first layers only; lists with an item a layer are cut.

    Raises:
        ValueError: a model whose layers depend on one another otherwise than in order.
    """
    text = config.get_text_config()
    if text is not config:  # Qwen3.5: the language model stands beside an image encoder
        cut = first_layers(text, n_layers)
        return type(config).from_dict(config.to_dict() | {"text_config": cut.to_dict()})
    values = {
        key: value[:n_layers] if key in PER_LAYER and value else value
        for key, value in config.to_dict().items()
    }
    number = type(config).attribute_map.get("num_hidden_layers", "num_hidden_layers")
    if number in values:  # NemotronH has none: its list of layer kinds gives the number
        values[number] = n_layers
    try:
        if getattr(config, "num_kv_shared_layers", 0) and n_layers < config.num_hidden_layers:
            raise ValueError("its last layers use keys and values of earlier ones")
        return type(config).from_dict(values)
    except (ValueError, StrictDataclassError) as error:
        raise ValueError(
            f"the first {n_layers} layers of a {config.model_type} can't be loaded alone ({error}): load all "
            "of it, and use ga.truncate"
        ) from error


def layer_of(weight: str) -> int:
    """The number of the layer that a weight belongs to, read off its name; -1 if it belongs to none, or to an
    encoder of images or sound beside the language model."""
    found = re.search(r"(?:^|\.)layers\.(\d+)\.", weight)
    return int(found[1]) if found and not re.search("vision|visual|audio", weight) else -1


@contextmanager
def needed_files(folder: Path, n_layers: int) -> Iterator[Path]:
    """A folder of links to the files of `folder`, without those that hold only later layers."""
    if not (folder / INDEX).is_file():
        yield folder
        return
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = {
        name: file for name, file in index["weight_map"].items() if layer_of(name) < n_layers
    }
    with TemporaryDirectory() as view:
        for file in sorted({*index["weight_map"].values()}):
            if not (folder / file).is_file():
                raise ValueError(f"{folder / file} is missing: {INDEX} names it")
            (Path(view) / file).symlink_to(folder / file)
        for file in folder.glob("*config.json"):
            (Path(view) / file.name).symlink_to(file)
        (Path(view) / INDEX).write_text(json.dumps(index))
        yield Path(view)
