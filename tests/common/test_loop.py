"""The one training loop: seeds, batches, the best validated parameters, and bit-identical repetition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from common.config import Training
from common.learning.loop import annealed, derive_seed, fit, minibatches, span_of

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
Y = X @ torch.tensor([[1.0], [-2.0], [0.5]])


def network() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Dropout(0.2), nn.Linear(8, 1))


def squared(module: nn.Module) -> Callable[[Tensor, torch.Generator], Tensor]:
    return lambda index, generator: (module(X[index]) - Y[index]).square().mean()


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_seed_is_fixed_by_its_parts() -> None:
    # Written out: another value would silently change every run and every resumed one.
    assert derive_seed(0, "teach", 3, "riverside") == 5335947367605414376
    assert derive_seed(0, "teach", 3, "riverside") != derive_seed(0, "teach", 4, "riverside")


@given(st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=4))
def test_a_seed_fits_torch_and_json(parts: list[object]) -> None:
    assert 0 <= derive_seed(*parts) < 2**63
    torch.Generator().manual_seed(derive_seed(*parts))


@given(st.integers(0, 60), st.integers(1, 25), st.integers(0, 2**40))
def test_an_epoch_shows_every_patient_once(size: int, batch_size: int, seed: int) -> None:
    batches = list(minibatches(size, batch_size, torch.Generator().manual_seed(seed)))
    assert sorted(i for b in batches for i in b.tolist()) == list(range(size))
    assert all(len(b) == batch_size for b in batches[:-1])
    again = minibatches(size, batch_size, torch.Generator().manual_seed(seed))
    assert [b.tolist() for b in batches] == [b.tolist() for b in again]


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_training_learns_and_repeats_bit_identically(optimiser: str) -> None:
    training = Training(optimiser=optimiser, lr=0.02, batch_size=8)  # type: ignore[arg-type]
    a, b, other = network(), network(), network()
    first = fit(a, 40, squared(a), training, epochs=15, seed=3)
    torch.manual_seed(99)
    torch.rand(5)
    second = fit(b, 40, squared(b), training, epochs=15, seed=3)
    fit(other, 40, squared(other), training, epochs=15, seed=4)
    assert first == second
    assert same(a, b)
    assert not same(a, other)
    assert first.epochs == len(first.training) == 15
    assert first.training[-1] < 0.7 * first.training[0]
    assert not a.training


def test_training_leaves_the_global_randomness_as_it_was() -> None:
    module = network()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    fit(module, 40, squared(module), Training(), epochs=2, seed=3)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("losses", "best"), [((5, 3, 1, 2, 4), 2), ((1, 3, 2, 4, 5), 0), ((5, 4, 3, 2, 1), 4), ((9, 2, 2, 3, 4), 2)]
)
def test_the_best_validated_epoch_is_kept_and_the_start_counts_as_one(losses: tuple[float, ...], best: int) -> None:
    module, seen = network(), []

    def validate() -> float:
        assert not module.training
        seen.append({n: t.clone() for n, t in module.state_dict().items()})
        return float(losses[len(seen) - 1])

    curve = fit(module, 40, squared(module), Training(), epochs=4, seed=0, validate=validate)
    assert curve.validation == losses
    assert all(torch.equal(t, seen[best][n]) for n, t in module.state_dict().items())


@pytest.mark.parametrize("losses", [(3.0, 2.0, float("nan"), float("nan")), (float("nan"), 2.0, 3.0, float("inf"))])
def test_an_epoch_that_validates_as_nan_is_never_the_best(losses: tuple[float, ...]) -> None:
    module, seen = network(), []

    def validate() -> float:
        seen.append({n: t.clone() for n, t in module.state_dict().items()})
        return losses[len(seen) - 1]

    fit(module, 40, squared(module), Training(), epochs=3, seed=0, validate=validate)
    assert all(torch.equal(t, seen[1][n]) for n, t in module.state_dict().items())


@pytest.mark.parametrize(("size", "epochs"), [(0, 5), (40, 0)])
def test_without_patients_or_epochs_nothing_changes(size: int, epochs: int) -> None:
    module = network()
    curve = fit(module, size, squared(module), Training(), epochs=epochs, seed=0)
    assert curve.epochs == 0
    assert curve.training == ()
    assert same(module, network())


def test_the_training_loss_is_the_mean_over_patients_not_over_batches() -> None:
    module = nn.Linear(1, 1)

    def loss(index: Tensor, generator: torch.Generator) -> Tensor:
        value = (module(torch.zeros(1)) * 0).sum() + len(index)
        return value

    curve = fit(module, 10, loss, Training(batch_size=8), epochs=1, seed=0)
    assert curve.training[0] == pytest.approx((8 * 8 + 2 * 2) / 10)


def test_an_annealed_learning_rate_falls_over_the_rounds_as_it_would_in_one_place() -> None:
    training = Training(optimiser="sgd", lr=0.1, weight_decay=0.0, batch_size=40, anneal=True)

    def moved(parts: list[tuple[int, tuple[float, float]]]) -> float:
        module = nn.Linear(1, 1, bias=False)
        start = module.weight.item()
        for epochs, span in parts:
            fit(module, 40, lambda index, generator: module.weight.sum(), training, epochs=epochs, seed=0, span=span)
        return start - module.weight.item()

    expected = sum(annealed(0.1, at / 4) for at in range(4))
    assert moved([(4, (0.0, 1.0))]) == pytest.approx(expected, rel=1e-5)
    assert moved([(2, span_of(0, 2)), (2, span_of(1, 2))]) == pytest.approx(expected, rel=1e-5)
    assert [annealed(0.1, at) for at in (0, 0.5, 1)] == pytest.approx([0.1, 0.05, 0])
