"""The optimiser step runs on a machine that has jax, flax and optax only, as benchmarks do."""

import subprocess
import sys

SCRIPT = """
import sys
for name in ("grain", "av", "PIL", "array_record", "ml_collections", "safetensors", "orbax",
             "tensorboardX", "fsspec", "torch", "matplotlib"):
    sys.modules[name] = None
import codecvit.losses, codecvit.models
from codecvit.trainers import flops, mesh, optim, pretrain_config, pretrain_step
made = pretrain_config.PretrainConfig.from_dict({
    "model": {"variant": "Ti/14"},
    "sources": {"a": {"records": "none", "batch_size": 8, "budget": 16}},
    "heads": {"main": {"num_classes": 8}},
    "total_steps": 1,
})
pretrain_step.make_train_step(made)
print("made")
"""


def test_the_step_needs_no_data_reader_and_no_config_library():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.stdout == "made\n", done.stderr


CONFIGS = """
import sys
sys.modules["grain"] = None
from codecvit.trainers import contrastive_config, pretrain_config
print("read")
"""


def test_a_configuration_is_read_without_the_loader():
    done = subprocess.run([sys.executable, "-c", CONFIGS], capture_output=True, text=True)
    assert done.stdout == "read\n", done.stderr
