"""Who runs which command and which Python block of the documentation.

A command that is in a page and not here fails `test_docs.py`, as does one that is here and in no
page. The value is a test, ``file::name``, perhaps with more words behind it.
"""

from __future__ import annotations

HERE = "tests/unit/test_docs_commands.py::"
TUTORIAL = "tests/integration/test_docs.py::test_the_tutorial"
EXTENDING = "tests/integration/test_docs.py::test_own_attack_and_filter"
POC = "tests/poc/test_poc.py::test_a_submitted_job_is_followed_and_reported"
KIT = "tests/poc/test_provisioned.py::test_a_job_without_code_runs_where_byoc_is_forbidden"
AUDIT = (
    "gradward audit --model resnet18 --global g.pt --update u.pt --image-size 64 64 --channels 1 "
    "--classes 2 --lr 0.01 --batch-size 1 --images 1 "
)
BOARD = (
    "tests/unit/test_flare_tensorboard.py::test_values_can_be_read_while_the_run_goes_on: the "
    "files, by TensorBoard's own reader"
)
MLFLOW = "tests/integration/test_tracking.py::test_mlflow_has_what_tensorboard_has, once installed"
WANDB = "tests/integration/test_tracking.py::test_wandb_has_every_value, once installed"
SUBMIT_ANY = "poc/submit.sh jobs/quickstart"

COMPARED = "tests/unit/test_compare_output.py::test_the_command_compares_and_names_mistakes"
SWEPT = (
    "tests/unit/test_flare_job_settings.py::test_every_component_of_that_name_is_changed_in_a_copy"
)

COMMANDS: dict[str, dict[str, str]] = {
    "README.md": {
        "make demo": "tests/integration/test_quickstart.py::"
        "test_every_site_round_and_attack_is_on_record_once, all that `make` does beside "
        "installing",
        "make test": "tests/unit/test_docs.py::test_make_has_every_target that is named; the rest "
        "is this very run",
        "gradward run jobs/quickstart_defended": "tests/integration/test_defended.py::defended, "
        "the same job with probes",
        "gradward data chest-xray --site-settings gradward.json --image-size 64 64 --channels 1": (
            f"{HERE}test_data_are_checked"
        ),
        "gradward run jobs/cxr_high_risk --site-settings gradward.json": (
            "tests/unit/test_flare_recipe.py::test_a_recipe_writes_the_job_folder_to_the_letter: "
            "seven minutes, by hand, for the README's figures"
        ),
        AUDIT + "--truth truth --out audit": f"{HERE}test_an_update_is_audited",
        "make poc": POC,
        SUBMIT_ANY: POC,
        "make poc-stop": "tests/poc/test_poc.py::test_it_stops_and_starts_again",
    },
    "docs/attach.md": {
        "gradward attach their_job --out their_job_audited --model net:SimpleNetwork "
        "--dataset ward --image-size 64 64 --channels 1 --classes 3 --lr 0.01 --batch-size 16 "
        "--training '{\"epochs\": 2}'": f"{HERE}test_an_audit_is_attached",
        "gradward run their_job_audited --sites 3 --site-settings gradward.json": (
            "tests/integration/test_attach.py::"
            "test_every_update_of_a_client_api_script_is_scored, another job"
        ),
        "python 0": f"{HERE}test_the_recipe_is_built",
        "python 1": "tests/unit/test_flare_script_perturbation.py::"
        "test_an_update_of_perturbed_images_passes_the_guard_as_a_difference; a part of a script",
    },
    "docs/audit.md": {
        AUDIT + "--prior prior_mean.png --public public --truth truth --budget 20 --out audit": (
            f"{HERE}test_an_update_is_audited"
        ),
        "gradward audit --model resnet18 --global round-7/global.pt --update round-7 --workers 4 "
        "--image-size 64 64 --channels 1 --classes 2 --lr 0.01 --batch-size 1 --images 1 --public "
        "public --truth truths --budget 20 --out audits": (
            "tests/unit/test_cli_audit_batch.py: a smaller network, two workers"
        ),
        "python 0": f"{HERE}test_an_update_is_audited_in_python",
        "python 1": "tests/unit/test_audit_batch.py: audit_updates with smaller networks",
    },
    "docs/compare.md": {
        "gradward report runs/quickstart runs/quickstart_defended --compare --out compare": (
            COMPARED
        ),
        "for noise in 0.01 0.1 1; do": SWEPT,
        "gradward run jobs/quickstart_noise --set UpdateNoise.fraction=$noise --workspace "
        "runs/noise-$noise": SWEPT,
        "done": SWEPT,
        "gradward report runs/quickstart runs/noise-* --compare --out compare": (
            "tests/unit/test_compare_output.py::"
            "test_the_frontier_and_the_sweep_are_drawn_where_the_numbers_are"
        ),
    },
    "docs/deployment.md": {
        "gradward run jobs/quickstart": "tests/integration/test_quickstart.py::"
        "test_every_site_round_and_attack_is_on_record_once",
        "make poc && poc/submit.sh jobs/quickstart": POC,
        "gradward submit jobs/quickstart --kit KIT": KIT,
        "make poc": POC,
        SUBMIT_ANY: POC,
        "make poc-stop": "tests/poc/test_poc.py::test_it_stops_and_starts_again",
        "gradward configure KIT --settings gradward.json": KIT,
        "gradward configure KIT --settings gradward.json --policy poc/site-policies/strict "
        "--gpus 1": KIT,
        "gradward doctor KIT": "tests/poc/test_provisioned.py::"
        "test_the_doctor_finds_nothing_missing",
        "nvflare preflight-check -p KIT": "tests/poc/test_provisioned.py::"
        "test_a_sites_kit_passes_nvflares_own_check",
        "KIT/startup/start.sh": KIT,
        "gradward export quickstart --no-custom --out /tmp/quickstart": (
            f"{HERE}test_a_job_is_exported_without_code"
        ),
        "gradward submit /tmp/quickstart --kit kits/gradward/prod_00/lead@gradward.example": KIT,
    },
    "docs/extending.md": {
        "gradward export quickstart --out my_job": EXTENDING,
        "cp docs/examples/my_attack.py docs/examples/my_filter.py my_job/app/custom/": EXTENDING,
        "gradward run my_job --site-settings sites.json": EXTENDING,
        "python 0": f"{HERE}test_the_attack_of_the_page_recovers",
        "python 1": EXTENDING,
    },
    "docs/tracking.md": {
        "tensorboard --logdir runs/quickstart/tb_events": BOARD,
        "tensorboard --logdir runs": BOARD,
        "pip install mlflow-skinny sqlalchemy alembic": MLFLOW,
        "pip install wandb": WANDB,
    },
    "docs/tutorial.md": {
        "mkdir own": TUTORIAL,
        "cd own": TUTORIAL,
        "python ../docs/examples/make_own_data.py": TUTORIAL,
        "gradward data ward --site-settings gradward.json --site site-2": TUTORIAL,
        "gradward export quickstart --out ward": TUTORIAL,
        "gradward export quickstart_defended --out ward_defended": TUTORIAL,
        "gradward run ward --site-settings gradward.json": TUTORIAL,
        "gradward report runs/ward": TUTORIAL,
        "gradward run ward_defended --site-settings gradward.json": TUTORIAL,
        "python 0": TUTORIAL,
    },
}
