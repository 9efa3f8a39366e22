"""Data sets: from a file, a folder or a name to tensors, their parts, their scale, and batches of them."""
