"""Optimizers against PyTorch's, their state, schedules and averages; clipping."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from worker import optim
from worker.autodiff import Tensor
from worker.nn import Parameter, init
from worker.optim import clip_grad_norm_, clip_grad_value_, clip_scale, rules, schedules

SHAPES = ((4, 3), (4,), (2, 4), ())


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "arguments", "torchs"),
    [
        ("SGD", {"lr": 0.1}, {}),
        ("SGD", {"lr": 0.1, "weight_decay": 0.2}, {}),
        ("SGD", {"lr": 0.1, "momentum": 0.9}, {}),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.2}, {}),
        ("SGD", {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1}, {}),
        ("Momentum", {"lr": 0.1}, {"momentum": 0.9}),
        ("Momentum", {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.2}, {}),
        ("Adam", {"lr": 0.01}, {}),
        ("Adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.2}, {}),
        ("AdamW", {"lr": 0.01}, {}),
        ("AdamW", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.2}, {}),
        ("RMSprop", {}, {}),
        ("RMSprop", {"lr": 0.02, "alpha": 0.9, "eps": 1e-6, "weight_decay": 0.1}, {}),
        ("RMSprop", {"momentum": 0.9}, {}),
        ("RMSprop", {"centered": True, "eps": 1e-3}, {}),
        ("RMSprop", {"centered": True, "eps": 1e-3, "momentum": 0.5, "weight_decay": 0.1}, {}),
        ("Adagrad", {}, {}),
        ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.5}, {}),
    ],
    ids=str,
)
def test_thirty_steps_are_pytorchs(name: str, arguments: dict[str, Any], torchs: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    rng = init.generator(5)
    start = [np.asarray(rng.standard_normal(shape), np.float32) for shape in SHAPES]
    mine = [Parameter(a.copy()) for a in start]
    other = [torch.tensor(a.copy(), requires_grad=True) for a in start]
    optimizer = getattr(optim, name)(mine, **arguments)
    reference = getattr(torch.optim, "SGD" if name == "Momentum" else name)(other, **torchs | arguments)
    for _ in range(30):
        for p, t in zip(mine, other, strict=True):
            gradient = np.asarray(rng.standard_normal(p.shape), np.float32)
            p.accumulate_grad(gradient)
            t.grad = torch.tensor(gradient)
        optimizer.step()
        reference.step()
        optimizer.zero_grad()
    for p, t in zip(mine, other, strict=True):
        np.testing.assert_allclose(p.data, t.detach().numpy(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize(
    "make",
    [
        lambda bad: rules.SGD(weight_decay=bad),
        lambda bad: rules.Momentum(momentum=bad),
        lambda bad: rules.Adam(beta1=bad),
        lambda bad: rules.Adam(beta2=bad),
        lambda bad: rules.Adam(epsilon=bad),
        lambda bad: rules.AdamW(weight_decay=bad),
        lambda bad: rules.SGD(momentum=bad),
        lambda bad: rules.SGD(dampening=bad),
        lambda bad: rules.RMSprop(alpha=bad),
        lambda bad: rules.Adagrad(lr_decay=bad),
        lambda bad: rules.Lion(beta2=bad),
        lambda bad: rules.Averaged(rules.SGD(), decay=bad),
        lambda bad: optim.SGD([Parameter([1.0])], lr=bad),
        lambda bad: optim.Adam([Parameter([1.0])], betas=(0.9, bad)),
    ],
)
def test_bad_hyperparameter_is_refused(make: Callable[[float], object], bad: float) -> None:
    with pytest.raises(ValueError, match=rf"^\w+: \w+ is {bad}, expected at least 0"):
        make(bad)


def test_decay_rate_must_be_below_one() -> None:
    with pytest.raises(ValueError, match=r"^Adam: beta1 is 1\.0, expected at least 0 and below 1"):
        rules.Adam(beta1=1.0)


def test_nesterov_needs_momentum_and_no_dampening() -> None:
    for arguments in ({}, {"momentum": 0.9, "dampening": 0.1}):
        with pytest.raises(ValueError, match="nesterov needs a momentum above 0 and no dampening"):
            rules.SGD(nesterov=True, **arguments)


class TestOptimizer:
    def test_step_without_gradients_changes_nothing(self) -> None:
        parameter = Parameter([1.0, 2.0])
        optimizer = optim.AdamW([parameter], weight_decay=0.5)
        optimizer.step()
        assert parameter.tolist() == [1.0, 2.0]
        assert optimizer.num_steps == 0

    def test_parameter_without_gradient_counts_as_zero_gradient(self) -> None:
        used, unused = Parameter([1.0]), Parameter([2.0])
        optimizer = optim.SGD([used, unused], lr=1.0)
        for _ in range(2):
            (used * 1).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert (used.item(), unused.item()) == (-1.0, 2.0)

    def test_gradient_set_by_hand_is_used(self) -> None:
        parameter = Parameter([1.0])
        optimizer = optim.SGD([parameter], lr=1.0)
        parameter.grad = Tensor([0.25])
        optimizer.step()
        assert parameter.item() == 0.75

    def test_lr_can_be_changed(self) -> None:
        parameter = Parameter([1.0])
        optimizer = optim.SGD([parameter], lr=1.0)
        optimizer.lr = 0.5
        (parameter * 1).sum().backward()
        optimizer.step()
        assert parameter.item() == 0.5

    def test_schedule_is_a_factor_on_lr(self) -> None:
        parameter = Parameter([0.0])
        optimizer = optim.SGD([parameter], lr=2.0)
        optimizer.schedule = schedules.Linear(total_steps=3, min_ratio=0.0)
        moves = []
        for _ in range(4):
            before = parameter.item()
            (parameter * 1).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            moves.append(before - parameter.item())
        assert moves == [2.0, 1.0, 0.0, 0.0]

    def test_schedule_goes_on_from_the_state_dict(self) -> None:
        optimizer = optim.SGD([Parameter([0.0])], lr=1.0)
        optimizer.load_state_dict({"lr": 1.0, "num_steps": 2, "state": {}})
        optimizer.schedule = schedules.Linear(total_steps=5, min_ratio=0.0)
        parameter = optimizer.flat.parameters[0]
        (parameter * 1).sum().backward()
        optimizer.step()
        assert parameter.item() == -0.5

    @pytest.mark.torch
    def test_average_is_pytorchs(self) -> None:
        torch = pytest.importorskip("torch")
        parameter = Parameter([1.0, -2.0])
        optimizer = optim.SGD([parameter], lr=0.1).keep_average(0.9)
        model = torch.nn.Linear(2, 1, bias=False)
        model.weight.data[:] = torch.tensor(parameter.data)
        reference = torch.optim.SGD(model.parameters(), lr=0.1)
        averaged = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )
        averaged.update_parameters(model)  # ours starts with the first weights, PyTorch's with the first call
        for _ in range(20):
            for p, o in ((parameter, optimizer), (model.weight, reference)):
                ((p * p).sum() * 0.5).backward()
                o.step()
                o.zero_grad()
            averaged.update_parameters(model)
        weights = parameter.tolist()
        with optimizer.averaged_weights():
            assert parameter.tolist() != weights
            np.testing.assert_allclose(parameter.data, averaged.module.weight.detach().numpy()[0], rtol=1e-5)
        assert parameter.tolist() == weights

    def test_average_is_part_of_the_state(self) -> None:
        optimizer = optim.Adam([Parameter([1.0])])
        with (
            pytest.raises(ValueError, match=r"there is no average; call keep_average\(\)"),
            optimizer.averaged_weights(),
        ):
            pass
        optimizer.keep_average()
        assert list(optimizer.state_dict()["state"]) == ["m", "v", "ema"]
        with pytest.raises(ValueError, match="keeps an average already"):
            optimizer.keep_average()

    def test_goes_on_from_its_state_dict(self) -> None:
        def train(optimizer: optim.Optimizer, steps: int) -> None:
            for _ in range(steps):
                (optimizer.flat.parameters[0] ** 2).sum().backward()
                optimizer.step()
                optimizer.zero_grad()

        whole = Parameter([1.0, -2.0])
        train(optim.Adam([whole], lr=0.1), 6)

        first = Parameter([1.0, -2.0])
        optimizer = optim.Adam([first], lr=0.1)
        train(optimizer, 3)
        saved = optimizer.state_dict()
        train(optimizer, 1)  # a state dict is a copy
        second = Parameter([1.0, -2.0])
        train(optim.Adam([second], lr=0.1), 3)
        resumed = optim.Adam([second], lr=9.0)
        resumed.load_state_dict(saved)
        train(resumed, 3)
        assert second.tolist() == whole.tolist()

    def test_state_of_another_optimizer_is_refused(self) -> None:
        adam, sgd = optim.Adam([Parameter([1.0])]), optim.SGD([Parameter([1.0])])
        with pytest.raises(ValueError, match=r"got state \[\], expected \['m', 'v'\]"):
            adam.load_state_dict(sgd.state_dict())
        with pytest.raises(ValueError, match=r"m has shape \(2,\), expected \(1,\)"):
            adam.load_state_dict(optim.Adam([Parameter([1.0, 2.0])]).state_dict())

    def test_repr_tells_rule_and_size(self) -> None:
        optimizer = optim.SGD([Parameter([1.0, 2.0])], lr=0.1)
        assert repr(optimizer) == (
            "SGD(lr=0.1, SGD(momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False), 2 parameters)"
        )


class TestClip:
    @pytest.mark.torch
    @pytest.mark.parametrize("max_norm", [0.5, 100.0])
    def test_clipped_gradients_are_pytorchs(self, max_norm: float) -> None:
        torch = pytest.importorskip("torch")
        parameters = [Parameter(np.ones(shape, np.float32)) for shape in SHAPES]
        references = [torch.ones(shape, requires_grad=True) for shape in SHAPES]
        for p, t in zip(parameters[:-1], references[:-1], strict=True):
            p.accumulate_grad(np.asarray(init.generator(3).standard_normal(p.shape), np.float32))
            assert p.grad is not None
            t.grad = torch.tensor(p.grad.data.copy())
        norm = clip_grad_norm_(parameters, max_norm)
        assert norm == pytest.approx(torch.nn.utils.clip_grad_norm_(references, max_norm).item())
        for p, t in zip(parameters[:-1], references[:-1], strict=True):
            assert p.grad is not None
            np.testing.assert_allclose(p.grad.data, t.grad.numpy(), rtol=1e-6)

    def test_scale_is_one_below_the_norm_and_keeps_nan(self) -> None:
        assert clip_scale(9.0, 5.0) == 1.0
        assert clip_scale(9.0, 1.5) == pytest.approx(0.5)
        assert math.isnan(clip_scale(math.nan, 1.0))
        assert clip_scale(math.inf, 1.0) == 0.0

    def test_by_value_each_element_stands_for_itself(self) -> None:
        used, unused = Parameter([1.0, 2.0, 3.0, 4.0]), Parameter([1.0])
        used.grad = Tensor([-3.0, 0.5, np.nan, np.inf])
        clip_grad_value_([used, unused], 2.0)
        np.testing.assert_array_equal(used.grad.data, [-2.0, 0.5, np.nan, 2.0])
        assert unused.grad is None

    @pytest.mark.parametrize("clip", [clip_grad_norm_, clip_grad_value_])
    @pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
    def test_bad_bound_is_refused(self, clip: Callable[[list[Parameter], float], object], bad: float) -> None:
        with pytest.raises(ValueError, match="expected a positive number"):
            clip([Parameter([1.0])], bad)
