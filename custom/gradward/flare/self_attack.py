"""What an attacker would make of a site's own update, found out at home."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gradward.attacks.budget import Budget
from gradward.attacks.observation import Observation
from gradward.attacks.portfolio import run_portfolio
from gradward.attacks.spec import AttackSpec
from gradward.data import ImageSet, PublicSet
from gradward.flare.experiment import Experiment
from gradward.flare.rounds import recall_round
from gradward.flare.seeds import derive_seed
from gradward.flare.site import Site
from gradward.metrics.leakage import score_reconstructions
from gradward.metrics.scores import Scores, best_of_attacks


class NotJudged(RuntimeError):
    """An update that no attack could judge; the reason holds nothing of the data."""


class SelfAttack:
    """The audit's portfolio, mounted by the site itself, which knows how many images there were."""

    def __init__(self, attacks: Sequence[Mapping[str, Any]], budget: Mapping[str, Any]) -> None:
        """Check the attacks and their budget.

        Args:
            attacks: fields of :class:`gradward.attacks.AttackSpec`, one entry an attack.
            budget: fields of :class:`gradward.attacks.budget.Budget`, for each attack.

        Raises:
            TypeError, ValueError: with the offending value.
        """
        self._attacks = AttackSpec.check_all(attacks)
        self._budget = Budget(**budget)
        self._data: tuple[ImageSet, PublicSet] | None = None

    def on(
        self,
        site: Site,
        experiment: Experiment,
        number: int,
        received: Mapping[str, Any],
        update: Mapping[str, Any],
    ) -> Scores:
        """Return the best of attacks on one update, scored by the images it was made from.

        Args:
            site: that made the update.
            experiment: of the job.
            number: of the round.
            received: global state, arrays by name.
            update: after - before, likewise.

        Raises:
            NotJudged: no attack applies, or one broke.
            ObservationError: these are no global state and update of the job's model.
            DataError: the images cannot be had.
        """
        record = recall_round(site.job_folder, number)
        if record is None or record.images is None:
            raise NotJudged("this site has no record of the images that made the update")
        if self._data is None:
            self._data = experiment.load_split(site, "training"), experiment.load_public(site)
        images, public = self._data
        results = run_portfolio(
            Observation.from_update(experiment.build_model(), received, update),
            prior=public.prior_image,
            n_images=len(record.images),
            settings=experiment.settings_for(site.name),
            attacks=self._attacks,
            budget=self._budget,
            seed=derive_seed(experiment.seed, "gate", site.name, number),
            device=site.device,
            public=public.of_attacker,
        )
        broken = [result.attack for result in results if result.status == "failed"]
        if broken:
            raise NotJudged(f"the attack {' and '.join(broken)} broke")
        scored = [
            score_reconstructions(
                result.images,
                None,
                images.subset(record.images),
                prior_image=public.prior_image,
                mean_image=public.mean_image,
                site_images=images,
                truth_positions=record.images,
                decoys=public.part("decoys"),
            )
            for result in results
            if result.images is not None
        ]
        if not scored:
            raise NotJudged("no attack applies to this update within its limits")
        return best_of_attacks(scored).real
