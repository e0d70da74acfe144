"""The text of a study: its domains, tokenised and packed, on the host."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from adaptlab import config, data

__all__ = ["Text", "load_text"]


class Text(NamedTuple):
    """What a study trains on and measures; it can be sent to another process.

    Attributes:
      target: the domain adapted to.
      upstream: those not to forget, by name.
      token_bytes_V: how many bytes of text each token stands for.
    """

    target: data.Domain
    upstream: dict[str, data.Domain]
    token_bytes_V: np.ndarray

    @property
    def domains(self) -> dict[str, data.Domain]:
        """All of them, by name; the target first."""
        return {self.target.name: self.target, **self.upstream}


def load_text(settings: Mapping[str, Any]) -> Text:
    """Load the text that a part of a study's config says, see `adaptlab.study.lab.lab_settings`.

    Raises:
      ConfigError: the target is also an upstream domain; or an upstream domain is none.
    """
    for name, node in settings["upstream"].items():
        if not isinstance(node, Mapping):
            raise config.ConfigError(
                f"upstream.{name}={node!r} is no corpus: choose one with domain@upstream.{name}=…, or leave it out "
                f"with '~domain@upstream.{name}'."
            )
    tokenizer = config.instantiate(settings["base"]["tokenizer"])
    training, held_out = (config.instantiate(settings[name]) for name in ("training", "held_out"))

    def domain(node: Mapping[str, Any], max_train_tokens: int | None) -> data.Domain:
        return data.load_domain(
            config.instantiate(node),
            tokenizer,
            training.length,
            held_out=held_out.fraction,
            max_train_tokens=max_train_tokens,
            max_held_out_tokens=held_out.tokens,
            max_document_tokens=held_out.max_document_tokens,
        )

    target = domain(settings["target"], training.max_tokens)
    upstream = {name: domain(node, 0) for name, node in settings["upstream"].items()}
    if target.name in upstream:
        raise config.ConfigError(f"upstream.{target.name} is also the target: what is trained on is not forgotten.")
    return Text(target, upstream, tokenizer.token_bytes_V)
