"""Train, sample, measure and compare image generators. Public names are imported on first use."""
