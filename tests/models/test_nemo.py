"""`.nemo` archives: NeMo reads what we write, and hostile or damaged ones are refused, not run."""

import copy
import gzip
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from zqlib.audio import pad_features
from zqlib.errors import InputError
from zqlib.models import load_model
from zqlib.models.jasper import JasperConfig, JasperCTC
from zqlib.models.nemo import read_nemo, write_nemo

CONFIG_FILE, WEIGHTS_FILE = "./model_config.yaml", "./model_weights.ckpt"
BLOCK = {
    "filters": 8,
    "repeat": 1,
    "kernel": [3],
    "stride": [1],
    "dilation": [1],
    "dropout": 0.0,
    "residual": False,
    "separable": True,
}
LABELS = [" ", "a", "b", "n", "'"]
CONFIG: dict[str, Any] = {
    "target": "nemo.collections.asr.models.ctc_models.EncDecCTCModel",
    "sample_rate": 16000,
    "labels": LABELS,
    "preprocessor": {
        "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
        "sample_rate": 16000,
        "normalize": "per_feature",
        "window_size": 0.02,
        "window_stride": 0.01,
        "window": "hann",
        "features": 16,
        "n_fft": 512,
        "frame_splicing": 1,
        "dither": 0.0,
        "pad_to": 16,
    },
    "encoder": {
        "_target_": "nemo.collections.asr.modules.ConvASREncoder",
        "feat_in": 16,
        "activation": "relu",
        "conv_mask": True,
        "jasper": [
            BLOCK | {"stride": [2]},
            BLOCK | {"repeat": 2, "residual": True},
            BLOCK | {"filters": 12, "dilation": [2]},
        ],
    },
    "decoder": {
        "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
        "feat_in": 12,
        "num_classes": len(LABELS),
        "vocabulary": LABELS,
    },
}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Weights for CONFIG, random BatchNorm statistics included, as NeMo stores them."""
    torch.manual_seed(0)
    network = JasperCTC(JasperConfig.from_nemo(CONFIG))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.nn.init.normal_(network.decoder.decoder_layers[0].weight)
    from librosa.filters import mel

    constants = {
        "preprocessor.featurizer.window": torch.hann_window(320, periodic=False),
        "preprocessor.featurizer.fb": torch.from_numpy(mel(sr=16000, n_fft=512, n_mels=16))[None],
    }
    return constants | {key: value.detach().clone() for key, value in network.state_dict().items()}


@pytest.fixture
def archive(tmp_path: Path, make_tar: Callable[..., bytes], state: dict[str, Tensor]) -> Any:
    """A function that writes an archive with some of its files replaced, as bytes."""

    def write(
        config: bytes | None = None,
        weights: bytes | None = None,
        mode: str = "w",
        more: dict[str, bytes] | None = None,
    ) -> Path:
        files = {
            CONFIG_FILE: yaml.safe_dump(CONFIG).encode() if config is None else config,
            WEIGHTS_FILE: saved(state) if weights is None else weights,
        }
        path = tmp_path / "model.nemo"
        path.write_bytes(make_tar(files | (more or {}), mode))
        return path

    return write


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def changed(*path: str | int, value: object) -> dict[str, Any]:
    """CONFIG with one value replaced."""
    config = copy.deepcopy(CONFIG)
    section: Any = config
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    return config


def refuse(path: Path, match: str, act: Callable[[Path], object] = read_nemo) -> None:
    """The archive is refused with one sentence."""
    with pytest.raises(InputError, match=match) as caught:
        act(path)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message and len(message) < 1000


def tar_of(*members: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member in members:
            tar.addfile(member)
    return buffer.getvalue()


# --- what is right


def test_nemo_restores_what_is_written(tmp_path: Path, state: dict[str, Tensor]) -> None:
    from nemo.collections.asr.models import ASRModel

    path = tmp_path / "tiny.nemo"
    write_nemo(path, CONFIG, state)
    theirs = ASRModel.restore_from(str(path), map_location="cpu").eval()
    ours = load_model(path)
    assert ours.labels == tuple(LABELS) == tuple(theirs.decoder.vocabulary)
    assert (ours.name, ours.family) == ("tiny", "quartznet")
    waveform = torch.randn(16000, generator=torch.Generator().manual_seed(1)) * 0.1
    features, lengths = pad_features([ours.front_end(waveform)], 16)
    with torch.no_grad():
        actual, actual_lengths = ours.network(features, lengths)
        expected, expected_lengths, _ = theirs(
            input_signal=waveform[None], input_signal_length=torch.tensor([len(waveform)])
        )
    assert torch.equal(actual_lengths, expected_lengths)
    valid = int(actual_lengths)
    assert actual[0, :valid].std() > 0.1  # not a comparison of constants
    assert (actual[0, :valid] - expected[0, :valid]).abs().max() < 1e-4


def test_round_trip(tmp_path: Path, state: dict[str, Tensor]) -> None:
    artifacts = {"vocab.txt": b"a\nb\n", "deep/er": b""}
    write_nemo(tmp_path / "a.nemo", CONFIG, state, artifacts)
    archive = read_nemo(tmp_path / "a.nemo")
    assert archive.config == CONFIG
    assert list(archive.config) == list(CONFIG)
    assert archive.artifacts == artifacts
    assert archive.state.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(archive.state[key], value) and archive.state[key].dtype == value.dtype


def test_same_input_same_bytes(tmp_path: Path, state: dict[str, Tensor]) -> None:
    write_nemo(tmp_path / "a.nemo", CONFIG, state)
    # elsewhere, under another name, from parameters that are views of a larger memory
    views = {
        key: torch.nn.Parameter(torch.stack([value, value])[1], value.is_floating_point())
        if value.is_floating_point()
        else value
        for key, value in state.items()
    }
    write_nemo(tmp_path / "elsewhere" / "a longer name.nemo", copy.deepcopy(CONFIG), views)
    written = (tmp_path / "a.nemo").read_bytes()
    assert written == (tmp_path / "elsewhere" / "a longer name.nemo").read_bytes()
    write_nemo(tmp_path / "a.nemo", CONFIG, {k: v + 1 for k, v in state.items()})
    assert written != (tmp_path / "a.nemo").read_bytes()


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_plain_and_gzip_archives_with_a_folder_entry(
    archive: Any, mode: str, state: dict[str, Tensor]
) -> None:
    path = archive()
    folder = tarfile.TarInfo("./")
    folder.type = tarfile.DIRTYPE
    content = folder.tobuf() + path.read_bytes()  # `tar cf model.nemo ./` begins like this
    path.write_bytes(gzip.compress(content) if mode == "w:gz" else content)
    assert read_nemo(path).state.keys() == state.keys()
    assert load_model(path).family == "quartznet"


def test_weights_of_before_torch_1_6(archive: Any, state: dict[str, Tensor]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=False)
    found = read_nemo(archive(weights=buffer.getvalue())).state
    assert all(torch.equal(found[key], value) for key, value in state.items())


def test_config_of_before_nemo_1_0(archive: Any) -> None:
    """QuartzNet 1.0.0a5 and its like name a class and its parameters apart."""
    old = dict(CONFIG)
    for section in ("preprocessor", "encoder", "decoder"):
        params = dict(CONFIG[section])
        old[section] = {"cls": params.pop("_target_"), "params": params}
    old["preprocessor"]["params"]["stft_conv"] = True
    path = archive(config=yaml.safe_dump(old).encode())
    new = load_model(archive())
    assert load_model(path).network.config == new.network.config
    assert load_model(path).front_end.config == new.front_end.config


def test_weights_stored_as_float16(archive: Any, state: dict[str, Tensor]) -> None:
    halves = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    network = load_model(archive(weights=saved(halves))).network
    for key, value in network.state_dict().items():
        assert value.dtype == state[key].dtype
        assert torch.equal(value, halves[key].to(value.dtype))


def test_loaded_model_is_for_inference(archive: Any) -> None:
    network = load_model(archive()).network
    assert not network.training
    assert not any(p.requires_grad or p.is_meta for p in network.parameters())
    assert not any(b.is_meta for b in network.buffers())


def test_jasper_is_told_from_quartznet(tmp_path: Path) -> None:
    config = copy.deepcopy(CONFIG)
    for block in config["encoder"]["jasper"]:
        block["separable"] = False
    network = JasperCTC(JasperConfig.from_nemo(config))
    write_nemo(tmp_path / "a.nemo", config, network.state_dict())
    assert load_model(tmp_path / "a.nemo").family == "jasper"


def test_real_conformer_loads(conformer_nemo: Path) -> None:
    model = load_model(conformer_nemo)
    assert (model.family, len(model.labels)) == ("conformer", 1024)


def test_real_quartznet_loads(quartznet_nemo: Path) -> None:
    model = load_model(quartznet_nemo)
    assert (model.family, len(model.labels)) == ("quartznet", 28)


# --- archives


@pytest.mark.parametrize("name", ["/etc/owned", "../owned", "a/../../owned"])
def test_paths_that_lead_out(archive: Any, tmp_path: Path, name: str) -> None:
    refuse(archive(more={name: b"x"}), "leads out of its folder")
    assert list(tmp_path.iterdir()) == [tmp_path / "model.nemo"]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo(WEIGHTS_FILE)
    member.type, member.linkname = kind, "/etc/passwd"
    (tmp_path / "model.nemo").write_bytes(tar_of(member))
    refuse(tmp_path / "model.nemo", "a link, a device or")


def test_size_bomb(tmp_path: Path) -> None:
    member = tarfile.TarInfo(WEIGHTS_FILE)
    member.size = 1 << 40
    (tmp_path / "model.nemo").write_bytes(gzip.compress(member.tobuf() + bytes(1024)))
    refuse(tmp_path / "model.nemo", "claims to hold more than")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_truncated_anywhere(archive: Any, tmp_path: Path, mode: str) -> None:
    whole = archive(mode=mode).read_bytes()
    end = len(whole) if mode == "w:gz" else len(whole.rstrip(b"\0"))
    path = tmp_path / "cut.nemo"
    for size in [*range(0, 1100, 100), *np.linspace(1100, end - 1, 60, dtype=int)]:
        path.write_bytes(whole[:size])
        refuse(path, "not a whole and sound")


@pytest.mark.parametrize(
    "content", [b"", b"x", bytes(512), np.random.default_rng(0).bytes(20_000), b"\x1f\x8bnot gzip"]
)
def test_not_an_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.nemo").write_bytes(content)
    refuse(tmp_path / "model.nemo", "not a whole and sound|holds no model_config.yaml")


def test_gzip_checksum(archive: Any) -> None:
    path = archive()
    content = bytearray(gzip.compress(path.read_bytes(), compresslevel=0))
    content[-8] ^= 1
    path.write_bytes(content)
    refuse(path, "CRC")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.nemo", tmp_path):
        refuse(path, "does not exist as a file")


@pytest.mark.parametrize("missing", [CONFIG_FILE, WEIGHTS_FILE])
def test_missing_part(tmp_path: Path, make_tar: Callable[..., bytes], missing: str) -> None:
    files = {CONFIG_FILE: b"a: 1", WEIGHTS_FILE: saved({})}
    del files[missing]
    (tmp_path / "model.nemo").write_bytes(make_tar(files))
    refuse(tmp_path / "model.nemo", f"holds no {missing.removeprefix('./')}")


# --- configs


LAUGHS = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30))
MERGES = "\n".join(
    f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}], k{i}: 1}}" for i in range(1, 30)
)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (b"", "not a mapping"),
        (b"- 1\n- 2", "not a mapping"),
        (b"just text", "not a mapping"),
        (b"a: [1, 2", "flow sequence"),
        (b"a: 1\n---\nb: 2", "single document"),
        (b"\xff\xfe\xff", "model_config.yaml"),
        (b"a: \x00", "model_config.yaml"),
        (b"? [a]\n: 1", "unhashable"),
        (b"a: " + b"[" * 100_000, "model_config.yaml"),
        (b"a: " + b"9" * 5000, "model_config.yaml"),
        (b"a: !!int ''", "model_config.yaml"),
        (b"a: !!bool maybe", "model_config.yaml"),
        (b"a: !!timestamp never", "model_config.yaml"),
        (b"a: 2020-99-99", "model_config.yaml"),
        (b"a: *b", "undefined alias"),
        (b"#" * (1 << 20) + b"\na: 1", "larger than 1 MiB"),
        (b"a: &a [*a]", "expands to more than"),
        (b"a: &a {b: *a}", "expands to more than"),
        (f"a0: &a0 [1, 2]\n{LAUGHS}".encode(), "expands to more than"),
        (f"m0: &m0 {{k: 1}}\n{MERGES}".encode(), "expands to more than"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_config_that_is_no_plain_mapping(archive: Any, config: bytes, match: str) -> None:
    refuse(archive(config=config), match)


@pytest.mark.parametrize(
    "tag", ["object/apply:os.system", "object/new:os.system", "name:os.system"]
)
def test_config_with_python_tags_runs_nothing(archive: Any, tmp_path: Path, tag: str) -> None:
    marker = tmp_path / "owned"
    path = archive(config=f"a: !!python/{tag} ['touch {marker}']\n".encode())
    refuse(path, "could not determine a constructor")
    assert not marker.exists()


WRONG = ["text", ["list"], None, 3, 1.5, True, {}]


@pytest.mark.parametrize("section", ["preprocessor", "encoder", "decoder"])
@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_section_of_a_wrong_type(archive: Any, section: str, value: object) -> None:
    config = changed(section, value=value)
    refuse(archive(config=yaml.safe_dump(config).encode()), ".", load_model)


@pytest.mark.parametrize("section", ["preprocessor", "encoder", "decoder"])
def test_missing_section(archive: Any, section: str) -> None:
    config = {key: value for key, value in CONFIG.items() if key != section}
    refuse(archive(config=yaml.safe_dump(config).encode()), section, load_model)


OPTIONS = [
    ("encoder", "_target_"),
    ("encoder", "jasper"),
    ("encoder", "jasper", 0),
    ("encoder", "feat_in"),
    ("decoder", "feat_in"),
    ("decoder", "vocabulary"),
    *[("encoder", "jasper", 1, key) for key in BLOCK],
    *[("preprocessor", key) for key in ("features", "window_size", "window_stride", "window")],
]
HUGE = [float("inf"), float("nan"), -1, 0, 10**9, 10**30, [[3]], [10**9], "1" * 400]


@pytest.mark.parametrize("path", OPTIONS, ids=str)
def test_option_of_a_wrong_type_or_size(archive: Any, path: tuple[str | int, ...]) -> None:
    valid = {"kernel": 3, "stride": 3, "dilation": 3, "dropout": 0}
    valid |= {"residual": True, "separable": True}
    for value in WRONG + HUGE:
        if value is valid.get(str(path[-1]), "none"):
            continue
        config = yaml.safe_dump(changed(*path, value=value)).encode()
        refuse(archive(config=config), ".", load_model)


def test_other_family(archive: Any) -> None:
    target = "nemo.collections.asr.modules.SqueezeformerEncoder"
    config = changed("encoder", "_target_", value=target)
    refuse(archive(config=yaml.safe_dump(config).encode()), "SqueezeformerEncoder", load_model)


def test_mels_of_preprocessor_and_encoder_differ(archive: Any) -> None:
    config = yaml.safe_dump(changed("preprocessor", "features", value=80)).encode()
    refuse(archive(config=config), "80 mels and an encoder of 16", load_model)


# --- weights


class Runs:
    """Unpickled, it would make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickles_that_run_code_do_not_run(archive: Any, tmp_path: Path) -> None:
    marker = tmp_path / "owned"
    for weights in (
        saved({"a": Runs(marker)}),
        pickle.dumps(Runs(marker)),
        pickle.dumps({"a": Runs(marker)}, protocol=0),
    ):
        refuse(archive(weights=weights), "cannot be loaded safely")
        assert not marker.exists()


@pytest.mark.parametrize(
    "value",
    [
        [torch.zeros(1)],
        torch.zeros(1),
        None,
        {"a": 1},
        {"a": [torch.zeros(1)]},
        {1: torch.zeros(1)},
        {"a": torch.zeros(1, device="meta")},
        {"a": torch.zeros(1, dtype=torch.complex64)},
        {"a": torch.eye(2).to_sparse()},
        {"a": torch.zeros(1, dtype=torch.float8_e4m3fn)},
    ],
    ids=lambda value: " ".join(repr(value).split())[:50],
)
def test_weights_that_are_no_plain_state_dict(archive: Any, value: object) -> None:
    refuse(archive(weights=saved(value)), "cannot be loaded safely")


def test_damaged_weights_under_a_whole_tar(archive: Any, state: dict[str, Tensor]) -> None:
    """torch itself compares no checksum."""
    values = state["encoder.encoder.1.mconv.1.conv.weight"].numpy().tobytes()
    whole = saved(state)
    damaged = bytearray(whole)
    damaged[whole.index(values) + 2] ^= 0x10
    torch.load(io.BytesIO(damaged), weights_only=True)
    refuse(archive(weights=bytes(damaged)), "cannot be loaded safely")


def test_compressed_weights(archive: Any, state: dict[str, Tensor]) -> None:
    """A record of zeros would unpack to a thousand times its size."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved(state))) as source,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for record in source.infolist():
            target.writestr(record.filename, source.read(record))
    refuse(archive(weights=buffer.getvalue()), "cannot be loaded safely")


def test_records_that_share_their_bytes(archive: Any, state: dict[str, Tensor]) -> None:
    """A few bytes would be read as many tensors."""
    content = io.BytesIO(saved(state))
    with zipfile.ZipFile(content, "a") as target:
        large = max(target.infolist(), key=lambda record: record.file_size)
        for index in range(20):
            again = copy.copy(large)
            again.filename = f"archive/data/again{index}"
            target.filelist.append(again)
        target._didModify = True  # type: ignore[attr-defined]
    assert len(zipfile.ZipFile(content).namelist()) > 20
    refuse(archive(weights=content.getvalue()), "cannot be loaded safely")


def edit(state: dict[str, Tensor], **changes: Tensor | None) -> bytes:
    merged: dict[str, Tensor | None] = {**state, **changes}
    return saved({key: value for key, value in merged.items() if value is not None})


BIAS, FILTERS = "decoder.decoder_layers.0.bias", "preprocessor.featurizer.fb"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({BIAS: None}, rf"lacks the tensor '{BIAS}' \(1 missing\)"),
        ({"extra": torch.zeros(1)}, r"'extra' that its config does not name \(1 unknown\)"),
        ({BIAS: torch.zeros(5)}, r"shape \(5,\), its config needs \(6,\)"),
        ({BIAS: torch.zeros(6, 1)}, r"shape \(6, 1\)"),
        ({BIAS: torch.full((6,), torch.nan)}, "not finite"),
        ({BIAS: torch.full((6,), torch.inf)}, "not finite"),
        ({BIAS: torch.full((6,), 1e300, dtype=torch.float64)}, "not finite"),
        ({FILTERS: torch.zeros(1, 16, 256)}, "mel filter bank of shape"),
        ({FILTERS: torch.zeros(16, 257)}, "mel filter bank of shape"),
        ({FILTERS: torch.full((1, 16, 257), torch.nan)}, "mel filter bank with values"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_weights_that_do_not_fit(
    archive: Any, state: dict[str, Tensor], changes: dict[str, Tensor | None], match: str
) -> None:
    refuse(archive(weights=edit(state, **changes)), match, load_model)


def test_filter_bank_may_be_absent(archive: Any, state: dict[str, Tensor]) -> None:
    model = load_model(archive(weights=edit(state, **{FILTERS: None})))
    torch.testing.assert_close(model.front_end.filters, state[FILTERS][0])


# --- anything


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.filterwarnings("ignore")
def test_damage_is_refused_or_harmless(archive: Any, tmp_path: Path, mode: str) -> None:
    whole = archive(mode=mode).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.nemo"
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            # half of the damage in the headers and the config, which lie in front
            end = 6000 if rng.random() < 0.5 else len(damaged)
            damaged[rng.integers(0, min(end, len(damaged)))] = rng.integers(0, 256)
        if rng.random() < 0.2:
            del damaged[rng.integers(0, len(damaged)) :]
        path.write_bytes(damaged)
        try:
            load_model(path)
        except InputError:
            refused += 1
    assert refused > 75


def test_damaged_configs_are_refused_or_harmless(archive: Any) -> None:
    """Damage that the tar does not see, character by character."""
    whole = yaml.safe_dump(CONFIG)
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(100):
        position = int(rng.integers(0, len(whole)))
        character = str(rng.choice(list("09-: &*!#[]{}'\"\nna.e%")))
        text = whole[:position] + character + whole[position + int(rng.integers(0, 3)) :]
        try:
            load_model(archive(config=text.encode()))
        except InputError:
            refused += 1
    assert 20 < refused < 100
