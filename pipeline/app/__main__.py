"""`python -m pipeline.app`, the form launchers start."""

from pipeline.app.cli import main

main()
