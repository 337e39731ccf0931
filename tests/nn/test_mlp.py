"""The MLPs against transformers', activation by activation."""

from typing import get_args

import pytest
import torch

from qkv import spec
from qkv.nn.mlp import ACTIVATIONS
from qkv.nn.parts import build

THEIRS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "silu": "silu",
    "relu2": "relu2",
    "tanh": "tanh",
}


def test_every_activation_is_there_and_is_the_one_of_that_name() -> None:
    from transformers.activations import ACT2FN

    assert set(ACTIVATIONS) == set(THEIRS) == set(get_args(spec.Activation))
    x = torch.linspace(-5, 5, 101)
    for name, theirs in THEIRS.items():
        torch.testing.assert_close(ACTIVATIONS[name](x), ACT2FN[theirs](x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("bias", [False, True])
def test_gated_is_llamas(bias: bool) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    theirs = LlamaMLP(LlamaConfig(hidden_size=16, num_attention_heads=2, intermediate_size=24, mlp_bias=bias))
    own = build(spec.Gated(24, "silu", bias), 16)
    names = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
    own.load_state_dict({f"{names[k.split('.')[0]]}.{k.split('.')[1]}": v for k, v in theirs.state_dict().items()})
    x = torch.randn(5, 16)
    torch.testing.assert_close(own(x), theirs(x))


@pytest.mark.parametrize("bias", [False, True])
def test_plain_is_its_equation(bias: bool) -> None:
    own, x = build(spec.Plain(24, "relu", bias), 16), torch.randn(5, 16)
    assert {name for name, _ in own.named_parameters()} == {
        f"{layer}.{kind}" for layer in ("up", "down") for kind in (("weight", "bias") if bias else ("weight",))
    }
    with torch.no_grad():
        for p in own.parameters():
            p.copy_(torch.randn_like(p))
        b1, b2 = (own.up.bias, own.down.bias) if bias else (0, 0)
        torch.testing.assert_close(own(x), (x @ own.up.weight.T + b1).clamp(min=0) @ own.down.weight.T + b2)


@pytest.mark.parametrize("kind", [spec.Plain, spec.Gated])
def test_hidden_units_are_dropped_in_training_alone(kind: type[spec.MLP]) -> None:
    """At dropout 1 none is left, and only the last bias goes out."""
    own, x = build(kind(24, "gelu", True, dropout=1.0), 16), torch.randn(5, 16)
    assert torch.equal(own(x), own.down.bias.expand(5, 16))
    plain = build(kind(24, "gelu", True), 16)
    plain.load_state_dict(own.state_dict())
    assert torch.equal(own.eval()(x), plain(x))
