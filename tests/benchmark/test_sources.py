"""Where the model of a benchmark comes from."""

from pathlib import Path

import pytest
import torch
from checkpoints import write_checkpoint

from zqlib.benchmark import sources
from zqlib.benchmark.sources import RANDOM, Source
from zqlib.errors import InputError
from zqlib.models.jasper import BlockConfig, JasperConfig, JasperCTC


def test_jasper_dr_has_333_million_parameters() -> None:
    with torch.device("meta"):
        network = JasperCTC(JasperConfig(64, RANDOM["jasper-dr-10x5"](), 28))
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == 332.63


def test_random_weights_keep_the_scale_of_what_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = [BlockConfig(64, 2, 5, residual=True, residual_dense=True)] * 3
    blocks = (BlockConfig(64, 1, 5, stride=2), *dense)
    monkeypatch.setitem(sources.RANDOM, "small", lambda: blocks)
    model = Source(random="small").load()
    features = torch.randn(1, 64, 100, generator=torch.Generator().manual_seed(1))
    log_probs, lengths = model.network(features, torch.tensor([100]))
    assert lengths.tolist() == [50]
    assert 0.1 < float(log_probs.std()) < 100
    again = Source(random="small").load().network.state_dict()
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, again[name]), name


def test_a_checkpoint_is_named_by_its_file(tmp_path: Path) -> None:
    source = Source(write_checkpoint(tmp_path / "tiny.nemo"))
    assert source.name == source.load().name == "tiny" and source.caveats == ()
    assert len(source.digest) == 64
    assert Source(random="jasper-dr-10x5").caveats == ("random weights",)


@pytest.mark.parametrize(
    ("path", "random", "message"),
    [
        (None, None, "one of the two"),
        (Path("a.nemo"), "jasper-dr-10x5", "one of the two"),
        (None, "jasper", "'jasper' is unknown; use jasper-dr-10x5"),
    ],
)
def test_a_source_is_one_thing(path: Path | None, random: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Source(path, random)
