"""A small drawn world that comes in the file formats of real life: pictures, pair list, Karpathy JSON, contrast pairs, first weights."""
