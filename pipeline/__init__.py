"""The command line, the stages in order, and the ground floor every stage stands on."""
