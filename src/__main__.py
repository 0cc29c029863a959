"""The one command line: `codecvit VERB ...` (= `python -m codecvit VERB ...`).

Each verb is a module with `main(argv: list[str]) -> int`; it is imported only when it is called, so
that `codecvit pack` loads neither jax nor torch. A new verb is one line in VERBS.
"""

from __future__ import annotations

import importlib
import sys

VERBS = {
    "pack": ("data.pack", "videos and images -> record sets of patch sequences"),
    "pack-pairs": ("data.pairs.pack", "image-text and video-text pairs -> records with texts"),
    "inspect": ("data.inspect", "counts and a contact sheet of a record set"),
    "show": ("codec.show", "a picture of what the codec selection keeps of one video"),
    "llava": (
        "codec.llava.cli",
        "LLaVA: mosaics for training and evaluation, checks, multiple choice",
    ),
    "demo-data": ("data.demo", "write the demo data set: moving digits over photographs"),
    "probe-data": ("evaluators.probe_data", "check a labelled data set, pack it for the probe"),
    "cluster": ("cluster.__main__", "record set -> k-means labels"),
    "clusters": ("cluster.show", "pictures of clusters, and of samples gathering at them"),
    "train": ("trainers.pretrain", "pretrain an encoder by cluster discrimination"),
    "train-pairs": (
        "trainers.contrastive",
        "train an encoder on images and texts, contrastive and captioning",
    ),
    "evaluate-pairs": (
        "trainers.evaluate_pairs",
        "zero-shot classification and retrieval of an image-text model",
    ),
    "watch": (
        "trainers.watch",
        "every worker of a run in one table; names a stalled or missing one",
    ),
    "plot": ("trainers.plot", "curves of one or several runs as a picture or a page"),
    "probe": (
        "trainers.probe.__main__",
        "attentive probe of a frozen encoder on a labelled data set",
    ),
    "probe-report": ("trainers.probe.report", "table and plot of several attentive probes"),
    "probe-records": (
        "trainers.probe.records",
        "k-NN and linear probe of an encoder on labelled record sets",
    ),
    "import": ("convert.import_hf", "published weights -> checkpoint"),
    "embed": ("retrieval.embed", "videos, images and record sets -> a file of embeddings"),
    "search": ("retrieval.search", "what lies nearest to a clip in a file of embeddings"),
    "classify": ("convert.classify", "images -> which of some labels fits, by an image-text model"),
    "export": ("convert.export_verb", "checkpoint -> folder for transformers or OpenCLIP"),
}


def usage() -> str:
    width = max(map(len, VERBS))
    lines = ["usage: codecvit VERB [options]", "", "verbs:"]
    lines += [f"  {verb:{width}}  {text}" for verb, (_, text) in VERBS.items()]
    return "\n".join([*lines, "", "`codecvit VERB --help` tells more about each."])


def main(argv: list[str] | None = None) -> int:
    """Runs one verb.

    Args:
      argv: the arguments after the program's name; those of the process by default.

    Returns:
      The exit status: 0 success, 1 the verb failed, 2 wrong usage.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from . import __version__

        print(f"codecvit {__version__}")
        return 0
    verb, rest = argv[0], argv[1:]
    if verb not in VERBS:
        print(f"codecvit: no verb {verb!r}\n\n{usage()}", file=sys.stderr)
        return 2
    module = importlib.import_module(f".{VERBS[verb][0]}", __package__ or "codecvit")
    return module.main(rest)


if __name__ == "__main__":
    sys.exit(main())
