"""Images in and out: data sets, npz files, crops, the order of training batches."""
