"""The classes that a job of ours names and that NVFlare's own allow list lacks.

Where a job brings no code of its own, NVFlare builds only what ``class_allow_list`` in the party's
``local/resources.json`` names. ``poc/class-allow-list.json`` holds the same names, for pasting.
"""

from __future__ import annotations

from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.apis.workspace import Workspace
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer

NEEDED_CLASSES = (
    "gradward.flare.aggregator.ReproducibleAggregator",
    "gradward.flare.auditor.InversionAuditor",
    "gradward.flare.experiment.Experiment",
    "gradward.flare.gate.LeakageGate",
    "gradward.flare.guard.PerturbationGuard",
    "gradward.flare.persistor.ExperimentPersistor",
    "gradward.flare.perturber.Perturbation",
    "gradward.flare.run_log.RunLog",
    "gradward.flare.scorer.LeakageScorer",
    "gradward.flare.script_perturbation.ScriptPerturbation",
    "gradward.flare.tensorboard.LiveTBAnalyticsReceiver",
    "gradward.flare.trainer.LocalTrainer",
    "gradward.flare.update_filters.UpdateNoise",
    "gradward.flare.update_filters.UpdatePruning",
    "gradward.flare.update_filters.WithholdBuffers",
    "gradward.flare.weights_and_biases.LiveWandBReceiver",
    "gradward.flare.witness.TrainingWitness",
    "gradward.flare.workflow.AuditDrain",
    "gradward.flare.workflow.AuditedScatterAndGather",
    "nvflare.app_common.widgets.streaming.AnalyticsSender",
)


def missing_classes(workspace: Workspace) -> list[str]:
    """Return the needed classes that NVFlare would refuse to build at this party.

    Raises:
        OSError, ValueError: the party's resources file cannot be read.
    """
    authorizer = ComponentPathAuthorizer()
    missing = []
    for path in NEEDED_CLASSES:
        try:
            authorizer.authorize_component_config({"path": path}, workspace=workspace)
        except UnsafeComponentError:
            missing.append(path)
    return missing
