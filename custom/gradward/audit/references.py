"""What an attacker may know of such images: the prior, and the public images of the control."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradward.attacks.label_rehearsal import LEAST_IMAGES_OF_A_CLASS
from gradward.audit.facts import AuditError
from gradward.data import DataError, ImageSet, dataset_spec, load_public_set
from gradward.metrics.similarity import check_images

STAND_IN = "histology"


@dataclass(frozen=True)
class References:
    """Images of an audit that are not the client's.

    Attributes:
        prior: ``(C, H, W)``, where the attacks start.
        mean: ``(C, H, W)``, what anyone could guess.
        control: public images to train the wrong update on.
        of_attacker: public images that attacks may learn from, none of them in the control; or
            None.
        prior_from, public_from: where they come from, in words.
        prior_is_stand_in: whether the prior is of other images than the client's, so that the
            attacker cannot be said to have one.
    """

    prior: Tensor
    mean: Tensor
    control: ImageSet
    of_attacker: ImageSet | None
    prior_from: str
    public_from: str
    prior_is_stand_in: bool

    @classmethod
    def choose(
        cls,
        prior: Tensor | None,
        public: ImageSet | None,
        image_shape: tuple[int, int, int],
        learning: bool = False,
    ) -> References:
        """Take what is given, and embedded histology patches for what is not.

        A stand-in teaches nothing of images like the client's: no attack learns from it.

        Args:
            prior: as of :func:`gradward.audit.audit_update`.
            public: likewise.
            image_shape: channels, height and width.
            learning: whether an attack learns a prior, for which no labels are needed.

        Raises:
            AuditError: images of another shape or range, or none at all; no stand-in has
                ``image_shape``.
        """
        if prior is not None:
            check_form("the prior", prior[None], image_shape)
        if public is not None:
            if not len(public):
                raise AuditError("there are no public images; give at least one, or none to use")
            check_form("the public images", public.images, image_shape)
            mean, (control, of_attacker) = public.images.mean(0), _divided(public, learning)
            default, public_from = mean, f"{len(public)} images that were given"
        else:
            try:
                embedded = load_public_set(
                    dataset_spec(STAND_IN),
                    name=STAND_IN,
                    image_size=image_shape[1:],
                    channels=image_shape[0],
                )
            except DataError as error:
                raise AuditError(
                    f"there is no stand-in for images like the client's: {error}; give public "
                    "images"
                ) from None
            mean, control, of_attacker = embedded.mean_image, embedded.part("control"), None
            default = embedded.prior_image
            public_from = f"embedded {STAND_IN} patches, a stand-in for images like the client's"
        return cls(
            prior=default if prior is None else prior,
            mean=mean,
            control=control,
            of_attacker=of_attacker,
            prior_from=f"mean of {public_from}" if prior is None else "given",
            public_from=public_from,
            prior_is_stand_in=prior is None and public is None,
        )

    def control_set(self, labels: Tensor | None, n_classes: int) -> tuple[Tensor, Tensor]:
        """Return images ``(N, C, H, W)`` and labels ``(N,)`` for the control's training.

        Args:
            labels: of the client's images, if the attacker is given them: the control then has
                the same, or its attacks would be told wrong ones and fail for that alone.
            n_classes: of the network; labels beyond are replaced by each class in turn.
        """
        images, own = self.control.images, self.control.labels
        if labels is not None:
            return images[torch.arange(len(labels)) % len(images)], labels
        if bool((own < 0).any()) or bool((own >= n_classes).any()):
            own = torch.arange(len(own)) % n_classes
        return images, own


def _divided(public: ImageSet, learning: bool) -> tuple[ImageSet, ImageSet | None]:
    """Return public images for the control, a quarter of each class, and those for the attacker.

    All are the control's where a class has too few for both or, unless a prior is learned from
    them, none has a label.
    """
    for_control = torch.zeros(len(public), dtype=torch.bool)
    for label in public.labels.unique():
        for_control[torch.nonzero(public.labels == label)[::4, 0]] = True
    left = public.labels[~for_control]
    counts = torch.stack([(left == label).sum() for label in public.labels.unique()])
    of_use = learning or bool((public.labels >= 0).all())
    if not of_use or int(counts.min()) < LEAST_IMAGES_OF_A_CLASS:
        return public, None
    return public.subset(torch.nonzero(for_control)[:, 0]), public.subset(
        torch.nonzero(~for_control)[:, 0]
    )


def check_form(what: str, images: Tensor, image_shape: tuple[int, int, int]) -> None:
    """Make sure that ``images`` are ``(N, *image_shape)`` in [0, 1].

    Raises:
        AuditError: with shapes or the range, never with a pixel's value.
    """
    shape = tuple(images.shape[1:])
    if shape != tuple(image_shape):
        raise AuditError(
            f"{what} must be {tuple(image_shape)} (channels, height, width) like the images, got "
            f"{shape}; resize it, or correct the shape"
        )
    try:
        check_images(images)
    except ValueError as error:
        raise AuditError(f"{what}: {error}") from None
