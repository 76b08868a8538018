"""A site's memory of what DP-SGD has spent in one job, on disk like that of its rounds."""

from __future__ import annotations

import json
from pathlib import Path

from gradward.flare.experiment import JobError
from gradward.flare.rounds import write_private
from gradward.training import TrainingSettings

ACCOUNT_FILE = "dp_sgd.json"


def spend_round(job_folder: Path, settings: TrainingSettings, n_images: int) -> float:
    """Pay for one more round before it is trained, and return the job's epsilon with it.

    A round that is repeated is paid for again.

    Args:
        job_folder: the site's private folder of the job.
        settings: with ``dp_sgd``.
        n_images: of the site.

    Raises:
        JobError: these settings promise nothing for so many images, the job's epsilon does not
            suffice for another round, or the account is damaged.
    """
    # Opacus takes seconds to import, which most sites need not wait for.
    from gradward.defenses.privacy_account import EpsilonSpent, PrivacyAccount, plan_round

    file = job_folder / ACCOUNT_FILE
    try:
        planned = plan_round(settings, n_images)
        account = PrivacyAccount.open(settings)
    except ValueError as error:
        raise JobError(f"DP-SGD: {error}") from None
    if file.is_file():
        try:
            account = PrivacyAccount.from_dict(json.loads(file.read_text(encoding="utf-8")))
        except (KeyError, TypeError, ValueError):
            # Without its memory the site cannot count, so it does not train.
            raise JobError(
                "this site's account of DP-SGD is damaged; restore it from a backup, or submit the "
                "job anew"
            ) from None
    try:
        account = account.spend(planned)
    except EpsilonSpent as error:
        raise JobError(f"DP-SGD: {error}") from None
    write_private(file, json.dumps(account.to_dict()))
    return account.epsilon
