"""Attentive probe of a frozen encoder on one of the data sets of `codecvit probe-data`.

    codecvit probe-data ssv2 --root DOWNLOAD --out probe_data/ssv2 --inputs frames8,codec2048
    codecvit probe --config=src/configs/probe.py:dataset=ssv2,encoder=runs/L,input=codec2048 \
        --workdir=runs/probe/ssv2_codec2048
    codecvit probe-report runs/probe/* --out report

On this machine, in minutes, with the demo's clips and its trained encoder (docs/probe.md):

    codecvit probe --config=src/configs/probe.py:runlocal,encoder=demo_out/runs/codec \
        --workdir=runs/probe/demo

Arguments: dataset, for its number of epochs and batch size; data, the OUT of probe-data
(probe_data/DATASET by default); encoder, what `codecvit.load` takes or hf:NAME_OR_FOLDER; input;
baselines, for k-NN and linear probes too; seed; runlocal.
Cost by the analytic count of trainers/flops.py: the forward pass of L/14 takes 1.7 TFLOP for 2,048
tokens; SSv2 in 10 epochs, choosing and testing included, is 1.7 million of them: 2.8 EFLOP, two
hours at 40 % of an H200's 989.5 TFLOP/s. Expected result: the published large encoder reaches 58.1
top-1 on SSv2 by 2,048 codec patches, as its authors report it, with the best epoch chosen on the
test split; none has been measured with this file yet.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from codecvit.configs.fields import add_fields, parse_arg
from codecvit.trainers.probe.config import AttentiveProbeConfig

# Epochs and batch size of the published runs, whose 8 GPUs took 2, 4 or 16 clips each.
EPOCHS = {"hmdb51": 30, "diving48": 30, "perception_test": 30}
BATCH_SIZES = {"hmdb51": 16, "ssv2": 32, "diving48": 32, "perception_test": 32}


def get_config(arg: str | None = None) -> ConfigDict:
    """The configuration; see the file's docstring for `arg`."""
    arg = parse_arg(
        arg,
        dataset="ssv2",
        data="",
        encoder="runs/L",
        input="",
        baselines=False,
        seed=0,
        runlocal=False,
    )
    config = ConfigDict()
    config.encoder = arg.encoder
    config.baselines = arg.baselines
    config.seed = arg.seed
    if arg.runlocal:
        # A Ti's tokens are 192 wide: its head is small, and learns at higher rates.
        config.data, config.input = arg.data or "demo_out/probe", arg.input or "codec128"
        config.update(epochs=5, batch_size=16, lrs=(3e-4, 1e-3), held_out=0.2, log_steps=10)
    else:
        config.data = arg.data or f"probe_data/{arg.dataset}"
        config.input = arg.input or "codec2048"
        config.epochs = EPOCHS.get(arg.dataset, 10)
        config.batch_size = BATCH_SIZES.get(arg.dataset, 128)
        config.loader_workers = 8
    add_fields(config, AttentiveProbeConfig)
    return config
