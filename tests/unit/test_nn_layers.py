"""Activations, losses, norms, dropout and containers as modules: PyTorch's names, state, outputs and reprs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from worker import nn
from worker.autodiff import Tensor, philox
from worker.autodiff import functional as F
from worker.nn import init

Array = np.ndarray[Any, np.dtype[Any]]
Arguments = tuple[Any, ...]


def numbers(*shape: int, seed: int = 1) -> Array:
    return init.generator(seed, *shape).standard_normal(shape).astype(np.float32)


LAYERS: list[tuple[str, Arguments, dict[str, Any], tuple[int, ...]]] = [
    ("ReLU", (), {}, (2, 3, 4)),
    ("ReLU6", (), {}, (2, 3, 4)),
    ("Tanh", (), {}, (2, 3, 4)),
    ("Sigmoid", (), {}, (2, 3, 4)),
    ("LogSigmoid", (), {}, (2, 3, 4)),
    ("GELU", (), {}, (2, 3, 4)),
    ("GELU", ("tanh",), {}, (2, 3, 4)),
    ("SiLU", (), {}, (2, 3, 4)),
    ("Mish", (), {}, (2, 3, 4)),
    ("Softplus", (2.0, 1.0), {}, (2, 3, 4)),
    ("Softsign", (), {}, (2, 3, 4)),
    ("ELU", (0.5,), {}, (2, 3, 4)),
    ("SELU", (), {}, (2, 3, 4)),
    ("CELU", (0.5,), {}, (2, 3, 4)),
    ("LeakyReLU", (0.2,), {}, (2, 3, 4)),
    ("PReLU", (), {}, (2, 3, 4)),
    ("PReLU", (3, 0.1), {}, (2, 3, 4)),
    ("Hardtanh", (-0.5, 0.7), {}, (2, 3, 4)),
    ("Hardsigmoid", (), {}, (2, 3, 4)),
    ("Hardswish", (), {}, (2, 3, 4)),
    ("Tanhshrink", (), {}, (2, 3, 4)),
    ("Softshrink", (0.3,), {}, (2, 3, 4)),
    ("Hardshrink", (0.3,), {}, (2, 3, 4)),
    ("Threshold", (0.1, 20.0), {}, (2, 3, 4)),
    ("GLU", (), {}, (2, 3, 4)),
    ("GLU", (0,), {}, (2, 3, 4)),
    ("Softmax", (1,), {}, (2, 3, 4)),
    ("LogSoftmax", (-1,), {}, (2, 3, 4)),
    ("Softmin", (0,), {}, (2, 3, 4)),
    ("Flatten", (), {}, (2, 3, 4)),
    ("Identity", (5,), {"unused": 6}, (2, 3, 4)),
    ("BatchNorm1d", (3,), {}, (4, 3)),
    ("BatchNorm1d", (3,), {"affine": False}, (4, 3, 5)),
    ("BatchNorm2d", (3,), {"momentum": None}, (4, 3, 5, 2)),
    ("BatchNorm2d", (3, 1e-3, 0.3), {"bias": False}, (4, 3, 5, 2)),
    ("BatchNorm3d", (3,), {"track_running_stats": False}, (2, 3, 2, 2, 2)),
    ("GroupNorm", (2, 4), {}, (3, 4, 5)),
    ("GroupNorm", (4, 4), {"affine": False}, (3, 4, 5)),
    ("GroupNorm", (1, 4), {"bias": False}, (3, 4, 5)),
    ("InstanceNorm1d", (3,), {}, (2, 3, 4)),
    ("InstanceNorm1d", (3,), {"affine": True}, (3, 4)),
    ("InstanceNorm2d", (3,), {"affine": True, "track_running_stats": True}, (2, 3, 4, 2)),
    ("InstanceNorm3d", (3,), {"track_running_stats": True}, (2, 3, 2, 2, 2)),
    ("LocalResponseNorm", (3,), {"k": 2.0}, (2, 5, 4)),
]

# Arguments of the module, what else it is given, and the shapes of its inputs; "signs" and "classes" are targets.
LOSSES: list[tuple[str, dict[str, Any], tuple[tuple[int, ...] | str, ...]]] = [
    ("CrossEntropyLoss", {"ignore_index": 1}, ((4, 3), "classes")),
    ("CrossEntropyLoss", {"weight": numbers(3) ** 2, "label_smoothing": 0.1}, ((4, 3), "classes")),
    ("NLLLoss", {"weight": numbers(3) ** 2, "reduction": "sum"}, ((4, 3), "classes")),
    ("BCELoss", {"reduction": "none"}, ("probabilities", "probabilities")),
    ("BCEWithLogitsLoss", {"weight": numbers(4) ** 2, "pos_weight": numbers(4) ** 2}, ((4,), "probabilities")),
    ("MSELoss", {}, ((4, 3), (4, 3))),
    ("L1Loss", {"reduction": "sum"}, ((4, 3), (4, 3))),
    ("SmoothL1Loss", {"beta": 0.5}, ((4, 3), (4, 3))),
    ("HuberLoss", {"delta": 0.5}, ((4, 3), (4, 3))),
    ("KLDivLoss", {"reduction": "batchmean", "log_target": True}, ((4, 3), (4, 3))),
    ("PoissonNLLLoss", {"log_input": False, "full": True}, ("probabilities", "probabilities")),
    ("GaussianNLLLoss", {"full": True}, ((4,), (4,), "probabilities")),
    ("HingeEmbeddingLoss", {"margin": 0.5}, ((4,), "signs")),
    ("CosineEmbeddingLoss", {"margin": 0.1}, ((4, 3), (4, 3), "signs")),
    ("MarginRankingLoss", {"margin": 0.1}, ((4,), (4,), "signs")),
    ("TripletMarginLoss", {"p": 1.0, "swap": True, "reduction": "none"}, ((4, 3), (4, 3), (4, 3))),
    ("CosineSimilarity", {"dim": 0}, ((4, 3), (4, 3))),
    ("PairwiseDistance", {"p": 3.0, "keepdim": True}, ((4, 3), (4, 3))),
]
FIXED = {
    "classes": np.array([2, 0, 1, 2]),
    "signs": np.array([1, -1, -1, 1], np.float32),
    "probabilities": np.array([0.1, 0.5, 0.8, 0.3], np.float32),
}


@pytest.mark.torch
@pytest.mark.parametrize(("name", "arguments", "named", "shape"), LAYERS)
def test_layer_is_pytorchs(name: str, arguments: Arguments, named: dict[str, Any], shape: tuple[int, ...]) -> None:
    """Its state dict goes in, the same keys come out; same outputs in training, after it, and in evaluation."""
    torch = pytest.importorskip("torch")
    ours, theirs = getattr(nn, name)(*arguments, **named), getattr(torch.nn, name)(*arguments, **named)
    for i, parameter in enumerate(theirs.parameters()):
        torch.nn.init.uniform_(parameter, 0.5 + i, 1.5 + i)
    ours.load_state_dict(theirs.state_dict())
    assert repr(ours) == repr(theirs)
    for step in range(3):
        x = numbers(*shape, seed=step) * 2 + 1
        if step == 2:
            ours.eval()
            theirs.eval()
        expected = theirs(torch.tensor(x)).detach().numpy()
        np.testing.assert_allclose(ours(Tensor(x)).data, expected, rtol=1e-5, atol=2e-6)
    state, expected_state = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(expected_state)
    for key, array in state.items():
        assert array.dtype == expected_state[key].numpy().dtype
        np.testing.assert_allclose(array, expected_state[key].numpy(), rtol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize(("name", "named", "inputs"), LOSSES)
def test_loss_is_pytorchs(name: str, named: dict[str, Any], inputs: tuple[tuple[int, ...] | str, ...]) -> None:
    torch = pytest.importorskip("torch")
    arrays = [FIXED[x] if isinstance(x, str) else numbers(*x, seed=i) for i, x in enumerate(inputs)]

    def options(wrap: Any) -> dict[str, Any]:
        return {key: wrap(value) if isinstance(value, np.ndarray) else value for key, value in named.items()}

    ours, theirs = getattr(nn, name)(**options(Tensor)), getattr(torch.nn, name)(**options(torch.tensor))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    got, expected = ours(*map(Tensor, arrays)), theirs(*map(torch.tensor, arrays))
    np.testing.assert_allclose(got.data, expected.numpy(), rtol=2e-6, atol=1e-6)


class TestDropout:
    def test_it_drops_while_training_only(self) -> None:
        philox.seed(1)
        layer, x = nn.Dropout(0.25), Tensor(np.ones((40, 50), np.float32))
        assert 0.2 < np.mean(layer(x).data == 0) < 0.3
        assert layer.eval()(x) is x
        assert repr(layer) == "Dropout(p=0.25)"

    def test_a_rate_that_is_none_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"Dropout: p is 2, expected 0\.\.1"):
            nn.Dropout(2)

    def test_two_layers_drop_different_elements(self) -> None:
        philox.seed(1)
        x = Tensor(np.ones(1000, np.float32))
        assert (nn.Dropout()(x).data != nn.Dropout()(x).data).any()


class WithBuffers(nn.Module):
    scale: Tensor
    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", Tensor([2.0]))
        self.register_buffer("table", Tensor([1, 2]), persistent=False)
        self.register_buffer("nothing", None)
        self.weight = nn.Parameter([3.0])


class TestBuffers:
    def test_buffers_are_state_and_no_parameters(self) -> None:
        model = nn.Sequential(WithBuffers(), nn.ReLU(), WithBuffers())
        assert [name for name, _ in model.named_parameters()] == ["0.weight", "2.weight"]
        assert [name for name, _ in model.named_buffers()] == ["0.scale", "0.table", "2.scale", "2.table"]
        assert list(model.state_dict()) == ["0.weight", "0.scale", "2.weight", "2.scale"]
        assert next(name for name, _ in model.named_buffers("model")) == "model.0.scale"

    def test_a_shared_buffer_is_one(self) -> None:
        shared = WithBuffers()
        assert len(list(nn.Sequential(shared, shared).buffers())) == 2

    def test_loading_copies_into_the_buffer(self) -> None:
        model = WithBuffers()
        buffer = model.scale
        model.load_state_dict({"weight": [1.0], "scale": [7.0]})
        assert model.scale is buffer
        assert buffer.tolist() == [7.0]

    def test_a_new_tensor_under_the_name_is_the_buffer(self) -> None:
        model = WithBuffers()
        model.scale = Tensor([5.0])
        assert model.state_dict()["scale"].tolist() == [5.0]

    def test_what_is_no_tensor_or_has_a_taken_name_is_refused(self) -> None:
        model = WithBuffers()
        with pytest.raises(TypeError, match="register_buffer: other is a Parameter, expected a Tensor or None"):
            model.register_buffer("other", nn.Parameter([1.0]))
        with pytest.raises(ValueError, match="register_buffer: there is an attribute weight already"):
            model.register_buffer("weight", Tensor([1.0]))


class TestContainers:
    def test_module_list(self) -> None:
        layers = nn.ModuleList([nn.ReLU(), nn.PReLU()])
        layers.append(nn.Tanh()).extend([nn.Sigmoid()])
        assert len(layers) == 4
        assert isinstance(layers[-1], nn.Sigmoid)
        layers[-1] = nn.GELU()
        assert [type(layer).__name__ for layer in layers] == ["ReLU", "PReLU", "Tanh", "GELU"]
        assert list(layers.state_dict()) == ["1.weight"]
        with pytest.raises(IndexError):
            layers[4] = nn.ReLU()

    def test_module_dict(self) -> None:
        branches = nn.ModuleDict({"left": nn.PReLU(), "right": nn.ReLU()})
        branches["third"] = nn.Tanh()
        branches["right"] = nn.PReLU()
        assert list(branches) == list(branches.keys()) == ["left", "right", "third"]
        assert list(branches.values()) == [module for _, module in branches.items()]
        assert len(branches) == 3
        assert "left" in branches
        assert "keys" not in branches
        assert list(branches.state_dict()) == ["left.weight", "right.weight"]
        with pytest.raises(KeyError, match="fourth"):
            branches["fourth"]
        with pytest.raises(ValueError, match="ModuleDict: 'training' is the name of an attribute"):
            branches["training"] = nn.ReLU()

    @pytest.mark.torch
    def test_reprs_and_keys_are_pytorchs(self) -> None:
        torch = pytest.importorskip("torch")

        def build(n: Any) -> Any:
            return n.ModuleDict({"a": n.ModuleList([n.PReLU(), n.Tanh()]), "b": n.Sequential(n.BatchNorm1d(2))})

        assert list(build(nn).state_dict()) == list(build(torch.nn).state_dict())
        assert repr(nn.ModuleDict({"a": nn.PReLU()})) == repr(torch.nn.ModuleDict({"a": torch.nn.PReLU()}))


def test_gradients_reach_the_parameters_of_norms() -> None:
    x = Tensor(numbers(4, 6, 5), requires_grad=True)
    model = nn.Sequential(nn.BatchNorm1d(6), nn.GroupNorm(3, 6), nn.InstanceNorm1d(6, affine=True), nn.PReLU(6))
    F.mse_loss(model(x), Tensor(numbers(4, 6, 5, seed=2))).backward()
    assert all(p.grad is not None and p.grad.data.any() for p in model.parameters())
    assert x.grad is not None


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (nn.BatchNorm1d(3), (2, 3, 4, 5), "BatchNorm1d: x has 4 dimensions, expected 2 or 3"),
        (nn.BatchNorm2d(3), (2, 3, 4), "BatchNorm2d: x has 3 dimensions, expected 4"),
        (nn.BatchNorm1d(3), (2, 4), r"batch_norm: running_mean has shape \(3,\), expected \(4,\)"),
        (nn.InstanceNorm2d(3), (2, 4, 5, 5), "InstanceNorm2d: x has 4 channels, expected 3"),
    ],
)
def test_wrong_input_is_refused(module: nn.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(Tensor(numbers(*shape)))


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="GroupNorm: 3 groups do not divide 4 channels"):
        nn.GroupNorm(3, 4)
