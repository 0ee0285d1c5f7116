"""``python -m qrunner.master``."""

from qrunner.master.serving import main

main()
