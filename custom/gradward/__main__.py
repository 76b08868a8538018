"""``python -m gradward`` is the console command."""

from gradward.cli import main

main(prog_name="gradward")
