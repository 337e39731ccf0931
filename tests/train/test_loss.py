"""The summed loss against torch's plain way: values, gradients, memory, precision."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from qkv import spec
from qkv.nn.head import IGNORED, LMHead, MaskedLM, Product
from qkv.train import loss

N, C, V = 37, 12, 29
LABELS = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(5))


@pytest.fixture(autouse=True)
def _chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, the last of them short."""
    monkeypatch.setattr(loss, "CHUNK", 8 * V)
    monkeypatch.setattr(loss, "ROWS", 4)
    monkeypatch.setattr(loss, "PLAIN", 0)


def product(bias: bool = False, softcap: float | None = None, dtype: torch.dtype = torch.float32) -> Product:
    made = torch.Generator().manual_seed(1)
    states, matrix, row = (torch.randn(*shape, generator=made).to(dtype) for shape in ((N, C), (V, C), (V,)))
    given = [x.requires_grad_() for x in (states, matrix, row)]
    return Product(given[0], given[1], given[2] if bias else None, softcap)


def plain(given: Product, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    return F.cross_entropy(given.logits().float(), labels, label_smoothing=smoothing, reduction="sum")


def gradients(total: Tensor, given: Product) -> list[Tensor]:
    wanted = [x for x in given[:3] if x is not None]
    return list(torch.autograd.grad(total, wanted))


CASES = [(bias, cap, smooth) for bias in (False, True) for cap in (None, 3.0) for smooth in (0.0, 0.1)]


@pytest.mark.parametrize(("bias", "softcap", "smoothing"), CASES)
def test_the_plain_loss_and_its_gradients(bias: bool, softcap: float | None, smoothing: float) -> None:
    given = product(bias, softcap)
    wanted, ours = plain(given, LABELS, smoothing), loss.summed(given, LABELS, smoothing)
    assert ours.dtype == torch.float32
    assert ours.shape == ()
    torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=0)
    for mine, theirs in zip(gradients(ours * 0.3, given), gradients(wanted * 0.3, given), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_gradients_by_small_differences() -> None:
    given = product(True, 3.0, torch.float64)
    step = 1e-3 * torch.randn(V, C, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    total = loss.summed(given, LABELS, 0.1)
    moved = [plain(given._replace(matrix=given.matrix + sign * step), LABELS, 0.1).double() for sign in (1, -1)]
    expected = (moved[0] - moved[1]) / 2
    found = (gradients(total, given)[1] * step).sum()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_same_bits_each_time() -> None:
    given = product(True, 3.0)
    runs = [loss.summed(given, LABELS, 0.1) for _ in range(3)]
    assert len({run.item() for run in runs}) == 1
    first, *others = [gradients(run, given) for run in runs]
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_in_autocast_products_are_in_its_dtype() -> None:
    given = product(True)
    exact = gradients(plain(given, LABELS, 0.1), given)
    with torch.autocast("cpu", torch.bfloat16):
        theirs, ours = plain(given, LABELS, 0.1), loss.summed(given, LABELS, 0.1)
    assert theirs != plain(given, LABELS, 0.1)  # it does round
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=0)
    found = zip(gradients(ours, given), gradients(theirs, given), exact, strict=True)
    for mine, autocast, right in found:
        assert mine.dtype == torch.float32
        assert (mine - right).norm() <= 1.2 * (autocast - right).norm()


def test_states_of_few_bits_keep_their_dtype() -> None:
    given = product(dtype=torch.bfloat16)
    found = gradients(loss.summed(given, LABELS), given)
    assert [x.dtype for x in found] == [torch.bfloat16] * 2


def test_only_what_is_asked_for() -> None:
    given = product(True)
    frozen = given._replace(matrix=given.matrix.detach())
    loss.summed(frozen, LABELS).backward()  # type: ignore[no-untyped-call]
    assert given.matrix.grad is None
    assert given.states.grad is not None
    with torch.no_grad():
        assert not loss.summed(given, LABELS).requires_grad


def test_gradients_are_given_once() -> None:
    given = product()
    total = loss.summed(given, LABELS)
    torch.autograd.grad(total, given.states, retain_graph=True)
    with pytest.raises(RuntimeError, match="compute it again"):
        torch.autograd.grad(total, given.states)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(
            torch.autograd.grad(loss.summed(given, LABELS), given.states, create_graph=True)[0].sum(), given.states
        )


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation gives."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [x for x in (out if isinstance(out, tuple) else (out,)) if isinstance(x, Tensor)]
        self.numbers = max([self.numbers, *(x.numel() for x in given)])
        return out


def test_the_logits_never_stand_in_memory_whole() -> None:
    given = product(True, 3.0)
    with Largest() as whole:
        plain(given, LABELS, 0.1)
    assert whole.numbers == N * V
    with Largest() as ours:
        loss.summed(given, LABELS, 0.1).backward()  # type: ignore[no-untyped-call]
    assert ours.numbers == max(8 * V, V * C, N * C)


def test_few_logits_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "PLAIN", N * V)
    given = product(True, 3.0)
    assert torch.equal(loss.summed(given, LABELS, 0.1), plain(given, LABELS, 0.1))


HEADS = [
    spec.LMHead(),
    spec.LMHead(tied=False, bias=True, softcap=2.0, scale=0.5),
    spec.MaskedLM(spec.LayerNorm()),
    spec.MaskedLM(spec.LayerNorm(), tied=False),
]


@pytest.mark.parametrize("kind", HEADS)
def test_heads_and_tokens_without_a_label(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    head = (LMHead if isinstance(kind, spec.LMHead) else MaskedLM)(kind, V, C, C)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    labels = torch.where(torch.arange(N) % 3 == 0, LABELS, IGNORED)
    states, table, _ = (x.detach().requires_grad_() for x in product(True)[:3] if x is not None)
    seen = []
    monkeypatch.setattr(head, "product", lambda x, table, real=head.product: seen.append(len(x)) or real(x, table))
    ours = loss.of_head(head, states, table, labels)
    assert seen == [13]
    out = head.forward(states, None, table)  # type: ignore[arg-type]
    wanted = 13 * head.loss(out, labels)
    torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=0)
    given = [states, *([] if head.weight is not None else [table]), *head.parameters()]
    for a, b in zip(torch.autograd.grad(ours, given), torch.autograd.grad(wanted, given), strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("most", [0, 2**18])
def test_no_label_at_all(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "PLAIN", most)
    states, table = product()[:2]
    total = loss.of_head(LMHead(spec.LMHead(), V, C, C), states, table, torch.full((N,), IGNORED))
    assert total == 0
    total.backward()  # type: ignore[no-untyped-call]
    assert states.grad is not None
    assert not states.grad.any()
