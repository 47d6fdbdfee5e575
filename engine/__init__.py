"""The ground floor, which knows no data set and no network: settings, the training loop, files, scores."""
