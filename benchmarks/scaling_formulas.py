"""Memory, communication and time of one pretraining step, as formulas of sizes and mesh.

They describe what the code does: `src/models/transformer.py` gathers a layer at a time,
`src/losses/cluster_discrimination.py` gathers the embeddings, `src/trainers/accumulate.py` takes a
batch in pieces. tests/benchmarks/test_scaling.py holds them against the compiled step.

All sizes are bytes on one chip, or of one collective's whole array, unless a name says otherwise.
Letters as in the model files: B samples of the global batch, L tokens, D width, F hidden width of
an MLP, C classes, M labels drawn; N chips.
"""

from __future__ import annotations

import dataclasses
import math

from chips import Chip

from codecvit.losses.class_sampling import num_blocks
from codecvit.models.config import ViTConfig
from codecvit.trainers.flops import head_flops_per_sample, train_flops_per_token
from codecvit.trainers.pretrain_step import padded_classes

FLOAT = 4  # bytes of a float32: parameters, moments, gradients, the gathered embeddings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A pretraining step of one source.

    Attributes:
      model: the encoder; its dtype is what activations and gathered matrices have.
      batch: B, samples of one optimiser step over all chips.
      tokens: L of a sample.
      classes: C of its head.
      labels: M.
      sample_rate, chunks: of the head.
      pieces: grad_accum_steps.
      data, fsdp, tensor: the mesh.
    """

    model: ViTConfig
    batch: int
    tokens: int
    classes: int
    labels: int = 8
    sample_rate: float = 1.0
    chunks: int = 1
    pieces: int = 1
    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    @property
    def chips(self) -> int:
        """N."""
        return self.data * self.fsdp * self.tensor

    @property
    def piece(self) -> int:
        """Samples that are in the works at one time, over all chips."""
        return self.batch // self.pieces

    @property
    def piece_tokens(self) -> float:
        """Tokens that one chip has in the works; the chips of `tensor` share their rows."""
        return self.piece * self.tokens / (self.data * self.fsdp)

    @property
    def item(self) -> int:
        """Bytes of the compute dtype."""
        return 2 if self.model.dtype == "bfloat16" else 4


# --- Parameters -------------------------------------------------------------------------------


def arrays(model: ViTConfig) -> list[tuple[tuple[int, ...], tuple[str, ...]]]:
    """(shape, axis that splits each dimension) of every parameter of the encoder.

    The tree of `src/models/vit.py` under the rules of `MeshConfig`.
    """
    D, F, n, P = model.width, model.mlp_dim, model.depth, 3 * model.patch**2
    into, out = ("", "fsdp", "tensor"), ("", "tensor", "fsdp")
    blocks = [((n, D, 3 * D), into), ((n, D, D), out), ((n, D, F), into), ((n, F, D), out)]
    blocks += [((n, 3 * D), ("", "tensor")), ((n, F), ("", "tensor"))]
    blocks += [((n, D), ("", ""))] * 6  # biases of out and fc2; scale and bias of two norms
    rest = [((P, D), ("fsdp", "tensor"))] + [((D,), ("",))] * 4  # norms before and after
    both = ("fsdp", "tensor")
    pool = [((D, 3 * D), both), ((D, D), both), ((D, F), both), ((F, D), both)]
    pool += [((size,), ("",)) for size in (D, 3 * D, D, F, D, D)]  # probe, biases, norm
    return blocks + rest + pool


def parameters(model: ViTConfig) -> int:
    """Number of the encoder's parameters."""
    return sum(math.prod(shape) for shape, _ in arrays(model))


def local_parameters(model: ViTConfig, fsdp: int = 1, tensor: int = 1) -> int:
    """Number of those that lie on one chip; a dimension that its axis doesn't divide is whole."""
    ways = {"": 1, "fsdp": fsdp, "tensor": tensor}

    def local(size: int, axis: str) -> int:
        return size // ways[axis] if size % ways[axis] == 0 else size

    return sum(math.prod(map(local, shape, spec)) for shape, spec in arrays(model))


# --- Memory -----------------------------------------------------------------------------------


def kept_per_token(model: ViTConfig, tokens: int, attention: str = "fused") -> float:
    """Bytes that the forward pass keeps of one token in one layer (`REMAT` of models/config.py).

    none: the block's input, q, k and v, the attention's output and its statistics, the outputs of
    the attention's projection and of fc1; dots: without the attention's; full: the input alone.
    Attention that is not fused ("xla") keeps a float32 logit per head and key.
    """
    item = 2 if model.dtype == "bfloat16" else 4
    D, F, H = model.width, model.mlp_dim, model.num_heads
    if model.remat == "full":
        return item * D
    linear = item * (D + 3 * D + D + F)
    if model.remat == "dots":
        return linear
    return linear + item * D + FLOAT * H * (tokens if attention == "xla" else 1)


def memory(run: Run) -> dict[str, float]:
    """Bytes on one chip, by what they are for; see docs/scaling.md for each line.

    Arrays that live through the step are exact. Of what comes and goes the largest parts are
    counted, so that a compiler's figure is somewhat higher.
    """
    D, N = run.model.width, run.chips
    state = 3 * FLOAT  # parameter and two moments
    gradient = FLOAT * (2 if run.pieces > 1 else 1)  # of the piece, and the sum
    local = local_parameters(run.model, run.fsdp, run.tensor)
    centres = padded_classes(run.classes) * D / N
    parts = {
        "encoder": (state + gradient) * local,
        "centres": (state + gradient) * centres,
        "activations": run.piece_tokens * run.model.depth * kept_per_token(run.model, run.tokens),
        # Gathered in float32 and cast, and the gradient that is scattered.
        "embeddings": run.piece * D * (2 * FLOAT + run.item),
        # Cosines of one chunk and their gradient.
        "logits": 2 * FLOAT * run.piece * classes_here(run) / run.chunks,
        "rows": 0.0,
    }
    if run.sample_rate < 1:
        # Rows that take part and every target of the batch, on every chip, and their gradients.
        parts["rows"] = 2 * FLOAT * D * (classes_here(run) + run.piece * run.labels)
    return parts


def classes_here(run: Run) -> float:
    """Classes of one chip that take part in a step's softmax."""
    return run.sample_rate * padded_classes(run.classes) / run.chips


# --- Communication ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Collective:
    """So many bytes of a kind among so many chips in one step.

    Attributes:
      what: what travels.
      kind: all-gather (bytes of the result), all-reduce or reduce-scatter (bytes of the operand).
      size: bytes.
      ways: chips that take part.
    """

    what: str
    kind: str
    size: float
    ways: int


def communication(run: Run) -> list[Collective]:
    """What one step moves between the chips; scalars are left out.

    The encoder's gradient is counted as the all-reduce that the partitioner writes, once for each
    piece; where parameters are split, a compiler may turn it into half of it, a reduce-scatter.
    With `tensor` above 1 activations travel too, which is not counted: no table uses it.
    """
    model, B, D, M, N = run.model, run.batch, run.model.width, run.labels, run.chips
    # The pooling head's query and key see no sample before they are [H, D]: that is what is summed.
    summed = run.item * (parameters(model) - 2 * D * D - 3 * D) + FLOAT * model.num_heads * D
    moved = [
        Collective("gradient", "all-reduce", run.pieces * summed, N),
        Collective("embeddings", "all-gather", B * D * FLOAT, N),
        Collective("embeddings", "reduce-scatter", B * D * FLOAT, N),
        # Labels and weights, and the labels again for the count of classes that were hit.
        Collective("labels", "all-gather", B * (2 * M * FLOAT + FLOAT), N),
        # Per sample the targets' cosines, the sum of exponentials, a count and a maximum.
        Collective("softmax", "all-reduce", B * (M + 3) * FLOAT, N),
    ]
    if run.fsdp > 1:
        split = [shape for shape, spec in arrays(model) if "fsdp" in spec]
        blocks = sum(math.prod(shape) for shape in split if len(shape) == 3)
        others = sum(math.prod(shape) for shape in split if len(shape) == 2)
        # A block's matrices once each way; the pooling head's and the embedding's are kept.
        size = run.pieces * run.item * (2 * blocks + others)
        moved.append(Collective("parameters", "all-gather", size, run.fsdp))
    return moved


def seconds(moved: Collective, chip: Chip) -> float:
    """Time of a bandwidth-optimal collective: within groups over the fast links, and a group's
    chips side by side over the network.

    Rings send (k - 1)/k of the array to gather or to scatter it among k, an all-reduce does both
    (Patarasuk and Yuan 2009, doi 10.1016/j.jpdc.2008.09.002). Latency is left out.
    """
    passes = 2 if moved.kind == "all-reduce" else 1
    inner = min(moved.ways, chip.group)
    outer = math.ceil(moved.ways / chip.group)
    time = moved.size * (inner - 1) / inner / (chip.link_gbs * 1e9)
    if outer > 1:
        if not chip.network_gbs:
            raise ValueError(
                f"{chip.name}: no figure of its network, needed over {chip.group} chips"
            )
        time += moved.size / inner * (outer - 1) / outer / (chip.network_gbs * 1e9)
    return passes * time


# --- Time -------------------------------------------------------------------------------------


def flops(run: Run) -> float:
    """Analytic FLOPs of a step over all chips, as `codecvit train` counts them."""
    encoder = run.tokens * train_flops_per_token(run.model, run.tokens)
    head = head_flops_per_sample(run.model.width, run.sample_rate * run.classes)
    return run.batch * (encoder + head)


def recomputed(run: Run) -> float:
    """FLOPs of a step that are done again in the backward pass (`model.remat`)."""
    forward = run.batch * run.tokens * train_flops_per_token(run.model, run.tokens) / 3
    if run.model.remat == "full":
        return forward
    attention = 4 * run.tokens * run.model.width * run.model.depth * run.batch * run.tokens
    return attention if run.model.remat == "dots" else 0.0


def step_seconds(run: Run, chip: Chip, utilisation: float) -> dict[str, float]:
    """Seconds of a step, by what they are spent on, nothing overlapped.

    compute: FLOPs, the recomputed ones too, at a share `utilisation` of the peak; update: AdamW
    reads parameter, gradient and two moments and writes three of them; the rest: communication.
    """
    local = local_parameters(run.model, run.fsdp, run.tensor)
    local += padded_classes(run.classes) * run.model.width / run.chips
    parts = {
        "compute": (flops(run) + recomputed(run)) / run.chips / (chip.tflops * 1e12 * utilisation),
        "update": 7 * FLOAT * local / (chip.hbm_gbs * 1e9),
    }
    for moved in communication(run):
        parts[moved.what] = parts.get(moved.what, 0.0) + seconds(moved, chip)
    return parts


# --- Limits of the present design ---------------------------------------------------------------


def largest_sampled_mesh(classes: int) -> int:
    """Most chips over which a sampled head can be spread: its blocks must divide among them."""
    return num_blocks(padded_classes(classes))


def possible_chunks(classes: int, chips: int) -> list[int]:
    """Values of `chunks` up to 64 that a full head on so many chips takes; none: it doesn't fit."""
    rows = padded_classes(classes)
    return [chunks for chunks in range(1, 65) if rows % (chips * chunks) == 0]
