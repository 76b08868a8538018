"""What the server and the sites of one job agree on, said once and named by id everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from torch import nn

from gradward.data import ImageSet, PublicSet, load_public_set, load_split
from gradward.flare.own_code import JobError, require_allowed
from gradward.flare.site import Site
from gradward.models import build_model
from gradward.training import TrainingSettings

Component = TypeVar("Component", bound=FLComponent)


class Experiment(FLComponent):
    """The model, the data by name, the hyperparameters and the seed of a job.

    Paths are none of a job's business: ``dataset`` and ``public_set`` are names which each party
    resolves by itself (see :mod:`gradward.flare.site`).
    """

    def __init__(
        self,
        model: str,
        dataset: str,
        image_size: Sequence[int],
        channels: int,
        num_classes: int,
        training: Mapping[str, Any] | None = None,
        per_site: Mapping[str, Mapping[str, Any]] | None = None,
        public_set: str | None = None,
        public_checksum: str | None = None,
        model_options: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        """Check every argument.

        Args:
            model: a name of :data:`gradward.models.MODEL_NAMES`, or ``package.module:factory``.
            dataset: name of the data set each site looks up in its own settings.
            image_size: height and width in pixels that images are resized to.
            channels: 1 or 3.
            num_classes: at least 2.
            training: fields of :class:`gradward.training.TrainingSettings`.
            per_site: for a site's name, the fields that differ there.
            public_set: data set whose public images serve as prior, control and decoys; by
                default ``dataset``.
            public_checksum: when given, parties whose public images differ do not audit.
            model_options: further keyword arguments of the model.
            seed: of the initial weights, the order of batches and the attacks.

        Raises:
            TypeError, ValueError: with the offending value.
        """
        super().__init__()
        for name, value in (("model", model), ("dataset", dataset)):
            if not isinstance(value, str) or not value:
                raise TypeError(f"{name} must be a non-empty string, got {value!r}")
        size = list(image_size)
        if len(size) != 2 or not all(isinstance(edge, int) and edge >= 8 for edge in size):
            raise ValueError(
                f"image_size must be [height, width] of at least 8 pixels, got {image_size!r}"
            )
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels!r}")
        if not isinstance(num_classes, int) or num_classes < 2:
            raise ValueError(f"num_classes must be an integer of at least 2, got {num_classes!r}")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed must be an integer of at least 0, got {seed!r}")
        self.model = model
        self.dataset = dataset
        self.image_size = (size[0], size[1])
        self.channels = channels
        self.num_classes = num_classes
        self.training = dict(training or {})
        self.per_site = {site: dict(values) for site, values in (per_site or {}).items()}
        self.public_set = public_set or dataset
        self.public_checksum = public_checksum
        self.model_options = dict(model_options or {})
        self.seed = seed
        TrainingSettings.from_dict(self.training)
        for site in self.per_site:
            self.settings_for(site)

    def training_values(self, site: str) -> dict[str, Any]:
        """Hyperparameters of one site as JSON values."""
        return {**self.training, **self.per_site.get(site, {})}

    def settings_for(self, site: str) -> TrainingSettings:
        """Hyperparameters of one site."""
        return TrainingSettings.from_dict(self.training_values(site))

    def model_arguments(self) -> dict[str, Any]:
        """Arguments of :func:`gradward.models.build_model`, as JSON, seed apart."""
        return {
            "name": self.model,
            "in_channels": self.channels,
            "num_classes": self.num_classes,
            "image_size": list(self.image_size),
            **self.model_options,
        }

    def load_split(self, site: Site, split: str) -> ImageSet:
        """Load one split of the site's own images.

        Raises:
            DataError, SiteSettingsError: as the site's settings and files have it.
        """
        return load_split(
            site.dataset_spec(self.dataset),
            split,
            site=site.name,
            image_size=self.image_size,
            channels=self.channels,
        )

    def load_public(self, party: Site) -> PublicSet:
        """Load the public images as ``party``, a site or the server, has them.

        Raises:
            DataError, SiteSettingsError: as the party's settings and files have it.
        """
        return load_public_set(
            party.dataset_spec(self.public_set),
            name=self.public_set,
            image_size=self.image_size,
            channels=self.channels,
        )

    def build_model(self) -> nn.Module:
        """Build the network with its initial weights."""
        return build_model(**self.model_arguments(), seed=self.seed)


def find_component(fl_ctx: FLContext, component_id: str, kind: type[Component]) -> Component:
    """Look up a component that the job must have.

    Raises:
        JobError: there is none of this kind with that id.
    """
    component = fl_ctx.get_engine().get_component(component_id)
    if not isinstance(component, kind):
        raise JobError(
            f"the job has no {kind.__name__} with id {component_id!r}; add one to the 'components' "
            "of config_fed_server.json and, for an Experiment, of config_fed_client.json"
        )
    return component


def experiment_of(fl_ctx: FLContext, component_id: str) -> Experiment:
    """Look up the job's :class:`Experiment`.

    Raises:
        JobError: there is none with that id, or its network is one that this party does not allow.
    """
    experiment = find_component(fl_ctx, component_id, Experiment)
    if ":" in experiment.model:
        require_allowed(experiment.model.replace(":", "."), fl_ctx)
    return experiment
