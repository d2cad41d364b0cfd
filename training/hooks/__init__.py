"""What looks on at the training loop, or acts between its steps."""
