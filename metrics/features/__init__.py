"""Feature networks: uint8 images in, one `metrics.protocol.FeatureBatch` out; one file each."""
