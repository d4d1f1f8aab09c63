"""What a synthesis may add to its objective: a term is what it says and lowers what it names."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_conformer
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal, kl_divergence

from zqlib.batch_statistics import divergence, layer_statistics, pooled
from zqlib.errors import InputError
from zqlib.models.conformer import ConformerCTC
from zqlib.models.layers import BatchNorm
from zqlib.objectives import LayerNormInputs, output_entropy, roughness
from zqlib.synthesis import SynthesisConfig, SyntheticBatch, as_calibration, synthesize

CONFIG = SynthesisConfig(
    batches=1, batch_size=2, frames=60, min_frames=40, steps=15, learning_rate=0.3
)
LENGTHS = torch.tensor([30, 2, 17])
TERMS = ("entropy", "smoothness", "layer_norm")


@pytest.fixture(scope="module")
def network() -> ConformerCTC:
    return tiny_conformer.network()


def run(network: nn.Module, **changes: Any) -> list[SyntheticBatch]:
    config = replace(CONFIG, **changes)
    return synthesize(network, tiny_conformer.N_MELS, config, progress=False)


def terms(network: nn.Module, features: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    with LayerNormInputs(network) as layer_norms:
        log_probs, out_lengths = network(features, lengths)
    values = (
        output_entropy(log_probs, out_lengths),
        roughness(features, lengths),
        layer_norms.divergence(out_lengths),
    )
    return dict(zip(TERMS, values, strict=True))


def test_entropy_is_that_of_the_valid_frames() -> None:
    log_probs = torch.randn(3, 30, 7, generator=torch.Generator().manual_seed(0)).log_softmax(2)
    frames = torch.cat([row[:n] for row, n in zip(log_probs, LENGTHS, strict=True)])
    expected = Categorical(logits=frames).entropy().mean()
    torch.testing.assert_close(output_entropy(log_probs, LENGTHS), expected)


def test_roughness_is_that_of_the_valid_frames() -> None:
    features = torch.randn(3, 5, 30, generator=torch.Generator().manual_seed(0))
    steps = [row[:, 1:n] - row[:, : n - 1] for row, n in zip(features, LENGTHS, strict=True)]
    expected = torch.cat(steps, dim=1).square().mean()
    torch.testing.assert_close(roughness(features, LENGTHS), expected)


def test_layer_norms_are_measured_before_their_weights(network: ConformerCTC) -> None:
    """Utterance by utterance, nothing is padded, and the output says what was normalised."""
    norms = [m for m in network.modules() if isinstance(m, nn.LayerNorm)]
    outputs: dict[nn.Module, list[Tensor]] = {norm: [] for norm in norms}
    handles = [
        norm.register_forward_hook(lambda m, _, out: outputs[m].append(out[0])) for norm in norms
    ]
    features, lengths = tiny_conformer.features(), tiny_conformer.LENGTHS
    for row, length in zip(features, lengths, strict=True):
        network(row[None, :, :length], length[None])
    for handle in handles:
        handle.remove()
    expected = torch.zeros(())
    for norm, parts in outputs.items():
        normalised = (torch.cat(parts) - norm.bias) / norm.weight
        deviation = torch.sqrt(normalised.var(0, correction=0) + 1e-3)
        standard = Normal(0.0, 1.001**0.5)
        expected += kl_divergence(standard, Normal(normalised.mean(0), deviation)).mean()
    found = terms(network, features, lengths)["layer_norm"]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("term", TERMS)
def test_the_gradient_reaches_the_features(network: ConformerCTC, term: str) -> None:
    features = tiny_conformer.features().requires_grad_()
    terms(network, features, tiny_conformer.LENGTHS)[term].backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    for gradient, length in zip(features.grad, tiny_conformer.LENGTHS, strict=True):
        assert gradient[:, :length].abs().max() > 0


@pytest.mark.parametrize("term", TERMS)
def test_a_term_lowers_what_it_names(network: ConformerCTC, term: str) -> None:
    without, with_term = (
        terms(network, batch.features, batch.lengths)
        for weight in (0.0, 100.0)
        for batch in run(network, **{term: weight})
    )
    # the random network's outputs, and so their entropy, depend little on its input
    assert with_term[term] < 0.98 * without[term]


def test_no_hook_stays(network: ConformerCTC) -> None:
    run(network, steps=1, layer_norm=1.0)
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_model_without_layer_norm_is_refused() -> None:
    model = nn.Sequential(BatchNorm(3, 1e-3))
    with pytest.raises(InputError, match="no LayerNorm"):
        run(model, layer_norm=0.1)


def test_pooled_statistics_are_those_of_all_frames(network: ConformerCTC) -> None:
    features = tiny_conformer.features()[[0, 0, 0]] + torch.arange(3.0)[:, None, None]
    lengths = torch.full((3,), 120)
    whole, first, rest = (
        layer_statistics(network, features[part], lengths[part])
        for part in (slice(3), slice(1), slice(1, 3))
    )
    together = pooled(first, rest, share=2 / 3)
    assert together.keys() == whole.keys()
    for name, found in whole.items():
        torch.testing.assert_close(together[name], found, rtol=1e-4, atol=1e-5)


def test_a_joint_set_matches_together(network: ConformerCTC) -> None:
    """Its loss is that of all batches at once, and lower than that of batches made alone."""
    losses = []
    for joint in (False, True):
        batches = run(network, batches=3, min_frames=60, joint=joint)
        features, lengths = (torch.cat(part) for part in zip(*as_calibration(batches), strict=True))
        parts = [
            divergence(norm, *found, eps=norm.eps)
            for name, found in layer_statistics(network, features, lengths).items()
            if isinstance(norm := network.get_submodule(name), BatchNorm)
        ]
        losses.append(torch.stack(parts))
    torch.testing.assert_close(batches[-1].loss[-1], losses[1], rtol=1e-3, atol=1e-5)
    assert losses[1].sum() < 0.9 * losses[0].sum()


def test_an_interrupted_joint_set_goes_on(network: ConformerCTC, tmp_path: Path) -> None:
    undisturbed = run(network, batches=3, joint=True, steps=3)
    config = replace(CONFIG, batches=2, joint=True, steps=3)
    synthesize(network, tiny_conformer.N_MELS, config, tmp_path, progress=False)
    config = replace(config, batches=3)
    resumed = synthesize(network, tiny_conformer.N_MELS, config, tmp_path, progress=False)
    for a, b in zip(undisturbed, resumed, strict=True):
        assert torch.equal(a.features, b.features) and torch.equal(a.loss, b.loss)
