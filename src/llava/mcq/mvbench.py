"""MVBench's 20 tasks and where each lies (Li et al. 2024, arXiv 2311.17005)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .questions import Question


class MvbenchTask(NamedTuple):
    """Where MVBench keeps a task: its JSON, the folder of its clips, what they are.

    Attributes:
      json: file in `json/`.
      folder: in `video/`.
      kind: "video" files, or a "frame" folder each, of 3 frames a second.
      bounded: questions have `start` and `end`.
    """

    json: str
    folder: str
    kind: str = "video"
    bounded: bool = False


MVBENCH = {
    "Action Sequence": MvbenchTask("action_sequence.json", "star/Charades_v1_480", bounded=True),
    "Action Prediction": MvbenchTask(
        "action_prediction.json", "star/Charades_v1_480", bounded=True
    ),
    "Action Antonym": MvbenchTask("action_antonym.json", "ssv2_video"),
    "Fine-grained Action": MvbenchTask("fine_grained_action.json", "Moments_in_Time_Raw/videos"),
    "Unexpected Action": MvbenchTask("unexpected_action.json", "FunQA_test/test"),
    "Object Existence": MvbenchTask("object_existence.json", "clevrer/video_validation"),
    "Object Interaction": MvbenchTask(
        "object_interaction.json", "star/Charades_v1_480", bounded=True
    ),
    "Object Shuffle": MvbenchTask("object_shuffle.json", "perception/videos"),
    "Moving Direction": MvbenchTask("moving_direction.json", "clevrer/video_validation"),
    "Action Localization": MvbenchTask("action_localization.json", "sta/sta_video", bounded=True),
    "Scene Transition": MvbenchTask("scene_transition.json", "scene_qa/video"),
    "Action Count": MvbenchTask("action_count.json", "perception/videos"),
    "Moving Count": MvbenchTask("moving_count.json", "clevrer/video_validation"),
    "Moving Attribute": MvbenchTask("moving_attribute.json", "clevrer/video_validation"),
    "State Change": MvbenchTask("state_change.json", "perception/videos"),
    "Fine-grained Pose": MvbenchTask("fine_grained_pose.json", "nturgbd"),
    "Character Order": MvbenchTask("character_order.json", "perception/videos"),
    "Egocentric Navigation": MvbenchTask("egocentric_navigation.json", "vlnqa"),
    "Episodic Reasoning": MvbenchTask(
        "episodic_reasoning.json", "tvqa/frames_fps3_hq", kind="frame", bounded=True
    ),
    "Counterfactual Inference": MvbenchTask(
        "counterfactual_inference.json", "clevrer/video_validation"
    ),
}
RATE = 3  # frames a second of the folders of frames


def missing_tasks(questions: Iterable[Question]) -> list[str]:
    """Tasks of MVBench without any question here: its macro average is over 20."""
    there = {question.task for question in questions}
    return [task for task in MVBENCH if task not in there]
