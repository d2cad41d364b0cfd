"""The ground floor: errors, configuration, storage, run directory, logging. Imports none of our other packages and no torch."""
