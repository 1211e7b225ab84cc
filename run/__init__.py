"""What surrounds the training loop, and the place where model and text meet."""
