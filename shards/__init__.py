"""Plain WebDataset tars read in an exact, resumable, elastic order."""
