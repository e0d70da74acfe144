"""BERT's checkpoints: Hugging Face folders of the bare encoder, or of one with a head."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptlab.models.bert import BertShape, bert, bert_classifier
from adaptlab.models.family import Family, refuse
from adaptlab.models.layers import ACTIVATIONS
from adaptlab.models.weights import Entry

__all__ = ["BERT"]


def _entries(shape: BertShape) -> list[Entry]:
    embeddings, layer = "embeddings.", "encoder.layer.{}."
    attention = layer + "attention."
    entries = [
        Entry("embed/embedding", embeddings + "word_embeddings.weight", transpose=False),
        Entry("position_embed/embedding", embeddings + "position_embeddings.weight", transpose=False),
        Entry("type_embed/embedding", embeddings + "token_type_embeddings.weight", transpose=False),
    ]
    norms = {
        "embed_norm": embeddings + "LayerNorm",
        "layers/attention_norm": attention + "output.LayerNorm",
        "layers/feed_forward_norm": layer + "output.LayerNorm",
    }
    dense = {
        "layers/attention/query": attention + "self.query",
        "layers/attention/key": attention + "self.key",
        "layers/attention/value": attention + "self.value",
        "layers/attention/out": attention + "output.dense",
        "layers/feed_forward/up": layer + "intermediate.dense",
        "layers/feed_forward/down": layer + "output.dense",
        "pooler": "pooler.dense",
        "classifier": "classifier",
    }
    for first, names in (("scale", norms), ("kernel", dense)):
        for path, name in names.items():
            entries += [Entry(f"{path}/{first}", f"{name}.weight"), Entry(f"{path}/bias", f"{name}.bias")]
    return entries


def _read(config: dict[str, Any], where: Path) -> BertShape:
    positions = config.get("position_embedding_type") or "absolute"
    activation = config.get("hidden_act", "gelu")
    unsupported = {
        "position_embedding_type": None if positions == "absolute" else positions,
        "is_decoder": config.get("is_decoder"),
        "add_cross_attention": config.get("add_cross_attention"),
        "hidden_act": None if activation in ACTIVATIONS else activation,
    }
    refuse(unsupported, where, "BERT")
    return BertShape(
        vocab_size=config["vocab_size"],
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        ffn_width=config["intermediate_size"],
        context=config["max_position_embeddings"],
        types=config.get("type_vocab_size", 2),
        norm_eps=config.get("layer_norm_eps", 1e-12),
        activation=activation,
    )


def _write(shape: BertShape, context: int, weights: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    # What transformers calls a classifier reads BERT's pooler; one over a mean is saved as an encoder with two tensors
    # more, which only adaptlab reads.
    whole = {"classifier/bias", "pooler/bias"} <= weights.keys()
    labels = {i: f"LABEL_{i}" for i in range(weights["classifier/bias"][0])} if whole else {}
    head = {"id2label": labels, "label2id": {label: i for i, label in labels.items()}} if whole else {}
    config = {
        "architectures": ["BertForSequenceClassification" if whole else "BertModel"],
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.ffn_width,
        "max_position_embeddings": context,
        "type_vocab_size": shape.types,
        "layer_norm_eps": shape.norm_eps,
        "hidden_act": shape.activation,
        **head,
    }
    return config, BERT.prefix if whole else ""


BERT = Family(
    name="bert",
    shape=BertShape,
    model=bert,
    read=_read,
    write=_write,
    entries=_entries,
    context=lambda config: config["max_position_embeddings"],
    prefix="bert.",
    # Position ids are a buffer of old versions; the pooler and the heads are read by the models that have them.
    unread=r"embeddings\.position_ids|(pooler|classifier|cls)\..*",
    classifier=bert_classifier,
)
