"""What the server serves where the sites withhold BatchNorm's statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gradward.batchnorm import is_batchnorm_buffer
from gradward.data import DataError
from gradward.defenses.recalibration import calibration_images, keeps_statistics, recalibrate
from gradward.flare.experiment import Experiment
from gradward.flare.site import Site
from gradward.flare.states import as_arrays, load_global_state


class PublicRecalibration:
    """BatchNorm statistics of any global state, from the ``fit`` part of the public images.

    Args:
        experiment: of the job.
        server: the party that computes and has the public images.

    Raises:
        DataError, SiteSettingsError: there are no public images, or fewer than two.
    """

    def __init__(self, experiment: Experiment, server: Site) -> None:
        self._model = experiment.build_model()
        self._images = None
        if keeps_statistics(self._model):
            images = calibration_images(experiment.load_public(server).part("fit"))
            if len(images) < 2:
                raise DataError(
                    "to recalibrate BatchNorm takes at least 2 public images in 'fit'; declare more"
                )
            self._images = images

    def buffers(self, weights: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the statistics that fit ``weights``, a whole state; none without BatchNorm."""
        if self._images is None:
            return {}
        load_global_state(self._model, weights)
        recalibrate(self._model, self._images)
        state = as_arrays(self._model.state_dict())
        return {name: value.copy() for name, value in state.items() if is_batchnorm_buffer(name)}
