"""What a module computes besides what its parameters say: saved with them, and compared where they are loaded."""

from __future__ import annotations

import json
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from contracting.errors import InputError


class WithSettings(nn.Module):
    """A module whose ``settings`` are an entry of its state dict: a JSON text, as the bytes of a tensor.

    The entry bears what people do to all entries alike: to average those of several models, or to cast them.
    Parameters that belong to other settings are refused before any of them is copied, also with ``strict=False``: they
    would give another map. A state dict without that entry is from an earlier version; it is loaded with a warning.
    """

    @property
    def settings(self) -> dict[str, Any]:
        """By name what else the map depends on: numbers, words, None, or lists of such."""
        return {}

    def get_extra_state(self) -> Tensor:
        """The settings as torch saves them."""
        return torch.tensor(list(json.dumps(self.settings).encode()))

    def set_extra_state(self, state: Any) -> None:
        """Refuse settings other than those of this module.

        Raises:
            InputError: naming what differs.
        """
        mine = json.loads(json.dumps(self.settings))
        try:
            found = dict(json.loads(bytes(map(round, state.tolist()))))
        except Exception as error:  # whatever stands there
            raise InputError(f"the settings in this state dict cannot be read ({type(error).__name__})") from None
        differ = [
            f"{name}={found.get(name)!r}, not {mine.get(name)!r}"
            for name in {**mine, **found}
            if found.get(name) != mine.get(name)
        ]
        if differ:
            raise InputError(
                f"this state dict is of a {type(self).__name__} with {', and '.join(differ)}: make one with the same "
                "settings, or remove the entry _extra_state to load the parameters into another map"
            )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: list[str], *others: Any
    ) -> None:
        key = f"{prefix}_extra_state"
        if key in state_dict:
            self.set_extra_state(state_dict[key])
        elif self.settings and any(name.startswith(prefix) for name in state_dict):
            warnings.warn(
                f"the state dict has no entry {key}, as of an earlier version: {self.settings} are taken for granted",
                stacklevel=2,
            )
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *others)
        if key in missing:
            missing.remove(key)
