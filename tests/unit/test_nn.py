"""Modules, flat parameters, layers and the MLP."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from worker import nn
from worker.autodiff import Tensor, in_parts, no_grad
from worker.autodiff import functional as F
from worker.models.mlp import Mlp
from worker.nn import FlatParameters, Linear, Parameter, Sequential, init


def small_model() -> Sequential:
    generator = init.generator(1)
    return Sequential(Linear(4, 3, generator=generator), nn.ReLU(), Linear(3, 2, generator=generator))


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Parameter(np.eye(2, dtype=np.float32))
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.first), self.second)


class TestModule:
    @pytest.mark.torch
    def test_parameters_have_pytorchs_names_in_definition_order(self) -> None:
        torch = pytest.importorskip("torch")
        theirs = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        expected = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
        assert {name: p.shape for name, p in small_model().named_parameters()} == expected
        assert list(small_model().state_dict()) == list(expected)

    @pytest.mark.torch
    def test_state_dict_of_pytorch_gives_pytorchs_outputs(self) -> None:
        torch = pytest.importorskip("torch")
        theirs = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        ours = small_model()
        ours.load_state_dict(theirs.state_dict())
        x = init.generator(2).standard_normal((5, 4)).astype(np.float32)
        np.testing.assert_allclose(ours(Tensor(x)).data, theirs(torch.tensor(x)).detach().numpy(), rtol=1e-5, atol=1e-6)

    def test_state_dict_goes_round(self) -> None:
        first, second = small_model(), Sequential(*small_model())
        state = {name: array + 1 for name, array in first.state_dict().items()}
        second.load_state_dict(state)
        for name, array in second.state_dict().items():
            np.testing.assert_array_equal(array, state[name])

    def test_strict_loading_names_what_is_missing_and_unexpected(self) -> None:
        model = small_model()
        state = model.state_dict()
        state["3.weight"] = state.pop("2.bias")
        with pytest.raises(ValueError, match=r"missing \['2\.bias'\], unexpected \['3\.weight'\]"):
            model.load_state_dict(state)
        model.load_state_dict(state, strict=False)

    def test_wrong_shape_is_refused_and_nothing_is_copied(self) -> None:
        model = small_model()
        state = {name: array + 1 for name, array in model.state_dict().items()}
        before = {name: array.copy() for name, array in model.state_dict().items()}
        state["2.weight"] = state["2.weight"].T
        with pytest.raises(ValueError, match=r"2\.weight has shape \(3, 2\), expected \(2, 3\)"):
            model.load_state_dict(state)
        for name, array in model.state_dict().items():
            np.testing.assert_array_equal(array, before[name])

    def test_tied_parameter_is_one_parameter_with_two_names(self) -> None:
        model = Tied()
        assert [name for name, _ in model.named_parameters()] == ["first"]
        assert list(model.state_dict()) == ["first", "second"]

    def test_train_and_eval_reach_every_module(self) -> None:
        model = Sequential(small_model())
        assert not any(module.training for module in model.eval().modules())
        assert all(module.training for module in model.train().modules())

    def test_repr_is_pytorchs(self) -> None:
        assert repr(Sequential(small_model(), nn.GELU())) == (
            "Sequential(\n"
            "  (0): Sequential(\n"
            "    (0): Linear(in_features=4, out_features=3, bias=True)\n"
            "    (1): ReLU()\n"
            "    (2): Linear(in_features=3, out_features=2, bias=True)\n"
            "  )\n"
            "  (1): GELU(approximate='none')\n"
            ")"
        )

    def test_module_without_forward_says_so(self) -> None:
        with pytest.raises(NotImplementedError, match="Module has no forward"):
            nn.Module()(1)


class TestFlatParameters:
    def test_parameters_are_views_in_definition_order(self) -> None:
        model = small_model()
        values = [p.data.copy() for p in model.parameters()]
        flat = FlatParameters(model.parameters())
        assert flat.size == 4 * 3 + 3 + 3 * 2 + 2
        np.testing.assert_array_equal(flat.weights, np.concatenate([v.ravel() for v in values]))
        flat.weights[:] = 7
        assert all((p.data == 7).all() for p in model.parameters())

    def test_gradients_are_written_into_the_bound_vector(self) -> None:
        model = small_model()
        x, y = Tensor(np.ones((5, 4), np.float32)), Tensor(np.zeros(5, np.int64))
        F.cross_entropy(model(x), y).backward()
        expected = np.concatenate([p.grad.data.ravel() for p in model.parameters() if p.grad is not None])

        flat = FlatParameters(model.parameters())
        vector = np.full(flat.size, np.nan, np.float32)
        flat.bind_gradient(vector)
        F.cross_entropy(model(x), y).backward()
        np.testing.assert_array_equal(vector, expected)
        assert all(p.grad is not None and np.shares_memory(p.grad.data, vector) for p in model.parameters())

    def test_second_backward_without_zeroing_adds(self) -> None:
        model = small_model()
        flat = FlatParameters(model.parameters())
        x, y = Tensor(np.ones((5, 4), np.float32)), Tensor(np.zeros(5, np.int64))
        F.cross_entropy(model(x), y).backward()
        once = flat.gradient.copy()
        F.cross_entropy(model(x), y).backward()
        np.testing.assert_array_equal(flat.gradient, 2 * once)

    def test_rebinding_makes_gradients_fresh(self) -> None:
        model = small_model()
        flat = FlatParameters(model.parameters())
        x, y = Tensor(np.ones((5, 4), np.float32)), Tensor(np.zeros(5, np.int64))
        F.cross_entropy(model(x), y).backward()
        once = flat.gradient.copy()
        flat.bind_gradient(flat.gradient)
        assert all(p.grad is None for p in model.parameters())
        F.cross_entropy(model(x), y).backward()
        np.testing.assert_array_equal(flat.gradient, once)

    def test_two_weight_vectors_can_alternate(self) -> None:
        model = small_model()
        flat = FlatParameters(model.parameters())
        views = [flat.views_of(np.full(flat.size, value, np.float32)) for value in (1, 2)]
        for step in range(4):
            flat.bind_weights(views[step % 2])
            assert flat.weights is views[step % 2].vector
            assert all((p.data == step % 2 + 1).all() for p in model.parameters())

    def test_several_gradients_can_be_bound_for_a_batch_of_parts(self) -> None:
        model = small_model()
        flat = FlatParameters(model.parameters())
        x, y = Tensor(np.arange(24, dtype=np.float32).reshape(6, 4)), Tensor(np.zeros(6, np.int64))
        gradients = np.full((3, flat.size + 5), np.nan, np.float32)[:, : flat.size]  # as slots of a segment lie
        flat.bind_gradient(gradients)
        with in_parts(3):
            F.cross_entropy(model(x), y, reduction="sum").backward(np.ones(3, np.float32))
        flat.fill_unused()
        for i, gradient in enumerate(gradients):
            flat.bind_gradient(np.full(flat.size, np.nan, np.float32))
            part = slice(2 * i, 2 * i + 2)
            F.cross_entropy(model(Tensor(x.data[part])), Tensor(y.data[part]), reduction="sum").backward()
            np.testing.assert_array_equal(gradient, flat.gradient)

    def test_a_parameter_may_be_a_number(self) -> None:
        flat = FlatParameters([Parameter(2.0), Parameter([3.0])])
        assert [array.shape for array in flat.views_of(np.zeros(2, np.float32)).arrays] == [(), (1,)]
        assert [array.shape for array in flat.views_of(np.zeros((3, 2), np.float32)).arrays] == [(3,), (3, 1)]

    def test_unused_parameters_get_zeros(self) -> None:
        used, unused = Parameter([1.0, 2.0]), Parameter([3.0])
        flat = FlatParameters([used, unused])
        flat.bind_gradient(np.full(3, np.nan, np.float32))
        (used * 2).sum().backward()
        flat.fill_unused()
        assert flat.gradient.tolist() == [2, 2, 0]

    def test_tied_weight_gets_the_sum_of_its_uses(self) -> None:
        model = Tied()
        x = Tensor(np.array([[1, 2]], np.float32))
        model(x).sum().backward()
        assert model.first.grad is not None
        expected = model.first.grad.data.copy()
        flat = FlatParameters(model.parameters())
        model(x).sum().backward()
        np.testing.assert_array_equal(flat.gradient.reshape(2, 2), expected)

    def test_loading_a_state_dict_writes_through_to_the_vector(self) -> None:
        model = small_model()
        flat = FlatParameters(model.parameters())
        model.load_state_dict({name: np.full_like(array, 3) for name, array in model.state_dict().items()})
        assert (flat.weights == 3).all()

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ([], "expected at least one parameter, got none"),
            ([Parameter(np.ones(2))], r"parameter 0 of shape \(2,\) is float64, expected float32"),
            ([Parameter([1.0], requires_grad=False)], r"parameter 0 of shape \(1,\) requires no gradient"),
        ],
    )
    def test_bad_parameters_are_refused(self, parameters: list[Parameter], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            FlatParameters(parameters)

    def test_parameter_twice_is_refused(self) -> None:
        parameter = Parameter([1.0])
        with pytest.raises(ValueError, match="a parameter is given twice"):
            FlatParameters([parameter, parameter])

    @pytest.mark.parametrize("vector", [np.zeros(3, np.float32), np.zeros(2)])
    def test_wrong_vector_is_refused(self, vector: Any) -> None:
        flat = FlatParameters([Parameter([1.0, 2.0])])
        with pytest.raises(ValueError, match=r"expected a float32 vector of shape \(2,\)"):
            flat.bind_weights(vector)


class TestLayers:
    def test_linear_starts_as_pytorchs_does(self) -> None:
        layer = Linear(100, 200, generator=init.generator(1))
        assert layer.bias is not None
        for values in (layer.weight.data, layer.bias.data):
            assert np.abs(values).max() <= 0.1
            assert np.std(values) == pytest.approx(0.1 / np.sqrt(3), rel=0.1)

    def test_linear_without_bias(self) -> None:
        layer = Linear(2, 3, bias=False, generator=init.generator(1))
        assert [name for name, _ in layer.named_parameters()] == ["weight"]
        assert layer(Tensor(np.ones((4, 2), np.float32))).shape == (4, 3)

    def test_linear_without_features_is_refused(self) -> None:
        with pytest.raises(ValueError, match="Linear: got 0 features in and 3 out"):
            Linear(0, 3, generator=init.generator(1))

    def test_sequential_is_a_sequence(self) -> None:
        model = small_model()
        assert len(model) == 3
        assert isinstance(model[1], nn.ReLU)
        assert isinstance(model[-1], Linear)


class TestMlp:
    def test_layers_and_names(self) -> None:
        model = Mlp(5, [7, 6], 3, "gelu", generator=init.generator(1))
        shapes = {name: p.shape for name, p in model.named_parameters()}
        assert shapes == {
            "layers.0.weight": (7, 5),
            "layers.0.bias": (7,),
            "layers.2.weight": (6, 7),
            "layers.2.bias": (6,),
            "layers.4.weight": (3, 6),
            "layers.4.bias": (3,),
        }
        assert isinstance(model.layers[1], nn.GELU)

    def test_without_hidden_layers_it_is_linear(self) -> None:
        model = Mlp(5, [], 3, generator=init.generator(1))
        with no_grad():
            assert model(Tensor(np.ones((2, 5), np.float32))).shape == (2, 3)
        assert len(list(model.parameters())) == 2

    @pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
    def test_signal_keeps_its_size_through_the_layers(self, activation: str) -> None:
        model = Mlp(400, [400] * 8, 400, activation, generator=init.generator(1))
        with no_grad():
            y = model(Tensor(init.generator(2).standard_normal((50, 400)).astype(np.float32)))
        assert 0.1 < np.std(y.data) < 3

    def test_same_generator_same_weights(self) -> None:
        first, second = (Mlp(5, [4], 3, generator=init.generator(9)) for _ in range(2))
        for a, b in zip(first.parameters(), second.parameters(), strict=True):
            np.testing.assert_array_equal(a.data, b.data)

    def test_unknown_activation_is_refused(self) -> None:
        with pytest.raises(ValueError, match="activation is 'swish', expected one of relu, tanh, gelu"):
            Mlp(5, [4], 3, "swish", generator=init.generator(1))
