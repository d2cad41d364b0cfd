"""The roof: the command line, the walk through the stages, the report and the embedded world."""
