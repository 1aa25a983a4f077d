"""ADM: configurations, presets, the generator and its trainers."""
