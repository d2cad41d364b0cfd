"""`python -m pipeline.app.studies.child PARENT_PID CONFIG`: `albef run CONFIG`, which ends when the study that started it does."""

import sys

from pipeline.app.cli import main
from pipeline.core.lifeline import die_with

if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    sys.argv = ["albef", "run", sys.argv[2]]
    main()
