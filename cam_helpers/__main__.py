"""`python -m cam_helpers` is `cam-helpers`."""

from cam_helpers.cli import main

main(prog_name="cam-helpers")
