"""GPT and BERT: the same logits as Hugging Face's, the same training as PyTorch's, and sampling."""

from __future__ import annotations

import gc
import tracemalloc
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from benchmarks.workloads import Workload
from worker import optim
from worker.autodiff import Tensor, philox
from worker.autodiff import functional as F
from worker.models import build
from worker.models.bert import Bert, MaskedLanguageModel, SequenceClassifier
from worker.models.gpt import Gpt, _probabilities
from worker.nn import FlatParameters, Module, init
from worker.spec import ModelSpec

Array = np.ndarray[Any, np.dtype[Any]]

V, T, C = 50, 16, 24
SIZE: dict[str, Any] = {"layers": 2, "heads": 3, "width": C, "context": T}


def gpt(**named: Any) -> Gpt:
    return Gpt(V, **SIZE | named, generator=init.generator(1))


def bert(**named: Any) -> Bert:
    return Bert(V, **SIZE | named, generator=init.generator(1))


def masked_model() -> MaskedLanguageModel:
    return MaskedLanguageModel(bert(), generator=init.generator(2))


def tokens(batch: int = 3, time: int = T, key: int = 1) -> Array:
    return init.generator(5, key).integers(0, V, (batch, time))


def masked_targets(inputs: Array) -> Array:
    targets = tokens(len(inputs), key=2)
    targets[init.generator(6).random(inputs.shape) > 0.3] = -100
    return targets


class TestGpt:
    def test_tied_weight_is_one_parameter(self) -> None:
        model = gpt()
        per_layer = 12 * C * C + 13 * C
        assert FlatParameters(model.parameters()).size == V * C + T * C + 2 * per_layer + 2 * C
        assert not any("head" in name for name in model.state_dict())

    @pytest.mark.parametrize(("width", "std"), [(48, 0.08), (192, 0.04), (768, 0.02)])
    def test_starts_as_gpt2_does_at_its_width(self, width: int, std: float) -> None:
        model = Gpt(300, layers=2, heads=2, width=width, context=50, generator=init.generator(1))
        for name, array in model.state_dict().items():
            is_residual = name.endswith(("out_proj.weight", "linear2.weight"))
            expected = 0.0 if array.ndim == 1 else 0.02 if "embedding" in name else std / 2 if is_residual else std
            assert array.std() == pytest.approx(expected, rel=0.05), name

    def test_logits_depend_on_the_past_only(self) -> None:
        model, inputs = gpt(), tokens()
        before = model(Tensor(inputs)).data
        inputs[:, 10] = (inputs[:, 10] + 1) % V
        after = model(Tensor(inputs)).data
        np.testing.assert_allclose(after[:, :10], before[:, :10], atol=1e-6)
        assert not np.allclose(after[:, 10:], before[:, 10:], atol=1e-4)

    def test_loss_is_the_mean_over_all_tokens(self) -> None:
        model, inputs, targets = gpt(), Tensor(tokens()), Tensor(tokens(key=2))
        expected = F.cross_entropy(model(inputs).transpose(1, 2), targets)
        assert model.loss(inputs, targets).item() == pytest.approx(expected.item(), rel=1e-6)
        total = model.loss(inputs, targets, reduction="sum").item()
        assert total == pytest.approx(expected.item() * targets.numel(), rel=1e-5)

    def test_gradient_has_the_same_bits_again_whatever_the_slot_held(self) -> None:
        model, inputs, targets = gpt(dropout=0.1), Tensor(tokens()), Tensor(tokens(key=2))
        flat = FlatParameters(model.parameters())
        gradients = []
        for number in range(2):
            flat.gradient[:] = number
            flat.bind_gradient(flat.gradient)
            philox.seed(1)
            model.loss(inputs, targets).backward()
            gradients.append(flat.gradient.copy())
        assert np.isfinite(gradients[0]).all()
        np.testing.assert_array_equal(gradients[0], gradients[1])

    def test_too_long_a_text_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"tokens have shape \(1, 17\), expected \(batch, at most 16\)"):
            gpt()(Tensor(tokens(1, T + 1)))


class TestGenerate:
    def test_without_a_generator_takes_the_most_likely(self) -> None:
        model, start = gpt(), tokens(2, 5)
        got = model.generate(start, 4)
        assert got.shape == (2, 9)
        assert got.dtype == start.dtype
        np.testing.assert_array_equal(got[:, :5], start)
        for time in range(5, 9):
            np.testing.assert_array_equal(got[:, time], model(Tensor(got[:, :time])).data[:, -1].argmax(-1))

    @pytest.mark.parametrize(
        "named", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-6}], ids=str
    )
    def test_narrowest_choice_is_the_most_likely(self, named: dict[str, Any]) -> None:
        model, start = gpt(), tokens(2, 5)
        got = model.generate(start, 4, **named, generator=init.generator(1))
        np.testing.assert_array_equal(got, model.generate(start, 4))

    def test_same_generator_gives_the_same_text(self) -> None:
        model, start = gpt(dropout=0.5), tokens(2, 5)
        texts = [model.generate(start, 30, top_k=20, top_p=0.9, generator=init.generator(s)) for s in (1, 1, 2)]
        np.testing.assert_array_equal(texts[0], texts[1])
        assert not np.array_equal(texts[0], texts[2])
        assert model.training, "it is in the mode that it was in"

    def test_sees_the_newest_tokens_only(self) -> None:
        model, start = gpt(), tokens(1, 2 * T)
        np.testing.assert_array_equal(model.generate(start, 3)[:, -3:], model.generate(start[:, T:], 3)[:, -3:])

    def test_probabilities_are_those_of_the_kept_tokens(self) -> None:
        logits = np.log(np.array([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]], np.float32))
        np.testing.assert_allclose(_probabilities(logits, None, None), np.exp(logits), rtol=1e-6)
        two = np.array([[0, 4 / 7, 0, 3 / 7], [0.5, 0.5, 0, 0]])
        one = np.array([[0, 1, 0, 0], [0.5, 0.5, 0, 0]])
        np.testing.assert_allclose(_probabilities(logits, 2, None), two, rtol=1e-6)
        np.testing.assert_allclose(_probabilities(logits, None, 0.45), two, rtol=1e-6)
        np.testing.assert_allclose(_probabilities(logits, 3, 0.4), one, rtol=1e-6)

    def test_tokens_are_drawn_as_often_as_they_are_likely(self) -> None:
        model = gpt()
        start = np.repeat(tokens(1, 5), 4000, axis=0)
        drawn = model.generate(start, 1, temperature=0.1, top_k=3, generator=init.generator(1))[:, -1]
        expected = _probabilities(model(Tensor(start[:1])).data[:, -1] / np.float32(0.1), 3, None)[0]
        np.testing.assert_allclose(np.bincount(drawn, minlength=V) / 4000, expected, atol=0.03)

    @pytest.mark.parametrize(
        ("named", "message"),
        [
            ({"temperature": -1.0}, "temperature is -1.0, expected 0 or more"),
            ({"top_k": 0}, "top_k is 0, expected at least 1"),
            ({"top_p": 0.0}, "top_p is 0.0, expected above 0, at most 1"),
        ],
    )
    def test_senseless_choices_are_refused(self, named: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            gpt().generate(tokens(), 1, **named)

    def test_text_of_no_tokens_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"tokens are int64 of shape \(1, 0\), expected integers \(batch, time\)"):
            gpt().generate(tokens(1, 0), 1)


class TestBert:
    def test_padding_changes_nothing(self) -> None:
        model, inputs = bert(), tokens()
        mask = np.ones((3, T), np.int64)
        mask[:, 12:] = 0
        padded = model(Tensor(inputs), attention_mask=Tensor(mask)).data[:, :12]
        np.testing.assert_allclose(padded, model(Tensor(inputs[:, :12])).data, rtol=1e-4, atol=1e-5)

    def test_logits_at_positions_are_those_of_all(self) -> None:
        model, inputs = masked_model(), Tensor(tokens())
        positions = np.array([40, 3, 17])
        some = model(inputs, positions=positions).data
        assert some.shape == (3, V)
        np.testing.assert_allclose(some, model(inputs).data.reshape(-1, V)[positions], rtol=1e-4, atol=1e-6)

    def test_loss_at_masked_positions_is_that_over_all(self) -> None:
        model, inputs = masked_model(), tokens()
        targets = masked_targets(inputs)
        flat = FlatParameters(model.parameters())
        loss = model.loss(Tensor(inputs), Tensor(targets))
        loss.backward()
        masked = flat.gradient.copy()
        flat.bind_gradient(flat.gradient)
        expected = F.cross_entropy(model(Tensor(inputs)).transpose(1, 2), Tensor(targets))
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        np.testing.assert_allclose(masked, flat.gradient, rtol=1e-3, atol=1e-6)

    def test_tied_weight_is_one_parameter(self) -> None:
        names = [name for name, _ in masked_model().named_parameters()]
        assert sum("token_embedding" in name or "decoder" in name for name in names) == 1

    def test_too_long_a_text_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"tokens have shape \(1, 17\), expected \(batch, at most 16\)"):
            bert()(Tensor(tokens(1, T + 1)))


def huggingface(name: str, **config: Any) -> Any:
    """A model of Hugging Face's with random weights, all of them: none is left at zero or one."""
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        kind = "GPT2Config" if name.startswith("GPT2") else "BertConfig"
        torch.manual_seed(1)
        model = getattr(transformers, name)(getattr(transformers, kind)(vocab_size=V, **config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


BERT_CONFIG: dict[str, Any] = {
    "hidden_size": C,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 4 * C,
    "max_position_embeddings": T,
}


@pytest.mark.torch
class TestHuggingFace:
    @pytest.mark.parametrize("name", ["GPT2LMHeadModel", "GPT2Model"])
    def test_gpt2_gives_the_same_logits(self, name: str) -> None:
        torch = pytest.importorskip("torch")
        theirs = huggingface(name, n_positions=T, n_embd=C, n_layer=2, n_head=3)
        ours = gpt()
        ours.load_huggingface(theirs.state_dict())
        got, inputs = ours(Tensor(tokens())).data, torch.tensor(tokens())
        with torch.no_grad():
            if name == "GPT2Model":
                expected = theirs(inputs).last_hidden_state @ theirs.wte.weight.T
            else:
                expected = theirs(inputs).logits
        np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-4)

    def test_gpt2_generates_the_same_text(self) -> None:
        torch = pytest.importorskip("torch")
        theirs = huggingface("GPT2LMHeadModel", n_positions=T, n_embd=C, n_layer=2, n_head=3)
        ours, start = gpt(), tokens(2, 4)
        ours.load_huggingface(theirs.state_dict())
        text = torch.tensor(start)
        with torch.no_grad():
            for _ in range(8):
                text = torch.cat([text, theirs(text).logits[:, -1:].argmax(-1)], 1)
        np.testing.assert_array_equal(ours.generate(start, 8), text.numpy())

    def test_bert_gives_the_same_hidden_states(self) -> None:
        torch = pytest.importorskip("torch")
        theirs, ours = huggingface("BertModel", **BERT_CONFIG), bert()
        ours.load_huggingface(theirs.state_dict())
        with torch.no_grad():
            expected = theirs(torch.tensor(tokens())).last_hidden_state.numpy()
        np.testing.assert_allclose(ours(Tensor(tokens())).data, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForSequenceClassification"])
    def test_bert_gives_the_same_logits(self, name: str) -> None:
        torch = pytest.importorskip("torch")
        labels = {} if name == "BertForMaskedLM" else {"num_labels": 4}
        theirs = huggingface(name, **BERT_CONFIG, **labels)
        ours: Any = SequenceClassifier(bert(), 4, generator=init.generator(2)) if labels else masked_model()
        ours.load_huggingface(theirs.state_dict())
        types, mask = np.arange(3 * T).reshape(3, T) % 3 % 2, np.ones((3, T), np.int64)
        mask[1, 9:] = 0
        got = ours(Tensor(tokens()), Tensor(types), Tensor(mask)).data
        with torch.no_grad():
            expected = theirs(
                torch.tensor(tokens()), token_type_ids=torch.tensor(types), attention_mask=torch.tensor(mask)
            ).logits.numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_missing_names_are_said() -> None:
    with pytest.raises(ValueError, match=r"load_huggingface: missing \['h\.0\.attn\.c_attn\.bias'"):
        gpt().load_huggingface({})
    with pytest.raises(ValueError, match=r"load_huggingface: missing \['embeddings\.LayerNorm\.bias'"):
        bert().load_huggingface({})


# Our names to those of benchmarks.pytorch's model.
TORCH_NAMES = {
    "token_embedding": "tokens",
    "position_embedding": "positions",
    "type_embedding": "types",
    "layers": "blocks",
    "self_attn.in_proj_": "qkv.",
    "self_attn.out_proj": "projection",
}


def batches(kind: str, steps: int) -> list[tuple[Array, Array]]:
    """Texts with a rule to learn; new ones each step, for to learn one by heart is chaotic in float32."""
    rows = []
    for number in range(steps):
        text = (tokens(8, 1, key=number) + 3 * np.arange(T + 1)) % 10
        inputs, targets = text[:, :-1].copy(), text[:, 1:].copy()
        if kind == "bert":
            hidden = init.generator(6, number).random(inputs.shape) < 0.3
            targets = np.where(hidden, inputs, -100)
            inputs[hidden] = 0
        rows.append((inputs, targets))
    return rows


def same_start(torch: Any, ours: Module, workload: Workload) -> Any:
    """PyTorch's model with our weights."""
    from benchmarks.pytorch import torch_model

    theirs = torch_model(workload)
    state = theirs.state_dict()
    for name, array in ours.state_dict().items():
        if isinstance(ours, MaskedLanguageModel):
            name = f"head_{name}" if name.startswith("norm.") else name.removeprefix("bert.")
        for mine, other in TORCH_NAMES.items():
            name = name.replace(mine, other)
        state[name] = torch.tensor(array)
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_training_follows_pytorchs(kind: str) -> None:
    torch = pytest.importorskip("torch")
    ours: Any = gpt() if kind == "gpt" else masked_model()
    theirs = same_start(torch, ours, Workload(kind, batch=8, layers=2, width=C, heads=3, time=T, vocabulary=V))
    optimizer = optim.Adam(ours.parameters(), lr=1e-3)
    reference = torch.optim.Adam(theirs.parameters(), lr=1e-3)
    got, expected = [], []
    for inputs, targets in batches(kind, 200):
        optimizer.zero_grad()
        loss = ours.loss(Tensor(inputs), Tensor(targets))
        loss.backward()
        optim.clip_grad_norm_(ours.parameters(), 1.0)
        optimizer.step()
        got.append(loss.item())

        reference.zero_grad()
        value = torch.nn.functional.cross_entropy(
            theirs(torch.tensor(inputs)).flatten(0, 1), torch.tensor(targets).flatten()
        )
        value.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        reference.step()
        expected.append(value.item())
    assert np.mean(expected[-20:]) < 0.95 * expected[0]
    np.testing.assert_allclose(got, expected, rtol=1e-4)


class TestGradientCheckpointing:
    """The digests in test_exactness do not move; here is what it is for."""

    IMAGES, TEXT, ROWS = (8, 4, 12, 12), (8, 32), (256, 64)
    MODELS: Mapping[str, tuple[Mapping[str, Any], tuple[int, ...], float]] = {
        # what is built, a batch's shape, and the share of the activations that may be left
        "mlp": ({"hidden": [64] * 6, "activation": "gelu"}, ROWS, 0.6),
        "cnn": ({"stages": [8], "blocks": 6}, IMAGES, 0.6),
        "gpt": ({"layers": 8, "heads": 2, "width": 32, "context": 32}, TEXT, 0.25),
        "bert": ({"layers": 8, "heads": 2, "width": 32, "context": 32}, TEXT, 0.25),
    }

    @pytest.mark.parametrize("kind", MODELS)
    def test_layers_keep_little_more_than_their_inputs(self, kind: str) -> None:
        settings, shape, share = self.MODELS[kind]
        spec = ModelSpec.model_validate({kind: settings})
        integers = kind in ("gpt", "bert")
        batch = Tensor(np.ones(shape, np.int64) if integers else init.generator(1).standard_normal(shape, np.float32))
        kept = []
        for again in (False, True):
            model = build(
                spec,
                input_shape=shape[1:],
                num_outputs=10,
                gradient_checkpointing=again,
                generator=init.generator(1),
            )
            model(batch)  # what is made once is made before
            tracemalloc.start()
            out = model(batch)
            kept.append(tracemalloc.get_traced_memory()[0])
            tracemalloc.stop()
            assert out.requires_grad
        assert kept[1] < share * kept[0]


@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_a_step_leaves_no_cycles(kind: str) -> None:
    """So that Python need not look for them: what a step used is free as soon as it is over."""
    model, inputs, targets = gpt() if kind == "gpt" else masked_model(), tokens(), tokens(key=2)

    def step() -> None:
        model.loss(Tensor(inputs), Tensor(targets)).backward()

    step()
    gc.collect()
    gc.disable()
    try:
        step()
        assert gc.collect() == 0
    finally:
        gc.enable()
