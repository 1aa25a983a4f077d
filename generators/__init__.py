"""Turn seeds and labels into images, and learn to: diffusion models and plug-in baselines."""
