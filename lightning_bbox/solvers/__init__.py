"""The exact linear solver: least squares, and sums over batches and processes."""
