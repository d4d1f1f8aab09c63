"""Synthesis: the paper's objective, seeded, resumable, over valid frames only."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import BLOCKS, checkpoint
from torch.distributions import Normal, kl_divergence

from zqlib import synthesis
from zqlib.batch_statistics import layer_statistics
from zqlib.errors import InputError
from zqlib.models import CTCModel
from zqlib.models.jasper import BlockConfig
from zqlib.models.layers import BatchNorm
from zqlib.noise import noise_batches, pink_noise, speech_shaped_noise
from zqlib.synthesis import (
    REDUCED,
    SynthesisConfig,
    SyntheticBatch,
    as_calibration,
    synthesize,
)

N_MELS = 64
CONFIG = SynthesisConfig(batches=2, batch_size=3, frames=48, min_frames=20, steps=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CTCModel:
    return checkpoint(tmp_path_factory.mktemp("model"))


def run(model: CTCModel, cache: Path | None = None, **changes: Any) -> list[SyntheticBatch]:
    return synthesize(model.network, N_MELS, replace(CONFIG, **changes), cache, progress=False)


def same(a: list[SyntheticBatch], b: list[SyntheticBatch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(vars(x)[name], vars(y)[name])
        for x, y in zip(a, b, strict=True)
        for name in ("features", "lengths", "loss")
    )


@pytest.mark.parametrize(("deviation", "eps"), [("model", 1e-3), ("authors", 1e-6)])
def test_the_loss_is_the_kl_divergence_of_every_layer(
    model: CTCModel, deviation: str, eps: float
) -> None:
    (batch,) = run(model, batches=1, steps=0, deviation=deviation)
    assert batch.loss.shape[0] == 1
    found = layer_statistics(model.network, batch.features, batch.lengths)
    for loss, (name, (mean, variance)) in zip(batch.loss[0], found.items(), strict=True):
        norm = model.network.get_submodule(name)
        assert isinstance(norm, BatchNorm)
        stored = Normal(norm.running_mean, torch.sqrt(norm.running_var + eps))
        batchwise = Normal(mean, torch.sqrt(variance + eps))
        torch.testing.assert_close(loss, kl_divergence(stored, batchwise).mean())


def test_every_batch_norm_counts_and_those_of_residual_branches_too(model: CTCModel) -> None:
    norms = [n for n, m in model.network.named_modules() if isinstance(m, BatchNorm)]
    (batch,) = run(model, batches=1, steps=0)
    assert any(".res." in name for name in norms)
    assert list(layer_statistics(model.network, batch.features, batch.lengths)) == norms
    assert batch.loss.shape == (1, len(norms))


def test_statistics_are_those_of_the_valid_frames_alone(model: CTCModel) -> None:
    """Utterance by utterance, nothing is padded: their concatenation is the truth."""
    (batch,) = run(model, batches=1, steps=0)
    assert batch.lengths.unique().numel() > 1
    inputs: dict[str, list[torch.Tensor]] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: inputs.setdefault(name, []).append(args[0][0, :, 0])
        )
        for name, module in model.network.named_modules()
        if isinstance(module, BatchNorm)
    ]
    for features, length in zip(batch.features, batch.lengths, strict=True):
        model.network(features[None, :, :length], length[None])
    for handle in handles:
        handle.remove()
    found = layer_statistics(model.network, batch.features, batch.lengths)
    for name, parts in inputs.items():
        frames = torch.cat(parts, dim=1).double()
        variance, mean = torch.var_mean(frames, dim=1, correction=0)
        torch.testing.assert_close(found[name][0].double(), mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found[name][1].double(), variance, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_loss_falls(model: CTCModel, bfloat16: bool) -> None:
    for batch in run(model, steps=30, bfloat16=bfloat16):
        total = batch.loss.sum(1)
        assert total.shape == (31,)
        assert total[-1] < 0.8 * total[0]


def test_shapes_and_silence_beyond_each_length(model: CTCModel) -> None:
    for batch in run(model, batch_size=6):
        assert batch.features.shape == (6, N_MELS, 48) and batch.features.dtype == torch.float32
        assert batch.lengths.dtype == torch.int64
        assert 20 <= int(batch.lengths.min()) < int(batch.lengths.max()) <= 48
        for features, length in zip(batch.features, batch.lengths, strict=True):
            assert torch.count_nonzero(features[:, length:]) == 0
            assert torch.count_nonzero(features[:, :length]) > 0


def test_full_length_by_default(model: CTCModel) -> None:
    (batch,) = run(model, batches=1, min_frames=48)
    assert batch.lengths.tolist() == [48] * 3


def test_a_seed_decides_every_bit(model: CTCModel) -> None:
    assert same(run(model), run(model))
    assert not torch.equal(run(model)[0].features, run(model, seed=9)[0].features)


def test_the_squares_are_those_of_means_and_deviations(model: CTCModel) -> None:
    (batch,) = run(model, batches=1, steps=0, objective="squares")
    found = layer_statistics(model.network, batch.features, batch.lengths)
    for loss, (name, (mean, variance)) in zip(batch.loss[0], found.items(), strict=True):
        norm = model.network.get_submodule(name)
        assert isinstance(norm, BatchNorm)
        stored, batchwise = (torch.sqrt(v + norm.eps) for v in (norm.running_var, variance))
        squares = (norm.running_mean - mean) ** 2 + (stored - batchwise) ** 2
        torch.testing.assert_close(loss, squares.mean())


def test_batches_are_independent_and_differ(model: CTCModel) -> None:
    two, three = run(model, batches=2), run(model, batches=3)
    assert same(two, three[:2])
    assert not torch.equal(three[0].features, three[1].features)


def test_the_variants_of_the_deviation_differ(model: CTCModel) -> None:
    assert not same(run(model, deviation="model"), run(model, deviation="authors"))


def test_the_model_is_left_as_it_was(model: CTCModel) -> None:
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    run(model)
    after = model.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(module._forward_pre_hooks for module in model.network.modules())


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the batches that are really computed."""
    numbers: list[int] = []
    original = synthesis._synthesize_batch

    def note(*arguments: Any) -> SyntheticBatch:
        numbers.append(arguments[3])
        return original(*arguments)

    monkeypatch.setattr(synthesis, "_synthesize_batch", note)
    return numbers


def test_finished_batches_are_kept(model: CTCModel, tmp_path: Path, computed: list[int]) -> None:
    first = run(model, tmp_path)
    assert same(first, run(model, tmp_path))
    assert computed == [0, 1]
    assert same(run(model, tmp_path, batches=3)[:2], first)
    assert computed == [0, 1, 2]


def test_an_interrupted_synthesis_goes_on(
    model: CTCModel, tmp_path: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = run(model, batches=3)
    computed.clear()

    class Interrupted(synthesis.tqdm):  # type: ignore[name-defined,misc]
        def update(self, n: float | None = 1) -> bool | None:
            if self.n >= 6:  # within the second batch
                raise KeyboardInterrupt
            return super().update(n)  # type: ignore[no-any-return]

    with monkeypatch.context() as patch:
        patch.setattr(synthesis, "tqdm", lambda **o: Interrupted(**o | {"disable": False}))
        with pytest.raises(KeyboardInterrupt):
            run(model, tmp_path, batches=3)
    assert computed == [0, 1]
    assert len(list(tmp_path.iterdir())) == 1
    assert same(run(model, tmp_path, batches=3), undisturbed)
    assert computed == [0, 1, 1, 2]


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "folder"])
def test_a_damaged_batch_is_made_again(model: CTCModel, tmp_path: Path, damage: str) -> None:
    undisturbed = run(model, tmp_path)
    path = min(tmp_path.iterdir())
    content = path.read_bytes()
    if damage == "folder":
        with pytest.raises(InputError, match="cannot be written"):
            path.unlink()
            path.mkdir()
            run(model, tmp_path)
        return
    path.write_bytes({"empty": b"", "cut": content[:-7], "text": b"no tensors"}[damage])
    assert same(run(model, tmp_path), undisturbed)
    assert path.read_bytes() == content


def variants(tmp_path: Path) -> Iterator[tuple[str, CTCModel, dict[str, Any]]]:
    plain = checkpoint(tmp_path)
    yield "weights", checkpoint(tmp_path, seed=1), {}
    dilated = (*BLOCKS[:1], BlockConfig(8, 2, 3, dilation=2, residual=True, separable=True),
               *BLOCKS[2:])  # fmt: skip
    yield "a dilation, with the same weights", checkpoint(tmp_path, blocks=dilated), {}
    for change in (
        {"seed": 1}, {"steps": 5}, {"frames": 49}, {"min_frames": 21}, {"deviation": "authors"},
        {"learning_rate": 0.04}, {"init_amplitude": 0.2}, {"patience": 1}, {"batch_size": 4},
        {"initialisation": "pink"}, {"initialisation": "speech"}, {"bfloat16": True},
        {"objective": "squares"}, {"joint": True}, {"entropy": 1.0}, {"smoothness": 1.0},
    ):  # fmt: skip
        yield str(change), plain, change


def test_the_cache_holds_apart_whatever_matters(tmp_path: Path, computed: list[int]) -> None:
    cache = tmp_path / "cache"
    run(checkpoint(tmp_path), cache, batches=1)
    for count, (reason, model, change) in enumerate(variants(tmp_path), start=2):
        run(model, cache, **{"batches": 1} | change)
        assert len(computed) == len(list(cache.iterdir())) == count, reason


def test_a_network_without_batch_norm_is_refused() -> None:
    class Plain(torch.nn.Module):
        def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            return features

    with pytest.raises(InputError, match="no BatchNorm"):
        synthesize(Plain(), N_MELS, CONFIG, progress=False)


def test_divergence_is_said(model: CTCModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="smaller learning rate"):
        run(model, tmp_path, learning_rate=1e30)
    assert list(tmp_path.iterdir()) == []


def test_a_config_survives_json() -> None:
    config = replace(CONFIG, seed=5, deviation="authors", learning_rate=0.2)
    assert SynthesisConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert SynthesisConfig.from_json({}) == SynthesisConfig()
    with pytest.raises(InputError, match="unknown key 'step'"):
        SynthesisConfig.from_json({"step": 3})


def test_the_defaults_are_the_authors() -> None:
    default = SynthesisConfig()
    assert (default.batches, default.batch_size, default.frames) == (20, 8, 500)
    assert REDUCED.batches * REDUCED.steps < default.batches * default.steps


@pytest.mark.parametrize(
    "bad",
    [
        {"batches": 0}, {"batches": 1.5}, {"batches": True}, {"batch_size": -1}, {"frames": "500"},
        {"min_frames": 0}, {"min_frames": 501}, {"steps": -1}, {"steps": None}, {"patience": 0},
        {"learning_rate": 0}, {"learning_rate": "fast"}, {"learning_rate": float("nan")},
        {"learning_rate": float("inf")}, {"min_learning_rate": -1}, {"init_amplitude": 0},
        {"init_amplitude": None}, {"initialisation": "white"}, {"deviation": "both"},
        {"initialisation": "pink", "frames": 1, "min_frames": 1}, {"deviation": ["model"]},
        {"initialisation": "speech", "frames": 1, "min_frames": 1},
        {"objective": "l1"}, {"joint": 1}, {"entropy": -1}, {"smoothness": float("nan")},
        {"layer_norm": "much"}, {"smoothness": 1, "min_frames": 1},
        {"seed": -1}, {"bfloat16": "yes"},
        {"seed": "x"}, {"seed": 10**30}, {"seed": None}, ["steps"], 5, "steps",
    ],
    ids=str,
)  # fmt: skip
def test_impossible_configs_are_refused(bad: Any) -> None:
    with pytest.raises(InputError):
        SynthesisConfig.from_json(bad)


def test_noise_is_standard_seeded_and_full_length() -> None:
    noise = noise_batches(N_MELS, 2, 4, 100, seed=3)
    again = noise_batches(N_MELS, 2, 4, 100, seed=3)
    other = noise_batches(N_MELS, 2, 4, 100, seed=4)
    assert not torch.equal(noise[0][0], noise[1][0])
    assert not torch.equal(noise[0][0], other[0][0])
    for (features, lengths), (repeated, _) in zip(noise, again, strict=True):
        assert features.shape == (4, N_MELS, 100) and lengths.tolist() == [100] * 4
        assert torch.equal(features, repeated)
        assert abs(float(features.mean())) < 0.03 and abs(float(features.std()) - 1) < 0.03


def test_calibration_takes_features_and_lengths(model: CTCModel) -> None:
    batches = run(model)
    pairs = as_calibration(batches)
    assert all(
        p[0] is b.features and p[1] is b.lengths for p, b in zip(pairs, batches, strict=True)
    )


def test_pink_noise_is_normalised_and_changes_slowly(model: CTCModel) -> None:
    batch = run(model, batches=1, steps=0, frames=200, min_frames=200, initialisation="pink")[0]
    features = batch.features
    assert features.mean(2).abs().max() < 1e-5
    assert (features.std(2) - 1).abs().max() < 1e-5
    white = run(model, batches=1, steps=0, frames=200, min_frames=200)[0].features
    for axis in (1, 2):  # neighbours in band and in time resemble each other
        step = features.diff(dim=axis).square().mean() / features.square().mean()
        white_step = white.diff(dim=axis).square().mean() / white.square().mean()
        assert step < 0.6 < 1.9 < white_step


def test_speech_shaped_noise_has_phrases_and_pauses() -> None:
    def start(noise: Callable[..., torch.Tensor], seed: int = 0) -> torch.Tensor:
        return noise((8, 64, 500), torch.Generator().manual_seed(seed))

    speech, pink = start(speech_shaped_noise), start(pink_noise)
    assert torch.equal(speech, start(speech_shaped_noise))
    assert not torch.equal(speech, start(speech_shaped_noise, seed=1))
    assert speech.mean(2).abs().max() < 1e-5
    assert (speech.std(2) - 1).abs().max() < 1e-5
    # all bands are loud, and quiet, together
    assert speech.mean(1).var(1).mean() > 1.3 * pink.mean(1).var(1).mean()

    def contrast(features: torch.Tensor) -> torch.Tensor:  # of lively and quiet moments
        low, high = features.diff(dim=2).abs().mean(1).quantile(torch.tensor([0.1, 0.9]), dim=1)
        return (high / low).min()

    assert contrast(speech) > 2 > contrast(pink)


def test_a_start_of_few_frames_is_finite(model: CTCModel) -> None:
    features = run(model, batches=1, steps=0, frames=2, min_frames=2, initialisation="speech")
    assert features[0].features.isfinite().all()
