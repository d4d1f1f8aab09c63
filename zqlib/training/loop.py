"""Training of the mini models: seeded, resumable, on a CPU.

A run that is killed and started again ends with the weights of one that was not: order,
distortions and dropout of a step hang on the seed and the step alone, and a checkpoint holds the
optimiser as well. On a machine that others use too, set OMP_WAIT_POLICY=PASSIVE: threads that spin
while they wait for one that has lost its core make a step ten times slower.
"""

import hashlib
import inspect
import math
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jiwer
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from zqlib import audio
from zqlib.audio import MelConfig, MelFrontEnd, load_audio
from zqlib.corpora import augment
from zqlib.corpora.manifest import Utterance, read_manifest
from zqlib.corpora.mini import SPLIT_SIZES, build_mini_corpus
from zqlib.errors import InputError
from zqlib.evaluation import greedy_ctc
from zqlib.files import atomic_output, read_json, sha256_file, write_json
from zqlib.models import Network
from zqlib.models.conformer import ConformerCTC
from zqlib.models.jasper import JasperConfig, JasperCTC
from zqlib.models.nemo import load_state, read_nemo, write_nemo
from zqlib.training.config import LABELS, TrainingConfig, nemo_config
from zqlib.training.data import Batch, Example, distort, load_examples, make_batch, plan_epoch
from zqlib.training.depthwise import FastDepthwiseGradient

__all__ = ["evaluate_wer", "train"]

_BLANK = len(LABELS)


def train(
    config: TrainingConfig,
    output: Path,
    work_dir: Path,
    an4_train: Path | None = None,
    an4_test: Path | None = None,
    initial: Path | None = None,
) -> dict[str, Any]:
    """Train a model and write it with its record.

    The checkpoint with the lowest WER on held-out training data (mini utterances and, where given,
    speakers of AN4's training set) is kept. The test splits are scored once, at the end.

    Args:
        config: the run.
        output: the `.nemo` to write; the record goes beside it as `.json`.
        work_dir: corpus and checkpoints; start again with the same one to resume.
        an4_train: manifest of AN4's training set, to train on real speech too.
        an4_test: manifest of AN4's test set, only scored at the end.
        initial: a `.nemo` of an earlier round to start from, with its record beside it, which is
            carried over into the new one; None starts from random weights.

    Returns:
        the training record.

    Raises:
        InputError: unreadable data, checkpoints in `work_dir` of another run, or an `initial` model
            of another shape.
    """
    started, started_cpu = time.perf_counter(), time.process_time()
    torch.set_num_threads(config.threads)
    sizes = {**SPLIT_SIZES, "train": config.mini_utterances}
    manifests = build_mini_corpus(work_dir / "mini", list(sizes), sizes=sizes)
    digests = _digests(manifests, an4_train, initial)
    mel = MelConfig()
    trained = _TrainingData.load(config, manifests, an4_train, MelFrontEnd(mel), work_dir)

    torch.manual_seed(config.seed)
    network = _network(config)
    earlier = None
    if initial is not None:
        load_state(network, read_nemo(initial).state, str(initial))
        earlier = read_json(initial.with_suffix(".json"))
    run = _Run(config, network, work_dir / "checkpoint.pt", digests)
    run.resume()
    progress = tqdm(total=config.steps, initial=run.step, desc="training", unit="step")
    while run.step < config.steps:
        losses = []
        while True:
            losses.append(run.take_step(trained.batch(run.step, mel.pad_to)))
            progress.update()
            if run.step % config.checkpoint_every == 0 or run.step == config.steps:
                break
        wer_pct = evaluate_wer(network, trained.held_out)
        run.wall_minutes += (time.perf_counter() - started) / 60  # preparation included
        run.cpu_minutes += (time.process_time() - started_cpu) / 60
        started, started_cpu = time.perf_counter(), time.process_time()
        run.note(sum(losses) / len(losses), wer_pct)
        progress.set_postfix(loss=f"{run.history[-1]['loss']:.3f}", held_out_wer_pct=wer_pct)
    progress.close()

    network.load_state_dict(run.best_state)
    write_nemo(output, nemo_config(config.encoder, mel), {**_nemo_constants(mel), **run.best_state})
    tests = {"mini-clean": manifests["mini-clean"], "mini-other": manifests["mini-other"]}
    if an4_test is not None:
        tests["an4-test"] = an4_test
    record = {
        "config": config.to_json(),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "checkpoint_sha256": sha256_file(output),
        "data_sha256": run.digests,
        "training_minutes": round(run.wall_minutes, 2),
        "cpu_minutes": round(run.cpu_minutes, 2),
        "earlier_round": earlier,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "kept_step": run.best_step,
        "history": run.history,
        "tests": {name: _test_score(network, path, mel) for name, path in tests.items()},
    }
    write_json(output.with_suffix(".json"), record)
    return record


class _TrainingData:
    """Examples of both corpora and the epochs planned over them."""

    def __init__(
        self,
        config: TrainingConfig,
        mini: list[Example],
        an4: list[Example],
        held_out: list[Example],
    ) -> None:
        self.config, self.examples, self.held_out = config, mini + an4, held_out
        self.repeats = [1] * len(mini) + [config.an4_repeats] * len(an4)
        self._epoch, self._plan = -1, list[list[tuple[int, int]]]()
        self.batches_per_epoch = len(self._plan_of(0))

    @classmethod
    def load(
        cls,
        config: TrainingConfig,
        manifests: Mapping[str, Path],
        an4_train: Path | None,
        front_end: MelFrontEnd,
        work_dir: Path,
    ) -> "_TrainingData":
        def load(name: str, utterances: list[Utterance], n_variants: int) -> list[Example]:
            key = repr((utterances, n_variants, config.seed, front_end.config, _digest_of_code()))
            cache = work_dir / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.features.pt"
            return load_examples(utterances, n_variants, front_end, config.seed, cache)

        mini = load("mini", read_manifest(manifests["train"]), config.mini_variants)
        n_kept = len(mini) - config.mini_held_out
        mini, mini_held_out = mini[:n_kept], mini[n_kept:]
        if an4_train is None:
            if not mini_held_out:
                raise InputError("Without AN4, mini_held_out must be positive.")
            return cls(config, mini, [], mini_held_out)
        tests = ("mini-clean", "mini-other")
        test_texts = {u.text for split in tests for u in read_manifest(manifests[split])}
        kept, held_out = _split_speakers(read_manifest(an4_train), config.an4_held_out_every)
        kept = [utterance for utterance in kept if utterance.text not in test_texts]
        an4 = load("an4", kept, config.an4_variants)
        return cls(config, mini, an4, mini_held_out + load("held-out", held_out, 1))

    def batch(self, step: int, pad_to: int) -> Batch:
        epoch, position = divmod(step, self.batches_per_epoch)
        visits = self._plan_of(epoch)[position]
        mask = (self.config.mask_mels, self.config.mask_frames)
        return make_batch(self.examples, visits, pad_to, mask, self.config.seed, step)

    def _plan_of(self, epoch: int) -> list[list[tuple[int, int]]]:
        if epoch != self._epoch:
            self._epoch = epoch
            self._plan = plan_epoch(
                self.examples, self.repeats, self.config.batch_size, self.config.seed, epoch
            )
        return self._plan


class _Run:
    """The state of a training run: what a checkpoint holds."""

    def __init__(
        self, config: TrainingConfig, network: Network, checkpoint: Path, digests: dict[str, str]
    ) -> None:
        self.config, self.network, self.checkpoint, self.digests = (
            config,
            network,
            checkpoint,
            digests,
        )
        # decay pulls weights of convolutions only, not normalisation and biases
        groups: list[dict[str, Any]] = [
            {"params": [p for p in network.parameters() if p.ndim > 1]},
            {"params": [p for p in network.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(
            groups,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.98),
        )
        self.step, self.wall_minutes, self.cpu_minutes = 0, 0.0, 0.0
        self.history: list[dict[str, Any]] = []
        self.best_step, self.best_wer_pct = 0, math.inf
        self.best_state: dict[str, Tensor] = {}

    def take_step(self, batch: Batch) -> float:
        """One optimiser step; returns the loss per character."""
        config, network = self.config, self.network
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate * _schedule(
                self.step / config.steps, config.warmup_share
            )
        torch.manual_seed(config.seed * 1_000_003 + self.step)  # of dropout
        network.train()
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16)
        with autocast, FastDepthwiseGradient():
            log_probs, lengths = network(batch.features, batch.lengths)
        loss = functional.ctc_loss(
            log_probs.float().transpose(0, 1),
            batch.targets,
            lengths,
            batch.target_lengths,
            blank=_BLANK,
            zero_infinity=True,
        )
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.gradient_norm)
        self.optimiser.step()
        self.step += 1
        return float(loss.detach())

    def note(self, loss: float, wer_pct: float) -> None:
        """Enter a validation in the history, keep the best weights, write a checkpoint."""
        self.history.append(
            {
                "step": self.step,
                "loss": round(loss, 4),
                "held_out_wer_pct": wer_pct,
                "minutes": round(self.wall_minutes, 2),
            }
        )
        if wer_pct <= self.best_wer_pct:
            self.best_step, self.best_wer_pct = self.step, wer_pct
            self.best_state = {k: v.clone() for k, v in self.network.state_dict().items()}
        state = {
            "config": self.config.to_json(),
            "digests": self.digests,
            "step": self.step,
            "wall_minutes": self.wall_minutes,
            "cpu_minutes": self.cpu_minutes,
            "history": self.history,
            "best_step": self.best_step,
            "best_wer_pct": self.best_wer_pct,
            "best_state": self.best_state,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        with atomic_output(self.checkpoint) as temporary:
            torch.save(state, temporary)

    def resume(self) -> None:
        """Take up the checkpoint, if there is one.

        Raises:
            InputError: it is unreadable, or of another config or other data.
        """
        if not self.checkpoint.is_file():
            return
        try:
            state = torch.load(self.checkpoint, weights_only=True)
        except Exception as error:  # torch raises many types for damaged bytes
            raise InputError(f"{self.checkpoint} is damaged; delete it to train anew.") from error
        if state["config"] != self.config.to_json() or state["digests"] != self.digests:
            raise InputError(
                f"{self.checkpoint} is of another training run; use another work folder."
            )
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        for name in ("step", "wall_minutes", "cpu_minutes", "history", "best_step", "best_wer_pct",
                     "best_state"):  # fmt: skip
            setattr(self, name, state[name])


def evaluate_wer(network: Network, examples: Sequence[Example]) -> float:
    """WER in percent of greedy decoding, one utterance at a time, on undistorted features."""
    network.eval()
    hypotheses = []
    with torch.no_grad():
        for example in examples:
            feature = example.variants[0].float()
            log_probs, _ = network(feature[None], torch.tensor([feature.shape[1]]))
            hypotheses.append(greedy_ctc(log_probs[0].argmax(-1).tolist(), LABELS))
    return round(100 * jiwer.wer([example.text for example in examples], hypotheses), 3)


def _test_score(network: Network, manifest: Path, mel: MelConfig) -> dict[str, Any]:
    front_end, utterances = MelFrontEnd(mel), read_manifest(manifest)
    examples = [
        Example((front_end(load_audio(u.audio_path)),), torch.empty(0), u.text) for u in utterances
    ]
    return {"utterances": len(examples), "wer_pct": evaluate_wer(network, examples)}


def _split_speakers(
    utterances: Sequence[Utterance], every: int
) -> tuple[list[Utterance], list[Utterance]]:
    """Training and held-out utterances; AN4 keeps one folder a speaker."""
    speakers = sorted({utterance.audio_path.parent.name for utterance in utterances})
    held_out = set(speakers[every // 2 :: every])
    kept = [u for u in utterances if u.audio_path.parent.name not in held_out]
    return kept, [u for u in utterances if u.audio_path.parent.name in held_out]


def _schedule(progress: float, warmup_share: float) -> float:
    """Linear warm-up, then a cosine to zero; `progress` in [0, 1)."""
    if progress < warmup_share:
        return (progress + 1e-4) / warmup_share
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup_share) / (1 - warmup_share)))


def _network(config: TrainingConfig) -> Network:
    """With the initial weights that NeMo gives each family."""
    if config.conformer:
        return ConformerCTC(config.conformer)
    network = JasperCTC(JasperConfig(MelConfig().n_mels, config.blocks, len(LABELS)))
    for module in network.modules():
        if isinstance(module, torch.nn.Conv1d):
            torch.nn.init.xavier_uniform_(module.weight)
    return network


def _nemo_constants(mel: MelConfig) -> dict[str, Tensor]:
    """The front-end's window and filter bank, which NeMo expects among the weights."""
    return {
        "preprocessor.featurizer.window": torch.hann_window(
            round(mel.sample_rate * mel.window_size_s), periodic=False
        ),
        "preprocessor.featurizer.fb": MelFrontEnd(mel).filters[None],
    }


def _digests(
    manifests: Mapping[str, Path], an4_train: Path | None, initial: Path | None
) -> dict[str, str]:
    """SHA-256 of all that training starts from."""
    files = {**manifests, "an4-train": an4_train, "initial": initial}
    return {name: sha256_file(path) for name, path in files.items() if path is not None}


def _digest_of_code() -> str:
    """Of the code that decides the features, so that a cache never outlives a change to it."""
    modules = (augment, audio)
    sources = [sha256_file(Path(str(module.__file__))) for module in modules]
    return "".join([*sources, inspect.getsource(distort)])
