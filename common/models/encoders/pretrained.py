"""A text encoder that was trained elsewhere and is read from a local directory.

The environment variable ``CONSILIUM_TEXT_ENCODER`` of the SuperNode or the ServerApp names the directory; no message can. It
holds, and nothing else is read, nothing fetched:

* ``model.safetensors``: the state of the architecture ``attention`` (:class:`common.models.encoders.text.AttentionText`);
* ``config.json``: ``{"buckets": 2048, "tokens": 128, "width": 64}``, what it was built with;
* ``SHA256SUMS``: the checksums of both, as ``sha256sum`` writes them.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from common.errors import ConsiliumError
from common.models.encoders.text import AttentionText
from common.models.registry import Encoder, encoder
from common.task import Modality

ENVIRONMENT = "CONSILIUM_TEXT_ENCODER"
WEIGHTS, SETTINGS, SUMS = "model.safetensors", "config.json", "SHA256SUMS"
WHAT = f"The pretrained text encoder of {ENVIRONMENT}"
KEYS = ("buckets", "tokens", "width")


@encoder("text", "pretrained")
class PretrainedText(Encoder):
    """A frozen encoder that neither travels nor learns, and a linear map that does.

    What travels is the fingerprint of its files: a place with another directory refuses.
    """

    def __init__(self, modality: Modality, width: int, dropout: float) -> None:
        """Args as in :func:`common.models.registry.build_encoder`.

        Raises:
            ConsiliumError: If the directory is absent, changed, or made for other texts.
        """
        super().__init__()
        self.features = width
        files = _verified_files()
        self.frozen = _network(files, modality)
        self.out = nn.Sequential(nn.Dropout(dropout), nn.Linear(self.frozen.features, width))
        digest = hashlib.sha256(files[SETTINGS] + files[WEIGHTS]).digest()
        numbers = [float(int.from_bytes(digest[at : at + 2], "big")) for at in range(0, len(digest), 2)]
        # Floats of 16 bits each, which a weighted mean keeps; a parameter, because those of a block travel, buffers do not.
        self.fingerprint = nn.Parameter(torch.tensor(numbers), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 2, L] -> [B, width]."""
        out: Tensor = self.out(self.frozen(x))
        return out

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        found = state_dict.get(f"{prefix}fingerprint")
        if found is not None and not torch.equal(found.to(self.fingerprint), self.fingerprint.data):
            raise ConsiliumError(
                f"{WHAT} is not the one that this run began with. Give every site and the server the same directory; {SUMS} "
                "tells them apart."
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


def _verified_files() -> dict[str, bytes]:
    """Returns the content of the weights and settings, as their checksums say."""
    place = os.environ.get(ENVIRONMENT)
    if not place:
        raise ConsiliumError(
            f"{WHAT} is needed, and the variable names none. Set it, where the SuperNode or the ServerApp starts, to the "
            f"directory with {WEIGHTS}, {SETTINGS} and {SUMS}, or choose another architecture than 'pretrained'."
        )
    try:
        lines = (Path(place) / SUMS).read_text(encoding="utf-8").splitlines()
        files = {name: (Path(place) / name).read_bytes() for name in (WEIGHTS, SETTINGS)}
    except (OSError, UnicodeDecodeError) as error:
        raise ConsiliumError(
            f"{WHAT} cannot be read ({type(error).__name__}): {WEIGHTS}, {SETTINGS} and {SUMS} are needed. Correct the variable, "
            "or copy the directory again."
        ) from None
    said = {name.lstrip("*"): digest for digest, _, name in (line.replace("  ", " ").partition(" ") for line in lines)}
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != said.get(name):
            raise ConsiliumError(
                f"{WHAT} was changed: {name} is not what {SUMS} says. Copy the directory again from where it comes from."
            )
    return files


def _network(files: dict[str, bytes], modality: Modality) -> AttentionText:
    """Returns the encoder in evaluation mode; its weights are buffers that are no part of the state."""
    try:
        settings = json.loads(files[SETTINGS])
        buckets, tokens, width = (int(settings[key]) for key in KEYS)
        network = AttentionText(Modality("text", buckets=buckets, tokens=tokens), width, 0.0)
        network.load_state_dict(load(files[WEIGHTS]))
    except Exception as error:  # the files are what their maker meant, and yet no such encoder
        raise ConsiliumError(
            f"{WHAT} is none ({type(error).__name__}): {SETTINGS} needs {', '.join(KEYS)}, and {WEIGHTS} the state of "
            "architecture 'attention' built with them. Make it anew."
        ) from None
    if buckets != modality.buckets or tokens < modality.tokens:
        raise ConsiliumError(
            f"{WHAT} reads {tokens} tokens in {buckets} buckets, the task has {modality.tokens} in {modality.buckets}. Set the "
            "task's 'tokens' and 'buckets' to them."
        )
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach(), persistent=False)
    return network
