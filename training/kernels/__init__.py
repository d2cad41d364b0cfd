"""Cross-entropies against many keys or many words, in pieces: what would be the step's largest matrices never exists as a whole."""
