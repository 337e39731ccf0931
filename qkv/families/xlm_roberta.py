"""XLM-RoBERTa (arXiv 1911.02116): RoBERTa in a hundred languages, under the same tensor names."""

from qkv.families import roberta
from qkv.families.encoders import buffers
from qkv.families.family import Family

FAMILY = Family(
    name="xlm-roberta",
    title="XLM-RoBERTa",
    architectures=roberta.architectures("XLMRoberta"),
    read=roberta.read,
    write=roberta.write,
    weights=roberta.WEIGHTS,
    copies=roberta.COPIES,
    ignored=buffers("roberta."),
    prefix="roberta.",
    tiny=roberta.TINY,
    variants={
        "tanh gelu": {"hidden_act": "gelu_new"},
        "41 positions": {"max_position_embeddings": 43},
        "of its release": {"output_past": True, "layer_norm_eps": 1e-5, "position_embedding_type": "absolute"},
        "named labels": {"architectures": ["XLMRobertaForSequenceClassification"], "id2label": {"0": "score"}},
    },
)
