"""What every training run here shares: the loop, the weight average, its state."""
