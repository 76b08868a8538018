"""Scoring at home: the only place where a reconstruction meets the true image."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from gradward.data import DataError, ImageSet, PublicSet
from gradward.flare.analytics import stream_scalars
from gradward.flare.answer_log import AnswerLog, describe_request
from gradward.flare.certificate import CERTIFICATE, run_kind
from gradward.flare.close_scoring import is_withheld
from gradward.flare.door import ScoringDoor, ScoringRefused
from gradward.flare.experiment import Experiment, JobError, experiment_of
from gradward.flare.job_config import name_in, read_meta
from gradward.flare.precision import answer_of
from gradward.flare.private_folder import open_private_folders
from gradward.flare.protocol import (
    KNOWN,
    REASON_LENGTH,
    SCORE_TASK,
    UNKNOWN,
    ScoreReply,
    ScoreRequest,
)
from gradward.flare.rounds import recall_round, write_private
from gradward.flare.site import Site, SiteSettingsError, open_site, record_private_error
from gradward.flare.states import MessageError
from gradward.metrics.leakage import LeakageScores, score_reconstructions
from gradward.report.exposures import Exposure, save_exposure
from gradward.report.pictures import save_side_by_side
from gradward.report.site_folder import JOB, is_site_folder


class LeakageScorer(Executor):
    """Answers ``score_reconstruction`` with one rounded record, or with a refusal and its reason.

    Side-by-side pictures stay in the site's private folder (``pictures/``), like the log of every
    answer (``answers.log``), what each reconstruction showed (``exposures/``), and the site's own
    page, which is built of all that when the run ends (``report/index.html``).
    """

    def __init__(
        self,
        experiment_id: str = "experiment",
        analytics_sender_id: str = "analytics_sender",
    ) -> None:
        """Args: ids of the job's experiment and of its analytics sender."""
        super().__init__()
        self.experiment_id = experiment_id
        self.analytics_sender_id = analytics_sender_id
        self._training: ImageSet | None = None
        self._public: PublicSet | None = None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Build the site's own page when the run ends, from what is on its disk."""
        if event_type != EventType.END_RUN:
            return
        try:
            # It imports what draws, which the run itself does not need.
            from gradward.report.site_page import build_site_page

            folder = open_private_folders(fl_ctx)[1]
            if is_site_folder(folder):
                write_private(folder / JOB, json.dumps({"name": name_in(read_meta(fl_ctx))}))
                build_site_page(folder)
                self.log_info(fl_ctx, "the site's own page is in its private folder of the job")
        except Exception as error:
            # Its text may name files, and NVFlare streams the log to the server.
            self.log_warning(
                fl_ctx,
                f"the site's own page is not built: {type(error).__name__}; 'gradward report' "
                "with the site's private folder of the job builds it",
            )

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        """Score, or refuse; never raises, so that one site's trouble stays its own."""
        if task_name != SCORE_TASK:
            return make_reply(ReturnCode.TASK_UNKNOWN)
        try:
            reply = self._answer(shareable, fl_ctx)
        except Exception as error:
            # A full disk, say: what the site cannot put on record does not leave.
            self.log_error(fl_ctx, f"scoring failed with {type(error).__name__}")
            reply = ScoreReply(status="refused", reason="this site cannot keep its log of answers")
        return reply.to_shareable()

    def _answer(self, shareable: Shareable, fl_ctx: FLContext) -> ScoreReply:
        """Return the answer or the refusal that the site's log now holds."""
        # Before the settings are read: a request that bad settings refuse is on record as well.
        log = AnswerLog(open_private_folders(fl_ctx)[1])
        asked = describe_request(shareable, fl_ctx)
        site: Site | None = None
        try:
            site = open_site(fl_ctx)
            site.apply_threads()
            door = ScoringDoor(site.job_folder, site.scoring)
            door.require_open()
            if is_withheld(shareable):
                raise ScoringRefused("this site's policy closes scoring")
            if run_kind(site) == CERTIFICATE:
                raise ScoringRefused("this run is certified, which a live score would break")
            experiment = experiment_of(fl_ctx, self.experiment_id)
            request = ScoreRequest.from_shareable(
                shareable,
                (experiment.channels, *experiment.image_size),
                site.scoring.attacks,
            )
            reply = self._score(site, door, experiment, request)
        except (ScoringRefused, MessageError, DataError, JobError, SiteSettingsError) as error:
            reason = str(error)[:REASON_LENGTH]
        except Exception as error:
            # Whatever failed here may have images in its traceback: it stays in the private log.
            if site is not None:
                record_private_error(site)
            self.log_error(fl_ctx, f"scoring failed with {type(error).__name__}")
            reason = "scoring failed at the site"
        else:
            log.answer(asked, {"real": reply.real, "control": reply.control, "prior": reply.prior})
            self._mirror(fl_ctx, request, reply)
            return reply
        log.refusal(asked, reason)
        self.log_warning(fl_ctx, f"scoring refused: {reason}")
        return ScoreReply(status="refused", reason=reason)

    def _score(
        self, site: Site, door: ScoringDoor, experiment: Experiment, request: ScoreRequest
    ) -> ScoreReply:
        if request.site != site.name:
            raise ScoringRefused("this reconstruction is of another site's update")
        record = recall_round(site.job_folder, request.round)
        if record is None:
            raise ScoringRefused(f"this site sent no update in round {request.round}")
        training, public = self._load(site, experiment)
        expected = experiment.public_checksum or public.checksum
        if not public.checksum == request.public_checksum == expected:
            raise ScoringRefused(
                f"the public images of {public.name!r} differ between server, site and job"
            )
        door.admit(request)
        # Somebody else's trainer does not say which images it used: any of them counts as a hit.
        known = record.images is not None
        positions = record.images if record.images is not None else list(range(len(training)))
        truths = training.subset(positions)
        scores = score_reconstructions(
            torch.from_numpy(request.images),
            None if request.control is None else torch.from_numpy(request.control),
            truths,
            prior_image=public.prior_image,
            mean_image=public.mean_image,
            site_images=training,
            truth_positions=positions,
            decoys=public.part("decoys"),
        )
        exposure = Exposure.of(
            scores,
            number=request.round,
            attack=request.attack,
            known=known,
            positions=positions,
            truths=truths,
            reconstructions=torch.from_numpy(request.images),
            control=None if request.control is None else torch.from_numpy(request.control),
            prior=public.prior_image,
        )
        save_exposure(site.job_folder, exposure)
        self._keep_pictures(site.job_folder, request, truths, public, scores)
        return answer_of(scores, KNOWN if known else UNKNOWN)

    def _load(self, site: Site, experiment: Experiment) -> tuple[ImageSet, PublicSet]:
        if self._training is None:
            self._training = experiment.load_split(site, "training")
        if self._public is None:
            self._public = experiment.load_public(site)
        return self._training, self._public

    @staticmethod
    def _keep_pictures(
        job_folder: Path,
        request: ScoreRequest,
        truths: ImageSet,
        public: PublicSet,
        scores: LeakageScores,
    ) -> None:
        folder = job_folder / "pictures"
        folder.mkdir(mode=0o700, exist_ok=True)
        rows, columns = scores.assignment
        beside = scores.control_beside
        has_control = request.control is not None and beside is not None
        control = torch.from_numpy(request.control)[beside] if has_control else None
        save_side_by_side(
            folder / f"round-{request.round}-{request.attack}.png",
            truths=truths.images[columns],
            prior=public.prior_image,
            reconstructions=torch.from_numpy(request.images)[rows],
            control=control,
        )

    def _mirror(self, fl_ctx: FLContext, request: ScoreRequest, reply: ScoreReply) -> None:
        """Stream what is on record already; a failure changes no answer."""
        for label, scores in (("", reply.real), ("/control", reply.control)):
            if scores is None:
                continue
            prefix = f"leakage/{request.attack}{label}"
            try:
                stream_scalars(fl_ctx, self.analytics_sender_id, prefix, scores, request.round)
            except Exception as error:
                self.log_warning(fl_ctx, f"scores are not streamed: {type(error).__name__}")
