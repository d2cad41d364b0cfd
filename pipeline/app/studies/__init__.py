"""Experiments on the embedded world: the same run again and again with one thing changed, and what comes of it."""

from pipeline.app.studies.itm_start import ITM_START
from pipeline.app.studies.study import Study
from pipeline.app.studies.table1 import TABLE1

STUDIES: dict[str, Study] = {"table1": TABLE1, "itm-start": ITM_START}
